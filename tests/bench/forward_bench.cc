#include "tests/bench/forward_bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "model/llama.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPageSize = 16;

struct Options {
  std::string model;
  std::string precision = "auto";
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int prompt = 512;
  int steps = 32;
  std::vector<int> branches = {1, 4, 16, 64};
  bool json = false;
};

struct Timing {
  double median_ms = 0;
  double best_ms = 0;
};

Timing Summarise(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  return {.median_ms = ms[ms.size() / 2], .best_ms = ms.front()};
}

double PeakResidentMib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// A prompt of one node and branches of one node each below it. Tokens are arbitrary: their values
// do not change the work.
class TreeRunner {
 public:
  TreeRunner(const Context& ctx, Llama& model, const Options& options)
      : ctx_(ctx), model_(model), prompt_tokens_(options.prompt) {
    const ModelConfig& config = model.config();
    const int most = *std::max_element(options.branches.begin(), options.branches.end());
    prompt_pages_ = Pages(options.prompt);
    branch_pages_ = Pages(options.steps);
    layout_ = {.num_layers = config.num_layers,
               .num_kv_heads = config.num_kv_heads,
               .head_dim = config.head_dim,
               .page_size = kPageSize,
               .dtype = ctx.cpu_precision() == CpuPrecision::kF32 ? DType::kF32 : DType::kF16};
    num_pages_ = prompt_pages_ + most * branch_pages_;
    kv_.resize(layout_.page_bytes() * num_pages_);
    const size_t side_bytes = BytesOf(layout_.dtype, layout_.page_elements()) * num_pages_;
    for (int layer = 0; layer < config.num_layers; ++layer) {
      std::byte* k = kv_.data() + 2 * layer * side_bytes;
      views_.push_back({.k = k,
                        .v = k + side_bytes,
                        .num_pages = num_pages_,
                        .num_kv_heads = config.num_kv_heads,
                        .head_dim = config.head_dim,
                        .page_size = kPageSize,
                        .dtype = layout_.dtype});
    }
  }

  size_t kv_bytes() const { return kv_.size(); }

  // Milliseconds for the whole prompt in one step.
  double Prefill() {
    Begin();
    const int node = AddNode(-1, 0, prompt_pages_, prompt_tokens_);
    for (int t = 0; t < prompt_tokens_; ++t) AddRow(node, t, t, t);
    logits_rows_ = {prompt_tokens_ - 1};
    return Forward();
  }

  // Milliseconds for one more token of each branch; `step` counts from 0.
  double Decode(int branches, int step) {
    Begin();
    const int root = AddNode(-1, 0, prompt_pages_, prompt_tokens_);
    for (int b = 0; b < branches; ++b) {
      const int first_page = prompt_pages_ + b * branch_pages_;
      const int node = AddNode(root, first_page, Pages(step + 1), step + 1);
      AddRow(node, step, prompt_tokens_ + step, int64_t{first_page} * kPageSize + step);
      logits_rows_.push_back(b);
    }
    return Forward();
  }

 private:
  static int Pages(int tokens) { return (tokens + kPageSize - 1) / kPageSize; }

  void Begin() {
    shape_.Clear();
    shape_.page_size = kPageSize;
    token_ids_.clear();
    positions_.clear();
    slots_.clear();
    logits_rows_.clear();
  }

  int AddNode(int parent, int first_page, int num_pages, int tokens) {
    std::vector<int32_t> pages(num_pages);
    for (int i = 0; i < num_pages; ++i) pages[i] = first_page + i;
    return shape_.AddNode(parent, tokens, 0, pages);
  }

  void AddRow(int node, int offset, int position, int64_t slot) {
    shape_.AddQuery(node, offset);
    token_ids_.push_back(1000 + (node * 31 + position) % 1000);
    positions_.push_back(position);
    slots_.push_back(slot);
  }

  // Times the plan and the forward.
  double Forward() {
    const ModelConfig& config = model_.config();
    const auto start = Clock::now();
    const TreePlan& plan =
        planner_.Plan(shape_, {.group_size = config.num_heads / config.num_kv_heads,
                               .num_kv_heads = config.num_kv_heads,
                               .num_workers = ctx_.pool().num_threads()});
    model_.Forward(ctx_,
                   {.token_ids = token_ids_,
                    .positions = positions_,
                    .kv_slots = slots_,
                    .logits_rows = logits_rows_,
                    .plan = &plan},
                   views_);
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  }

  const Context& ctx_;
  Llama& model_;
  const int prompt_tokens_;
  int prompt_pages_ = 0;
  int branch_pages_ = 0;
  int num_pages_ = 0;
  KvLayout layout_;
  std::vector<std::byte> kv_;
  std::vector<KvLayerView> views_;
  TreeShape shape_;
  TreePlanner planner_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int64_t> slots_;
  std::vector<int32_t> logits_rows_;
};

void Print(const nlohmann::ordered_json& report) {
  std::printf("%s, %d threads, %s, precision %s\n", report["model"].get<std::string>().c_str(),
              report["threads"].get<int>(), report["isa"].get<std::string>().c_str(),
              report["precision"].get<std::string>().c_str());
  std::printf("%-10s %6s %14s %12s %14s %12s\n", "work", "rows", "median ms", "tokens/s", "best ms",
              "tokens/s");
  for (const auto& row : report["results"]) {
    std::printf("%-10s %6d %14.2f %12.1f %14.2f %12.1f\n", row["work"].get<std::string>().c_str(),
                row["rows"].get<int>(), row["median_ms"].get<double>(),
                row["tokens_per_s"].get<double>(), row["best_ms"].get<double>(),
                row["best_tokens_per_s"].get<double>());
  }
  std::printf("peak resident %.0f MiB, of which KV %.0f MiB\n",
              report["peak_resident_mib"].get<double>(), report["kv_mib"].get<double>());
}

void Run(const Options& options) {
  auto checkpoint = Checkpoint::Open(options.model);
  if (!checkpoint.ok()) throw CLI::ValidationError(std::string(checkpoint.status().message()));
  const int most_rows =
      std::max(options.prompt, *std::max_element(options.branches.begin(), options.branches.end()));
  auto model =
      Llama::Create(Context::Cpu(1, CpuPrecision::kF32), checkpoint->get(), most_rows, most_rows);
  if (!model.ok()) throw CLI::ValidationError(std::string(model.status().message()));
  const Context ctx = Context::Cpu(
      options.threads, options.precision == "f32" ? CpuPrecision::kF32 : CpuPrecision::kAuto);
  TreeRunner runner(ctx, **model, options);

  nlohmann::ordered_json results;
  const auto record = [&](const char* work, int rows, std::vector<double> ms) {
    const Timing timing = Summarise(std::move(ms));
    results.push_back({{"work", work},
                       {"rows", rows},
                       {"median_ms", timing.median_ms},
                       {"tokens_per_s", 1e3 * rows / timing.median_ms},
                       {"best_ms", timing.best_ms},
                       {"best_tokens_per_s", 1e3 * rows / timing.best_ms}});
  };
  std::vector<double> ms;
  for (int i = 0; i < 5; ++i) ms.push_back(runner.Prefill());
  record("prefill", options.prompt, ms);
  for (int branches : options.branches) {
    ms.clear();
    for (int step = 0; step < options.steps; ++step) ms.push_back(runner.Decode(branches, step));
    record("decode", branches, ms);
  }

  const nlohmann::ordered_json report = {
      {"model", (*model)->config().name},
      {"threads", options.threads},
      {"isa", CpuIsaName(ctx.cpu_isa())},
      {"precision", options.precision},
      {"prompt", options.prompt},
      {"steps", options.steps},
      {"results", results},
      {"kv_mib", static_cast<double>(runner.kv_bytes()) / (1 << 20)},
      {"peak_resident_mib", PeakResidentMib()}};
  if (options.json) {
    std::printf("%s\n", report.dump(2).c_str());
  } else {
    Print(report);
  }
}

}  // namespace

void AddForwardCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "forward", "The model alone: prefill of a prompt, then decode of branches that share it");
  auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "GGUF file or Hugging Face folder")->required();
  command->add_option("--precision", options->precision, "auto or f32")
      ->check(CLI::IsMember({"auto", "f32"}));
  command->add_option("--threads", options->threads)->check(CLI::PositiveNumber);
  command->add_option("--prompt", options->prompt, "Tokens")->check(CLI::PositiveNumber);
  command->add_option("--steps", options->steps, "Tokens a branch")->check(CLI::PositiveNumber);
  command->add_option("--branches", options->branches, "Decode batches, for example 1,16")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "Machine-readable output");
  command->callback([options] { Run(*options); });
}

}  // namespace espalier::bench
