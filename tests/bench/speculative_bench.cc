// Verification steps of token trees: every token of a recorded tree is a query of one step, each
// row is drawn from, and the recorded number of tokens is accepted: their KV joins the path by
// CopySlots, the rest is dropped. Nothing is drafted; the draws are thrown away.
#include "tests/bench/speculative_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/device_setup.h"
#include "engine/executor/executor.h"
#include "engine/kvcache/kv_cache.h"
#include "engine/tree/decode_tree.h"
#include "kernels/core/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/ops.h"
#include "model/checkpoint/random_checkpoint.h"
#include "model/llama.h"
#include "server/names.h"
#include "server/parse_value.h"

namespace espalier::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPageSize = 16;
constexpr int kPrefillRows = 2048;

struct Options {
  std::string model;
  uint64_t random_weights = 0;
  std::string device = "cuda";
  std::string attention = "default";
  std::string traces;
  std::string id;
  std::vector<int> sizes = {32, 64};
  int max_steps = 0;
  bool no_graphs = false;
  bool json = false;
};

// A token tree in depth-first order. Token 0 is the one that was drawn already.
struct TokenTree {
  std::vector<int32_t> subtree_end;
  std::vector<int> depth;
  std::vector<int> chain;  // places of the tokens that are accepted first, second, ...
};

struct Run {
  std::string id;
  int prompt_tokens = 0;
  std::string accept;  // a digit a step; the first belongs to the prefill
};

template <class T>
T OrThrow(absl::StatusOr<T> value) {
  if (!value.ok()) throw CLI::ValidationError(std::string(value.status().message()));
  return *std::move(value);
}

nlohmann::json ReadJson(const std::string& path) {
  std::ifstream file(path);
  nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) throw CLI::ValidationError("--traces", path + " is no JSON file");
  return json;
}

TokenTree ReadTree(const nlohmann::json& traces, int size) {
  for (const nlohmann::json& topology : traces.at("topologies")) {
    if (topology.at("label").get<int>() != size) continue;
    const auto parent = topology.at("parent").get<std::vector<int>>();
    const auto rank = topology.at("rank").get<std::vector<int>>();
    const auto depth = topology.at("depth").get<std::vector<int>>();
    TokenTree tree;
    const auto visit = [&](const auto& self, int token, bool on_chain) -> void {
      const size_t place = tree.depth.size();
      tree.depth.push_back(depth[token]);
      tree.subtree_end.push_back(0);
      if (on_chain) tree.chain.push_back(static_cast<int>(place));
      for (size_t child = token + 1; child < parent.size(); ++child) {
        if (parent[child] == token) {
          self(self, static_cast<int>(child), on_chain && rank[child] == 0);
        }
      }
      tree.subtree_end[place] = static_cast<int32_t>(tree.depth.size());
    };
    visit(visit, 0, true);
    return tree;
  }
  throw CLI::ValidationError("--size", "no token tree of " + std::to_string(size));
}

Run ReadRun(const nlohmann::json& traces, const std::string& id) {
  for (const nlohmann::json& run : traces.at("runs")) {
    if (!id.empty() && run.at("id").get<std::string>() != id) continue;
    return {
        .id = run.at("id"), .prompt_tokens = run.at("prompt_tokens"), .accept = run.at("accept")};
  }
  throw CLI::ValidationError("--id", "no run " + id);
}

// The parts of an engine without its scheduler: one path, and one draft tree below it.
class Verifier {
 public:
  Verifier(const Options& o, int max_path, int max_tree) : draft_page_(Pages(max_path)) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
        o.random_weights == 0 ? Checkpoint::Open(o.model)
                              : absl::StatusOr<std::unique_ptr<Checkpoint>>(
                                    RandomCheckpoint::Open(o.model, o.random_weights));
    checkpoint_ = OrThrow(std::move(checkpoint));
    tokenizer_ = OrThrow(checkpoint_->LoadTokenizer());
    EngineConfig config;
    config.device = OrThrow(ParseName<Device>(o.device));
    ctx_ = OrThrow(OpenContext(config, checkpoint_->config(), DType::kBF16));
    model_ = OrThrow(Llama::Create(*ctx_, checkpoint_.get(), kPrefillRows, max_tree, nullptr));
    const ModelConfig& model = model_->config();
    kv_ = OrThrow(KvCache::Create(*ctx_,
                                  {.num_layers = model.num_layers,
                                   .num_kv_heads = model.num_kv_heads,
                                   .head_dim = model.head_dim,
                                   .page_size = kPageSize,
                                   .dtype = KvDType(*ctx_, config.kv_dtype)},
                                  draft_page_ + Pages(max_tree)));
    executor_ =
        OrThrow(Executor::Create(ctx_.get(), model_.get(), kv_.get(),
                                 {.attention = OrThrow(ParseName<AttentionVariant>(o.attention)),
                                  .cuda_graphs = !o.no_graphs,
                                  .max_rows = kPrefillRows,
                                  .max_logits_rows = max_tree}));
    slots_ = DeviceBuffer(*ctx_, 2 * max_tree * sizeof(int64_t));
    staging_ = StagingBuffer(*ctx_, 2 * max_tree * sizeof(int64_t));
    ESPALIER_CHECK(!slots_.empty() && !staging_.empty());
    TreeNode node;
    node.tokens = {0};
    node.generation.emplace();
    node.generation->sampling.temperature = 0;
    node.max_tokens = 1;
    DecodeTreeInit init;
    init.nodes.push_back(std::move(node));
    init.tokenizer = tokenizer_.get();
    drawer_ = std::make_unique<DecodeTree>(std::move(init));
    branch_ = drawer_->AddBranch(drawer_->AddRoot(), 0);
  }

  void Prefill(int tokens) {
    for (int begin = 0; begin < tokens; begin += kPrefillRows) {
      const int end = std::min(tokens, begin + kPrefillRows);
      batch_.Clear();
      batch_.shape.page_size = kPageSize;
      const int path = AddPath(end);
      for (int t = begin; t < end; ++t) AddRow(path, t, t, t);
      batch_.logits_rows = {end - begin - 1};
      RunStep();
    }
  }

  void Verify(int path_tokens, const TokenTree& tree) {
    batch_.Clear();
    batch_.shape.page_size = kPageSize;
    const int size = static_cast<int>(tree.depth.size());
    const int path = AddPath(path_tokens);
    std::vector<int32_t> pages(Pages(size));
    std::iota(pages.begin(), pages.end(), draft_page_);
    const int draft = batch_.shape.AddDraftNode(path, 0, pages, tree.subtree_end);
    for (int t = 0; t < size; ++t) {
      AddRow(draft, t, path_tokens + tree.depth[t], int64_t{draft_page_} * kPageSize + t);
      batch_.logits_rows.push_back(t);
      batch_.tasks.push_back(
          {.logits_row = t, .tree = drawer_.get(), .segment = branch_, .score_token = {}});
    }
    RunStep();
  }

  // The first `count` tokens of the tree's chain become the path's next.
  void Accept(int path_tokens, const TokenTree& tree, int count) {
    auto* slots = staging_.As<int64_t>();
    for (int i = 0; i < count; ++i) {
      slots[i] = int64_t{draft_page_} * kPageSize + tree.chain[i];
      slots[count + i] = path_tokens + i;
    }
    CopyToDevice(*ctx_, slots_.As<void>(), slots, 2 * count * sizeof(int64_t));
    for (int layer = 0; layer < model_->config().num_layers; ++layer) {
      kernels::CopySlots(*ctx_, {.kv = kv_->layer(layer),
                                 .from = slots_.As<int64_t>(),
                                 .to = slots_.As<int64_t>() + count,
                                 .count = count});
    }
    Synchronize(*ctx_);
  }

  const Context& ctx() const { return *ctx_; }
  double weight_bytes() const { return static_cast<double>(model_->weight_bytes()); }
  double kv_bytes_per_token() const {
    return static_cast<double>(kv_->layout().page_bytes()) / kPageSize;
  }

 private:
  static int Pages(int tokens) { return (tokens + kPageSize - 1) / kPageSize; }

  int AddPath(int tokens) {
    std::vector<int32_t> pages(Pages(tokens));
    std::iota(pages.begin(), pages.end(), 0);
    return batch_.shape.AddNode(-1, tokens, 0, pages);
  }
  void AddRow(int node, int offset, int position, int64_t slot) {
    batch_.shape.AddQuery(node, offset);
    batch_.token_ids.push_back(
        static_cast<int32_t>(position * 7919LL % model_->config().vocab_size));
    batch_.positions.push_back(position);
    batch_.kv_slots.push_back(slot);
  }
  void RunStep() {
    ++batch_.step;
    OrThrow(executor_->Run(batch_));
  }

  const int draft_page_;
  std::unique_ptr<Checkpoint> checkpoint_;  // on the CPU the model reads it in place
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Llama> model_;
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<Executor> executor_;
  DeviceBuffer slots_;
  StagingBuffer staging_;
  std::unique_ptr<DecodeTree> drawer_;  // greedy draws
  int branch_ = 0;
  StepBatch batch_;
};

nlohmann::json Replay(const Options& o, const Run& run, const TokenTree& tree, double read_gbps) {
  const int steps = static_cast<int>(run.accept.size()) - 1;
  const int count = o.max_steps > 0 ? std::min(o.max_steps, steps) : steps;
  const int longest = static_cast<int>(tree.chain.size());
  const int size = static_cast<int>(tree.depth.size());
  Verifier verifier(o, run.prompt_tokens + longest * count, size);
  verifier.Prefill(run.prompt_tokens);
  constexpr int kWarmUp = 3;  // captures the graphs
  for (int i = 0; i < kWarmUp; ++i) verifier.Verify(run.prompt_tokens, tree);

  int path = run.prompt_tokens;
  double seconds = 0;
  double roofline_bytes = 0;
  std::vector<double> step_ms;
  for (int step = 1; step <= count; ++step) {
    const auto start = Clock::now();
    const int accepted = std::clamp(run.accept[step] - '0', 1, longest);
    verifier.Verify(path, tree);
    verifier.Accept(path, tree, accepted);
    step_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    seconds += step_ms.back() / 1000;
    roofline_bytes += verifier.weight_bytes() + (path + size) * verifier.kv_bytes_per_token();
    path += accepted;
  }
  std::ranges::sort(step_ms);
  const double roofline_s = read_gbps > 0 ? roofline_bytes / read_gbps * 1e-9 : 0;
  return {{"run", run.id},
          {"attention", o.attention},
          {"tokens_in_tree", size},
          {"steps", count},
          {"accepted_tokens", path - run.prompt_tokens},
          {"seconds", seconds},
          {"roofline_s", roofline_s},
          {"ratio", roofline_s > 0 ? seconds / roofline_s : 0},
          {"median_step_ms", step_ms[step_ms.size() / 2]},
          {"tokens_per_s", (path - run.prompt_tokens) / seconds}};
}

void RunSpeculative(const Options& o) {
  const nlohmann::json traces = ReadJson(o.traces);
  const Run run = ReadRun(traces, o.id);
  double read_gbps = 0;
  if (o.device == "cuda") {
    std::string error;
    const std::unique_ptr<Context> ctx = Context::Cuda(0, DType::kBF16, 1, &error);
    if (ctx == nullptr) throw CLI::ValidationError(error);
    read_gbps = cuda::MeasureReadGbps(*ctx);
  }
  nlohmann::json lines;
  for (const int size : o.sizes) {
    lines.push_back(Replay(o, run, ReadTree(traces, size), read_gbps));
  }
  if (o.json) {
    std::printf("%s\n",
                nlohmann::json({{"read_gbps", read_gbps}, {"lines", lines}}).dump(2).c_str());
    return;
  }
  std::printf("%-18s %5s %6s %8s %9s %9s %6s %8s %9s\n", "run", "tree", "steps", "accepted", "s",
              "roofline", "ratio", "step ms", "tokens/s");
  for (const nlohmann::json& line : lines) {
    std::printf("%-18s %5d %6d %8d %9.3f %9.3f %6.3f %8.3f %9.1f\n",
                line.at("run").get<std::string>().c_str(), line.at("tokens_in_tree").get<int>(),
                line.at("steps").get<int>(), line.at("accepted_tokens").get<int>(),
                line.at("seconds").get<double>(), line.at("roofline_s").get<double>(),
                line.at("ratio").get<double>(), line.at("median_step_ms").get<double>(),
                line.at("tokens_per_s").get<double>());
  }
}

}  // namespace

void AddSpeculativeCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "speculative", "Verification of recorded token trees, acceptance forced (no drafting)");
  auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "GGUF file, folder or config.json")->required();
  command->add_option("--random-weights", options->random_weights, "seed of made-up weights");
  command->add_option("--device", options->device, "cpu or cuda");
  command->add_option("--attention", options->attention,
                      "default, sequence, node, node-chunk or flatten");
  command->add_option("--traces", options->traces, "file of token trees and runs")->required();
  command->add_option("--id", options->id, "run; the file's first if not given");
  command->add_option("--size", options->sizes, "label of a token tree; may be repeated");
  command->add_option("--max-steps", options->max_steps, "0: whole")->check(CLI::NonNegativeNumber);
  command->add_flag("--no-graphs", options->no_graphs, "launch every op by itself");
  command->add_flag("--json", options->json, "print JSON");
  command->callback([options] { RunSpeculative(*options); });
}

}  // namespace espalier::bench
