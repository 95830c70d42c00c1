#include "tests/bench/draft_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "server/names.h"
#include "server/parse_value.h"
#include "tests/support/tree_runner.h"

namespace espalier::bench {
namespace {

struct Options {
  std::string model;
  std::string draft_model;
  uint64_t random_weights = 0;
  std::string device = "cpu";
  std::vector<int> branches = {1, 4, 16};
  std::vector<int> shape;
  int depth = DraftShape{}.depth;
  int rows = 0;
  int prompt = 256;  // with made-up weights
  int tokens = 64;
  double temperature = 0;
  int repeats = 3;
  bool json = false;
};

struct Mode {
  std::string name;
  Speculative speculative = Speculative::kOff;
  bool adaptive = true;
};

constexpr std::array kQuestions = {
    "What is the capital of France, and what is it known for?",
    "Write a list of the numbers from one to twenty in words.",
    "Explain in simple words how rain forms.",
    "Write a Python function that returns the sum of a list.",
    "Tell a short story about a fox and a hen.",
    "Name five fruits and say of what colour each is.",
    "What should I pack for a week in the mountains?",
    "Summarise the plot of Romeo and Juliet.",
};

template <class T>
T OrThrow(absl::StatusOr<T> value) {
  if (!value.ok()) throw CLI::ValidationError(std::string(value.status().message()));
  return *std::move(value);
}

std::unique_ptr<Engine> Open(const Options& o, const Mode& mode) {
  EngineConfig config;
  config.model_path = o.model;
  config.random_weights = o.random_weights;
  config.device = OrThrow(ParseName<Device>(o.device));
  config.speculative = mode.speculative;
  config.speculative_rows = o.rows;
  config.draft_shape.children = o.shape;
  config.draft_shape.depth = o.depth;
  config.draft_shape.adaptive = mode.adaptive;
  config.kv_memory_bytes = size_t{1} << 30;
  if (mode.speculative == Speculative::kDraft) config.draft_model_path = o.draft_model;
  return OrThrow(Engine::Create(config));
}

// Branches below a common beginning, each with a question of its own.
TreeRequest Request(const Options& o, int branches, int repeat) {
  Generation generation;
  generation.max_tokens = o.tokens;
  generation.ignore_eos = true;
  generation.sampling.temperature = static_cast<float>(o.temperature);
  TreeRequest request;
  request.seed = repeat;
  request.cache_salt = std::to_string(repeat);
  PromptNode& root = request.nodes.emplace_back();
  if (o.random_weights != 0) {
    std::vector<int32_t> tokens(o.prompt);
    for (int i = 0; i < o.prompt; ++i) tokens[i] = (i * 7919 + repeat * 104729) % 250;
    root.content = std::move(tokens);
  } else {
    root.content = std::vector<ChatMessage>{{"system", "You are a helpful assistant."}};
  }
  for (int i = 0; i < branches; ++i) {
    PromptNode& node = request.nodes.emplace_back();
    node.parent = 0;
    if (o.random_weights != 0) {
      node.content = std::vector<int32_t>{i};
    } else {
      node.content = std::vector<ChatMessage>{
          {"user", kQuestions[(i + repeat * branches) % kQuestions.size()]}};
    }
    node.generation = generation;
  }
  return request;
}

// What a mode has brought at a number of branches.
struct Line {
  std::vector<double> rates;
  Usage sum;
};

void Measure(Engine& engine, const Options& o, int branches, int repeat, Line* line) {
  const TreeResult result = RunTree(engine, Request(o, branches, repeat));
  if (!result.status.ok()) throw CLI::ValidationError(std::string(result.status.message()));
  if (repeat == 0) return;  // warms up
  const Usage& u = result.usage;
  const double seconds = (u.total_ms - u.first_token_ms) / 1000;
  line->rates.push_back(static_cast<double>(u.completion_tokens - branches) / seconds);
  line->sum.drafted_tokens += u.drafted_tokens;
  line->sum.accepted_tokens += u.accepted_tokens;
  line->sum.verify_steps += u.verify_steps;
  line->sum.completion_tokens += u.completion_tokens;
}

nlohmann::json Summary(const Mode& mode, int branches, Line& line, double off) {
  std::ranges::sort(line.rates);
  const double rate = line.rates[line.rates.size() / 2];
  const auto steps = static_cast<double>(std::max<int64_t>(line.sum.verify_steps, 1));
  return {{"mode", mode.name},
          {"branches", branches},
          {"tokens_per_s", rate},
          {"speedup", off > 0 ? rate / off : 1.0},
          {"drafted_a_step", static_cast<double>(line.sum.drafted_tokens) / steps},
          {"accepted_a_step", static_cast<double>(line.sum.accepted_tokens) / steps},
          {"steps_that_verified", line.sum.verify_steps},
          {"completion_tokens", line.sum.completion_tokens}};
}

void Run(const Options& o) {
  std::vector<Mode> modes = {{"off"}, {"ngram", Speculative::kNgram}};
  if (!o.draft_model.empty()) {
    modes.push_back({"draft", Speculative::kDraft});
    modes.push_back({"draft, not adaptive", Speculative::kDraft, false});
  }
  // Side by side, and in turns: what a machine does meanwhile meets all of them.
  std::vector<std::unique_ptr<Engine>> engines;
  for (const Mode& mode : modes) engines.push_back(Open(o, mode));
  nlohmann::json lines = nlohmann::json::array();
  for (int branches : o.branches) {
    std::vector<Line> measured(modes.size());
    for (int repeat = 0; repeat <= o.repeats; ++repeat) {
      for (size_t i = 0; i < modes.size(); ++i) {
        Measure(*engines[i], o, branches, repeat, &measured[i]);
      }
    }
    double off = 0;
    for (size_t i = 0; i < modes.size(); ++i) {
      lines.push_back(Summary(modes[i], branches, measured[i], off));
      if (i == 0) off = lines.back()["tokens_per_s"].get<double>();
    }
  }
  if (o.json) {
    std::printf("%s\n", lines.dump(2).c_str());
    return;
  }
  std::printf(
      "%d tokens a branch, temperature %.2f; tokens/s after the first token, median of %d\n",
      o.tokens, o.temperature, o.repeats);
  std::printf("%-20s %9s %9s %8s %9s %9s %15s\n", "mode", "branches", "tokens/s", "speed-up",
              "drafted", "accepted", "steps verified");
  for (const nlohmann::json& line : lines) {
    std::printf(
        "%-20s %9d %9.1f %8.2f %9.2f %9.2f %14.0f%%\n", line["mode"].get<std::string>().c_str(),
        line["branches"].get<int>(), line["tokens_per_s"].get<double>(), line.value("speedup", 1.0),
        line["drafted_a_step"].get<double>(), line["accepted_a_step"].get<double>(),
        100 * line["steps_that_verified"].get<double>() /
            (line["completion_tokens"].get<double>() -
             line["accepted_a_step"].get<double>() * line["steps_that_verified"].get<double>()));
  }
}

}  // namespace

void AddDraftsCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("drafts", "Speculative decoding by n-grams and by a draft model");
  auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "GGUF file, folder or config.json")->required();
  command->add_option("--draft-model", options->draft_model, "none: n-grams only");
  command->add_option("--random-weights", options->random_weights, "seed of made-up weights");
  command->add_option("--device", options->device, "cpu or cuda");
  command->add_option("--branches", options->branches, "branches of the tree; may be repeated");
  command->add_option("--shape", options->shape, "static tree: children level by level")
      ->delimiter(',');
  command->add_option("--depth", options->depth, "of a tree that grows");
  command->add_option("--rows", options->rows, "to which drafts fill a step; 0: the default");
  command->add_option("--prompt", options->prompt, "tokens, with made-up weights");
  command->add_option("--tokens", options->tokens, "new tokens a branch");
  command->add_option("--temperature", options->temperature, "0: greedy");
  command->add_option("--repeats", options->repeats, "timed runs")->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "print JSON");
  command->callback([options] { Run(*options); });
}

}  // namespace espalier::bench
