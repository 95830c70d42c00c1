#include "tests/bench/engine_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "engine/engine.h"
#include "tests/support/tree_runner.h"

namespace espalier::bench {
namespace {

struct Options {
  std::string model;
  int threads = 0;
  int prompt = 512;
  int branches = 16;
  int tokens = 64;
  int live = 64;
  int repeats = 5;
  std::string kv_dtype = "auto";
  bool exact = false;
  bool json = false;
};

struct Line {
  std::string name;
  double seconds = 0;  // median
  double tokens_per_s = 0;
  Usage usage;
};

EngineConfig Config(const Options& o, Sharing sharing) {
  EngineConfig config;
  config.model_path = o.model;
  config.num_threads = o.threads;
  config.sharing = sharing;
  config.kv_dtype = o.kv_dtype == "fp8" ? KvCacheDType::kFp8 : KvCacheDType::kAuto;
  config.cpu_precision = o.exact ? CpuPrecision::kF32 : CpuPrecision::kAuto;
  return config;
}

std::unique_ptr<Engine> Open(const EngineConfig& config) {
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(config);
  if (!engine.ok()) throw CLI::ValidationError(std::string(engine.status().message()));
  return *std::move(engine);
}

// Token ids of running text would make a cache hit between runs; these differ by `salt`.
std::vector<int32_t> Tokens(int count, int salt) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = 1000 + (i * 7919 + salt * 104729) % 30000;
  return tokens;
}

Generation Greedy(int tokens) {
  Generation g;
  g.max_tokens = tokens;
  g.ignore_eos = true;
  g.sampling.temperature = 0;
  return g;
}

PromptNode Node(int parent, std::vector<int32_t> tokens, std::optional<Generation> generation) {
  PromptNode node;
  node.parent = parent;
  node.content = std::move(tokens);
  node.generation = std::move(generation);
  return node;
}

TreeRequest Chain(int prompt, int tokens, int salt) {
  TreeRequest request;
  request.cache_salt = std::to_string(salt);
  request.nodes = {Node(-1, Tokens(prompt, salt), Greedy(tokens))};
  return request;
}

// A shared prompt, and below it branches that each begin with a token of their own.
TreeRequest FewShot(int prompt, int branches, int tokens, int salt) {
  TreeRequest request;
  request.cache_salt = std::to_string(salt);
  request.nodes = {Node(-1, Tokens(prompt, salt), std::nullopt)};
  for (int i = 0; i < branches; ++i) {
    request.nodes.push_back(Node(0, {2000 + i}, Greedy(tokens)));
  }
  return request;
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// `build` makes the request of a repeat; `after_first` times from the first token on.
template <typename Build>
Line Measure(const std::string& name, Engine& engine, const Options& o, int64_t tokens,
             bool after_first, const Build& build) {
  std::vector<double> seconds;
  Line line{.name = name, .usage = {}};
  for (int repeat = 0; repeat <= o.repeats; ++repeat) {
    const TreeResult result = RunTree(engine, build(repeat));
    if (!result.status.ok()) throw CLI::ValidationError(std::string(result.status.message()));
    line.usage = result.usage;
    const double from = after_first ? result.usage.first_token_ms : 0;
    if (repeat > 0) seconds.push_back((result.usage.total_ms - from) / 1000);  // the first warms up
  }
  line.seconds = Median(seconds);
  line.tokens_per_s = static_cast<double>(tokens) / line.seconds;
  return line;
}

void Run(const Options& o) {
  std::vector<Line> lines;
  nlohmann::json overhead;
  {
    const std::unique_ptr<Engine> engine = Open(Config(o, Sharing::kTree));
    lines.push_back(Measure("decode, 1 branch, 128 tokens after 16", *engine, o, 127, true,
                            [&](int i) { return Chain(16, 128, i); }));
    lines.push_back(Measure("prefill, " + std::to_string(o.prompt) + " tokens", *engine, o,
                            o.prompt, false, [&](int i) { return Chain(o.prompt, 1, i); }));
    lines.push_back(Measure("few-shot, sharing tree", *engine, o, int64_t{o.branches} * o.tokens,
                            false,
                            [&](int i) { return FewShot(o.prompt, o.branches, o.tokens, i); }));
    // What a step costs outside the model.
    const EngineStats before = engine->Stats();
    RunTree(*engine, FewShot(o.prompt, o.live, o.tokens, 99));
    engine->Drain(absl::Seconds(10));
    const EngineStats after = engine->Stats();
    const double steps = static_cast<double>(after.steps - before.steps);
    const auto us = [&](double EngineStats::*sum) {
      return (after.*sum - before.*sum) * 1000 / steps;
    };
    overhead = {{"live_branches", o.live},
                {"steps", steps},
                {"schedule_us", us(&EngineStats::schedule_ms)},
                {"plan_us", us(&EngineStats::plan_ms)},
                {"emit_us", us(&EngineStats::emit_ms)},
                {"sample_us", us(&EngineStats::sample_ms)},
                {"forward_us", us(&EngineStats::forward_ms)}};
  }
  {
    const std::unique_ptr<Engine> engine = Open(Config(o, Sharing::kNone));
    lines.push_back(Measure("few-shot, sharing none", *engine, o, int64_t{o.branches} * o.tokens,
                            false,
                            [&](int i) { return FewShot(o.prompt, o.branches, o.tokens, i); }));
  }

  if (o.json) {
    nlohmann::json all = {{"overhead", overhead}};
    for (const Line& line : lines) {
      all["lines"].push_back({{"name", line.name},
                              {"seconds", line.seconds},
                              {"tokens_per_s", line.tokens_per_s},
                              {"computed_tokens", line.usage.computed_tokens},
                              {"kv_tokens_read_unique", line.usage.kv_tokens_read_unique},
                              {"kv_tokens_read_logical", line.usage.kv_tokens_read_logical}});
    }
    std::printf("%s\n", all.dump(2).c_str());
    return;
  }
  std::printf("few-shot: %d branches x %d tokens over a prompt of %d; median of %d\n", o.branches,
              o.tokens, o.prompt, o.repeats);
  std::printf("%-40s %9s %10s %10s %12s %12s\n", "case", "s", "tokens/s", "computed", "KV unique",
              "KV logical");
  for (const Line& line : lines) {
    std::printf("%-40s %9.3f %10.1f %10ld %12ld %12ld\n", line.name.c_str(), line.seconds,
                line.tokens_per_s, static_cast<long>(line.usage.computed_tokens),
                static_cast<long>(line.usage.kv_tokens_read_unique),
                static_cast<long>(line.usage.kv_tokens_read_logical));
  }
  std::printf(
      "a step with %d live branches, us: schedule %.1f, plan %.1f, emit %.1f, sample %.1f, "
      "forward %.1f\n",
      o.live, overhead["schedule_us"].get<double>(), overhead["plan_us"].get<double>(),
      overhead["emit_us"].get<double>(), overhead["sample_us"].get<double>(),
      overhead["forward_us"].get<double>());
}

}  // namespace

void AddEngineCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("engine", "A real model through the whole engine");
  auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "GGUF file or Hugging Face folder")->required();
  command->add_option("--threads", options->threads, "0: every core");
  command->add_option("--prompt", options->prompt, "tokens of the shared prompt");
  command->add_option("--branches", options->branches, "branches of the few-shot tree");
  command->add_option("--tokens", options->tokens, "new tokens a branch");
  command->add_option("--live", options->live, "branches when the step's overhead is measured");
  command->add_option("--repeats", options->repeats, "timed runs of each case");
  command->add_option("--kv-dtype", options->kv_dtype, "auto; fp8: E4M3 with scales")
      ->check(CLI::IsMember({"auto", "fp8"}));
  command->add_flag("--f32", options->exact, "--cpu-precision f32");
  command->add_flag("--json", options->json, "print JSON");
  command->callback([options] { Run(*options); });
}

}  // namespace espalier::bench
