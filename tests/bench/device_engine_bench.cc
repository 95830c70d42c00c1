#include "tests/bench/device_engine_bench.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "engine/engine.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_rates.h"
#include "server/names.h"
#include "server/parse_value.h"
#include "tests/support/tree_runner.h"
#include "tests/support/workload_trace.h"

namespace espalier::bench {
namespace {

struct Options {
  std::string model;
  uint64_t random_weights = 0;
  std::string device = "cuda";
  std::string attention = "default";
  std::string kv_dtype = "auto";
  bool no_graphs = false;
  int prompt = 4000;
  std::vector<int> branches = {20, 50};
  int at = 200;
  int window = 40;
  std::string traces;
  std::vector<std::string> ids;
  int max_steps = 0;
  int batch_tokens = 0;
  int repeats = 5;
  double read_gbps = 0;
  bool json = false;
};

std::unique_ptr<Engine> Open(const Options& o, int max_width) {
  EngineConfig config;
  config.model_path = o.model;
  config.random_weights = o.random_weights;
  const absl::StatusOr<Device> device = ParseName<Device>(o.device);
  const absl::StatusOr<AttentionVariant> attention = ParseName<AttentionVariant>(o.attention);
  if (!device.ok()) throw CLI::ValidationError("--device", std::string(device.status().message()));
  if (!attention.ok()) {
    throw CLI::ValidationError("--attention", std::string(attention.status().message()));
  }
  const absl::StatusOr<KvCacheDType> kv_dtype = ParseName<KvCacheDType>(o.kv_dtype);
  if (!kv_dtype.ok()) {
    throw CLI::ValidationError("--kv-dtype", std::string(kv_dtype.status().message()));
  }
  config.kv_dtype = *kv_dtype;
  config.device = *device;
  config.attention = *attention;
  config.cuda_graphs = !o.no_graphs;
  config.max_batch_tokens = o.batch_tokens;
  config.limits.max_nodes = 1 << 16;
  config.limits.max_width = std::max(config.limits.max_width, max_width);
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(config);
  if (!engine.ok()) throw CLI::ValidationError(std::string(engine.status().message()));
  return *std::move(engine);
}

// Measured where the engine runs, before it takes the memory; 0 on the CPU.
double ReadGbps(const Options& o) {
  if (o.read_gbps > 0 || o.device != "cuda") return o.read_gbps;
  std::string error;
  const std::unique_ptr<Context> ctx = Context::Cuda(0, DType::kBF16, 1, &error);
  if (ctx == nullptr) throw CLI::ValidationError(error);
  return cuda::MeasureReadGbps(*ctx);
}

std::vector<int32_t> Tokens(int count, int salt, int vocab) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) {
    tokens[i] = static_cast<int32_t>((int64_t{i} * 7919 + int64_t{salt} * 104729) % vocab);
  }
  return tokens;
}

Generation Exactly(int tokens) {
  Generation generation;
  generation.max_tokens = tokens;
  generation.ignore_eos = true;
  generation.sampling.temperature = 0;
  return generation;
}

PromptNode Node(int parent, std::vector<int32_t> tokens, std::optional<Generation> generation) {
  PromptNode node;
  node.parent = parent;
  node.content = std::move(tokens);
  node.generation = std::move(generation);
  return node;
}

TreeResult RunOrThrow(Engine& engine, TreeRequest request) {
  TreeResult result = RunTree(engine, std::move(request));
  if (!result.status.ok()) throw CLI::ValidationError(std::string(result.status.message()));
  return result;
}

double KvBytesPerToken(const Engine& engine) {
  const EngineStats stats = engine.Stats();
  return static_cast<double>(stats.kv_bytes) /
         (static_cast<double>(stats.pages_total) * stats.page_size);
}

// Sums of the engine's times between two moments, in us a step.
nlohmann::json StepTimes(const EngineStats& before, const EngineStats& after) {
  const double steps = std::max<double>(1, static_cast<double>(after.steps - before.steps));
  const auto us = [&](double EngineStats::*sum) {
    return (after.*sum - before.*sum) * 1000 / steps;
  };
  return {{"schedule_us", us(&EngineStats::schedule_ms)},
          {"plan_us", us(&EngineStats::plan_ms)},
          {"forward_us", us(&EngineStats::forward_ms)},
          {"emit_us", us(&EngineStats::emit_ms)}};
}

// ---- decode

// Branches that have `at - window / 2` tokens each when decoding begins, so that the mean of
// `window` steps is step `at`.
TreeRequest FewShotAt(const Options& o, int branches, int vocab, int salt, int steps) {
  TreeRequest request;
  request.cache_salt = std::to_string(salt);
  request.nodes = {Node(-1, Tokens(o.prompt, salt, vocab), std::nullopt)};
  const int own = std::max(1, o.at - o.window / 2);
  for (int i = 0; i < branches; ++i) {
    request.nodes.push_back(Node(0, Tokens(own, 1000 * salt + i + 1, vocab), Exactly(steps)));
  }
  return request;
}

// Times between steps in a row that moved every branch, as the client sees them.
void AddWholeSteps(const TreeResult& result, int branches, std::vector<double>* ms) {
  for (size_t i = 1; i < result.steps.size(); ++i) {
    if (result.steps[i - 1].branches != branches || result.steps[i].branches != branches) continue;
    ms->push_back(absl::ToDoubleMilliseconds(result.steps[i].time - result.steps[i - 1].time));
  }
}

void RunDecode(const Options& o) {
  const double read_gbps = ReadGbps(o);
  const absl::Time start = absl::Now();
  const std::unique_ptr<Engine> engine =
      Open(o, *std::max_element(o.branches.begin(), o.branches.end()));
  const double load_s = absl::ToDoubleSeconds(absl::Now() - start);
  const ModelInfo& info = engine->model_info();
  nlohmann::json lines;
  for (const int branches : o.branches) {
    std::vector<double> step_ms, prefill_ms;
    nlohmann::json times;
    for (int repeat = 0; repeat <= o.repeats; ++repeat) {
      const auto request = [&](int steps) {
        return FewShotAt(o, branches, info.config.vocab_size, repeat + 1, steps);
      };
      // The prompts by themselves, for their steps take the host much longer.
      const TreeResult prefill = RunOrThrow(*engine, request(1));
      const EngineStats before = engine->Stats();
      const TreeResult result = RunOrThrow(*engine, request(o.window));
      times = StepTimes(before, engine->Stats());
      if (repeat == 0) continue;  // captures graphs
      prefill_ms.push_back(prefill.usage.first_token_ms);
      AddWholeSteps(result, branches, &step_ms);
    }
    if (step_ms.empty()) {
      throw CLI::ValidationError("no two steps in a row moved all branches: widen --window");
    }
    std::ranges::sort(step_ms);
    std::ranges::sort(prefill_ms);
    const double kv_bytes =
        (o.prompt + static_cast<double>(branches) * o.at) * KvBytesPerToken(*engine);
    const double bytes = static_cast<double>(info.weight_bytes) + kv_bytes;
    const double median = step_ms[step_ms.size() / 2];
    const double roofline = read_gbps > 0 ? bytes / read_gbps * 1e-6 : 0;
    lines.push_back({{"branches", branches},
                     {"prompt", o.prompt},
                     {"step", o.at},
                     {"ms", median},
                     {"ms_p5", step_ms[step_ms.size() / 20]},
                     {"ms_p95", step_ms[step_ms.size() * 19 / 20]},
                     {"weight_gb", static_cast<double>(info.weight_bytes) * 1e-9},
                     {"kv_gb", kv_bytes * 1e-9},
                     {"roofline_ms", roofline},
                     {"ratio", roofline > 0 ? median / roofline : 0},
                     {"steps", step_ms.size()},
                     {"first_token_ms", prefill_ms[prefill_ms.size() / 2]},
                     {"host", times}});
  }
  if (o.json) {
    const nlohmann::json all = {{"device", info.device_name},
                                {"model", info.name},
                                {"attention", o.attention},
                                {"graphs", !o.no_graphs},
                                {"read_gbps", read_gbps},
                                {"load_s", load_s},
                                {"lines", lines}};
    std::printf("%s\n", all.dump(2).c_str());
    return;
  }
  std::printf("%s, %s, attention %s, graphs %s, reads at %.0f GB/s, loaded in %.1f s\n",
              info.device_name.c_str(), info.name.c_str(), o.attention.c_str(),
              o.no_graphs ? "off" : "on", read_gbps, load_s);
  std::printf("%8s %7s %5s | %8s %8s %8s | %9s %6s | %9s | host us: %s\n", "branches", "prompt",
              "step", "ms", "p5", "p95", "roofline", "ratio", "first ms",
              "schedule plan emit forward");
  for (const nlohmann::json& line : lines) {
    const auto number = [&](const char* key) { return line.at(key).get<double>(); };
    const auto host = [&](const char* key) { return line.at("host").at(key).get<double>(); };
    std::printf(
        "%8.0f %7.0f %5.0f | %8.3f %8.3f %8.3f | %9.3f %6.3f | %9.1f | %.0f %.0f %.0f %.0f\n",
        number("branches"), number("prompt"), number("step"), number("ms"), number("ms_p5"),
        number("ms_p95"), number("roofline_ms"), number("ratio"), number("first_token_ms"),
        host("schedule_us"), host("plan_us"), host("emit_us"), host("forward_us"));
  }
}

// ---- prefill

// Floating-point operations of a prompt: two a weight and token, the tables not counted, and four a
// query, key and head dimension of causal attention.
double PrefillFlops(const ModelInfo& info, double tokens) {
  const ModelConfig& c = info.config;
  const double layer_weights = static_cast<double>(c.hidden_size) *
                               (2.0 * c.num_heads * c.head_dim + 2.0 * c.num_kv_heads * c.head_dim +
                                3.0 * c.intermediate_size);
  const double attention = 4.0 * c.num_heads * c.head_dim * tokens * tokens / 2;
  return c.num_layers * (2 * layer_weights * tokens + attention);
}

void RunPrefill(const Options& o) {
  std::string error;
  double peak_tflops = 0;
  if (o.device == "cuda") {
    const std::unique_ptr<Context> ctx = Context::Cuda(0, DType::kBF16, 1, &error);
    if (ctx == nullptr) throw CLI::ValidationError(error);
    peak_tflops = cuda::MeasureMatMulTflops(*ctx);
  }
  const std::unique_ptr<Engine> engine = Open(o, 1);
  const ModelInfo& info = engine->model_info();
  std::vector<double> ms;
  for (int repeat = 0; repeat <= o.repeats; ++repeat) {
    TreeRequest request;
    request.cache_salt = std::to_string(repeat);
    request.nodes = {Node(-1, Tokens(o.prompt, repeat, info.config.vocab_size), Exactly(1))};
    const TreeResult result = RunOrThrow(*engine, std::move(request));
    if (repeat > 0) ms.push_back(result.usage.first_token_ms);
  }
  std::ranges::sort(ms);
  const double median = ms[ms.size() / 2];
  const double tflops = PrefillFlops(info, o.prompt) / median * 1e-9;
  const nlohmann::json line = {{"device", info.device_name},
                               {"model", info.name},
                               {"tokens", o.prompt},
                               {"batch_tokens", engine->config().max_batch_tokens},
                               {"ms", median},
                               {"tokens_per_s", o.prompt / median * 1000},
                               {"tflops", tflops},
                               {"matmul_tflops", peak_tflops},
                               {"percent", peak_tflops > 0 ? 100 * tflops / peak_tflops : 0}};
  if (o.json) {
    std::printf("%s\n", line.dump(2).c_str());
    return;
  }
  std::printf(
      "%s, %s: prefill of %d tokens in %.1f ms (chunks of %d), %.0f tokens/s, %.0f TFLOP/s, "
      "%.0f %% of the %.0f of an 8192-wide product\n",
      info.device_name.c_str(), info.name.c_str(), o.prompt, median,
      engine->config().max_batch_tokens, o.prompt / median * 1000, tflops,
      line.at("percent").get<double>(), peak_tflops);
}

// ---- replay

// A trace as one request: node 0 is the prompt, every other node continues its parent with as many
// tokens as the trace gives it. A prompt node cannot be empty, so the first token of each is given
// and the rest is generated: forced lengths, whatever the model says. `max_steps` cuts the tree.
struct ForcedTree {
  TreeRequest request;
  int widest = 0;            // branches of the widest steps
  double widest_tokens = 0;  // KV tokens of the tree, mean over those steps
};

ForcedTree TreeOfTrace(const testing::WorkloadTrace& trace, int max_steps, int vocab) {
  testing::TraceReplay replay(trace);
  std::vector<int> tokens(trace.num_nodes), parent(trace.num_nodes, -1);
  ForcedTree forced;
  double widest_sum = 0;
  int widest_steps = 0;
  while ((max_steps == 0 || replay.step() < max_steps) && replay.NextStep()) {
    const int width = static_cast<int>(replay.leaves().size());
    if (width > forced.widest) {
      forced.widest = width;
      widest_sum = widest_steps = 0;
    }
    if (width == forced.widest) {
      ++widest_steps;
      for (const int node : replay.live_nodes()) widest_sum += replay.num_tokens(node);
    }
    for (const int node : replay.live_nodes()) {
      tokens[node] = replay.num_tokens(node);
      parent[node] = replay.parent(node);
    }
  }
  forced.widest_tokens = widest_sum / std::max(widest_steps, 1);
  TreeRequest& request = forced.request;
  request.cache_salt = trace.id;
  std::vector<int> index(trace.num_nodes, -1);
  for (int node = 0; node < trace.num_nodes; ++node) {
    if (node > 0 && tokens[node] == 0) continue;
    index[node] = static_cast<int>(request.nodes.size());
    if (node == 0) {
      request.nodes.push_back(Node(-1, Tokens(trace.prompt_tokens, 1, vocab), std::nullopt));
    } else {
      request.nodes.push_back(
          Node(index[parent[node]], {node % vocab}, Exactly(std::max(1, tokens[node] - 1))));
    }
  }
  return forced;
}

void RunReplay(const Options& o) {
  const double read_gbps = ReadGbps(o);
  std::vector<testing::WorkloadTrace> traces;
  for (testing::WorkloadTrace& trace : testing::LoadWorkloadTraces(o.traces)) {
    if (o.ids.empty() ? traces.empty()
                      : std::find(o.ids.begin(), o.ids.end(), trace.id) != o.ids.end()) {
      traces.push_back(std::move(trace));
    }
  }
  if (traces.empty()) throw CLI::ValidationError("--id", "no such trace in " + o.traces);
  int64_t widest = 1;
  for (const auto& trace : traces) widest = std::max(widest, trace.expect.max_leaves);
  const std::unique_ptr<Engine> engine = Open(o, static_cast<int>(widest));
  const ModelInfo& info = engine->model_info();
  nlohmann::json lines;
  for (const testing::WorkloadTrace& trace : traces) {
    const EngineStats before = engine->Stats();
    ForcedTree forced = TreeOfTrace(trace, o.max_steps, info.config.vocab_size);
    const TreeResult result = RunOrThrow(*engine, std::move(forced.request));
    // Branches part from the trace by a step where a prompt's last chunk gave them their first
    // token.
    std::vector<double> widest_ms;
    for (int width = forced.widest; width > 0 && widest_ms.empty(); --width) {
      AddWholeSteps(result, width, &widest_ms);
    }
    std::ranges::sort(widest_ms);
    const nlohmann::json times = StepTimes(before, engine->Stats());
    const Usage& usage = result.usage;
    const double per_token = KvBytesPerToken(*engine);
    const double kv_bytes = static_cast<double>(usage.kv_tokens_read_unique) * per_token;
    const double bytes = kv_bytes + static_cast<double>(usage.steps * info.weight_bytes);
    lines.push_back(
        {{"trace", trace.id},
         {"steps", usage.steps},
         {"seconds", usage.total_ms / 1000},
         {"first_token_ms", usage.first_token_ms},
         {"kv_tb_read_unique", kv_bytes * 1e-12},
         {"kv_tb_read_logical",
          static_cast<double>(usage.kv_tokens_read_logical) * per_token * 1e-12},
         {"trace_kv_tb_unique",
          o.max_steps == 0 ? static_cast<double>(trace.expect.sum_tree_tokens) * per_token * 1e-12
                           : 0},
         {"roofline_s", read_gbps > 0 ? bytes / read_gbps * 1e-9 : 0},
         {"widest", forced.widest},
         {"widest_ms", widest_ms.empty() ? 0 : widest_ms[widest_ms.size() / 2]},
         {"widest_roofline_ms", read_gbps > 0 ? (static_cast<double>(info.weight_bytes) +
                                                 forced.widest_tokens * per_token) /
                                                    read_gbps * 1e-6
                                              : 0},
         {"host", times}});
  }
  const nlohmann::json all = {{"device", info.device_name},
                              {"model", info.name},
                              {"attention", o.attention},
                              {"graphs", !o.no_graphs},
                              {"max_steps", o.max_steps},
                              {"read_gbps", read_gbps},
                              {"lines", lines}};
  if (o.json) {
    std::printf("%s\n", all.dump(2).c_str());
    return;
  }
  std::printf("%s, %s, attention %s, reads at %.0f GB/s\n", info.device_name.c_str(),
              info.name.c_str(), o.attention.c_str(), read_gbps);
  std::printf("%-24s %6s %9s %9s %6s %10s %10s | %6s %8s %9s\n", "trace", "steps", "s", "roofline",
              "ratio", "KV TB", "logical TB", "widest", "ms", "roofline");
  for (const nlohmann::json& line : lines) {
    const double seconds = line.at("seconds");
    const double roofline = line.at("roofline_s");
    std::printf("%-24s %6d %9.3f %9.3f %6.3f %10.4f %10.4f | %6d %8.3f %9.3f\n",
                line.at("trace").get<std::string>().c_str(), line.at("steps").get<int>(), seconds,
                roofline, roofline > 0 ? seconds / roofline : 0,
                line.at("kv_tb_read_unique").get<double>(),
                line.at("kv_tb_read_logical").get<double>(), line.at("widest").get<int>(),
                line.at("widest_ms").get<double>(), line.at("widest_roofline_ms").get<double>());
  }
}

void AddCommon(CLI::App* command, Options* options) {
  command->add_option("--model", options->model, "GGUF file, folder or config.json")->required();
  command->add_option("--random-weights", options->random_weights, "seed of made-up weights");
  command->add_option("--device", options->device, "cpu or cuda");
  command->add_option("--attention", options->attention,
                      "default, sequence, node, node-chunk or flatten");
  command->add_option("--kv-dtype", options->kv_dtype, "auto or fp8");
  command->add_flag("--no-graphs", options->no_graphs, "launch every op by itself");
  command->add_option("--read-gbps", options->read_gbps, "0: measured");
  command->add_flag("--json", options->json, "print JSON");
}

}  // namespace

void AddDecodeCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("decode", "A decode step of the whole engine beside its bytes roofline");
  auto options = std::make_shared<Options>();
  AddCommon(command, options.get());
  command->add_option("--prompt", options->prompt, "tokens of the shared prompt");
  command->add_option("--branches", options->branches, "branches; may be repeated");
  command->add_option("--at", options->at, "tokens of a branch at the mean step");
  command->add_option("--window", options->window, "steps that are averaged")
      ->check(CLI::Range(2, 10000));
  command->add_option("--repeats", options->repeats, "timed runs");
  command->callback([options] { RunDecode(*options); });
}

void AddPrefillCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("prefill", "A prompt through the whole engine");
  auto options = std::make_shared<Options>();
  options->prompt = 8192;
  AddCommon(command, options.get());
  command->add_option("--prompt", options->prompt, "tokens");
  command->add_option("--batch-tokens", options->batch_tokens, "tokens a step; 0: the default");
  command->add_option("--repeats", options->repeats, "timed runs");
  command->callback([options] { RunPrefill(*options); });
}

void AddReplayCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("replay", "Recorded trees through the whole engine, lengths forced");
  auto options = std::make_shared<Options>();
  AddCommon(command, options.get());
  command->add_option("--traces", options->traces, "file of traces")->required();
  command->add_option("--id", options->ids,
                      "trace; may be repeated; the file's first if not given");
  command->add_option("--max-steps", options->max_steps, "cut the tree after this step; 0: whole");
  command->callback([options] { RunReplay(*options); });
}

}  // namespace espalier::bench
