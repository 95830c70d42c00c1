#include "tests/bench/attention_bench.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/bench/attention_measure.h"
#include "tests/bench/parse_pair.h"

namespace espalier::bench {
namespace {

struct NamedVariant {
  const char* name;
  AttentionVariant variant;
};
constexpr NamedVariant kVariants[] = {{"sequence", AttentionVariant::kSequence},
                                      {"node", AttentionVariant::kNode},
                                      {"node-chunk", AttentionVariant::kNodeChunk},
                                      {"flatten", AttentionVariant::kFlatten},
                                      {"default", AttentionVariant::kDefault}};
const std::map<std::string, DType> kDTypes = {
    {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}};

struct Options {
  AttentionCaseOptions tree;
  std::string device = "cpu";
  std::string variant = "all";
  std::string heads = "32/8";
  std::string dtype;  // empty: the device's usual one
  std::string kv_dtype = "auto";
  int head_dim = 128;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int block_tokens = 0;
  int tile_rows = 0;
  int token_cost = 0;
  std::string kernel = "best";
  int repeats = 0;  // 0: the device's usual number
  bool json = false;
};

const char* NameOf(AttentionVariant variant) {
  for (const NamedVariant& named : kVariants) {
    if (named.variant == variant) return named.name;
  }
  return "";
}

AttentionProblem MakeProblem(const Options& options) {
  const bool cuda = options.device == "cuda";
  AttentionProblem problem;
  const auto [heads, kv_heads] = ParsePair(options.heads);
  problem.num_heads = heads.front();
  problem.num_kv_heads = kv_heads.front();
  if (problem.num_heads % problem.num_kv_heads != 0) {
    throw CLI::ValidationError("--heads: query heads must be a multiple of kv heads");
  }
  problem.head_dim = options.head_dim;
  problem.dtype = kDTypes.at(!options.dtype.empty() ? options.dtype : cuda ? "bf16" : "f16");
  if (cuda &&
      (problem.dtype == DType::kF32 || (options.head_dim != 64 && options.head_dim != 128))) {
    throw CLI::ValidationError("--device cuda: bf16 or f16, --head-dim 64 or 128");
  }
  problem.kv_dtype = options.kv_dtype == "fp8" ? DType::kE4M3 : problem.dtype;
  problem.threads = options.threads;
  problem.block_tokens = options.block_tokens;
  problem.tile_rows = options.tile_rows;
  problem.token_cost = options.token_cost;
  if (options.kernel == "portable") problem.kernel = AttentionKernel::kPortable;
  problem.repeats = options.repeats > 0 ? options.repeats : cuda ? 50 : 15;
  for (const NamedVariant& named : kVariants) {
    if (options.variant == "all" || options.variant == named.name) {
      problem.variants.push_back(named.variant);
    }
  }
  problem.tree = MakeAttentionCase(options.tree);
  return problem;
}

// Bytes that any kernel must move: KV that is seen, Q, and the output.
double LeastBytes(const AttentionProblem& problem, const PlanStats& stats) {
  const double rows = static_cast<double>(problem.tree.shape.num_queries()) * problem.num_heads;
  return static_cast<double>(stats.unique_kv_tokens * problem.TokenBytes()) +
         2 * rows * static_cast<double>(BytesOf(problem.dtype, problem.head_dim));
}

nlohmann::ordered_json RowOf(const AttentionProblem& problem, const AttentionReport& report,
                             const AttentionTimes& times) {
  const PlanStats& stats = times.stats;
  const double unique_bytes = static_cast<double>(stats.unique_kv_tokens * problem.TokenBytes());
  const double flops =
      4.0 * static_cast<double>(stats.logical_kv_tokens) * problem.num_heads * problem.head_dim;
  nlohmann::ordered_json row = {
      {"variant", NameOf(times.variant)},
      {"us_per_layer", times.us},
      {"spread_us", times.spread_us},
      {"unique_kv_mb", unique_bytes / 1e6},
      {"read_kv_mb", static_cast<double>(stats.read_kv_tokens * problem.TokenBytes()) / 1e6},
      {"unique_gb_per_s", unique_bytes / times.us / 1e3},
      {"tflop_per_s", flops / times.us / 1e6},
      {"plan_us", times.planning.fresh_us},
      {"plan_grown_us", times.planning.grown_us},
      {"partitions", times.partitions},
      {"partial_bytes", times.partial_bytes},
      {"relative_error", times.error}};
  if (problem.kv_dtype == DType::kE4M3) row["relative_error_of_kv"] = times.kv_error;
  if (report.read_bytes_per_s > 0) {
    const double roofline_us = 1e6 * std::max(LeastBytes(problem, stats) / report.read_bytes_per_s,
                                              flops / report.flops_per_s);
    row["percent_of_bandwidth"] = 1e8 * unique_bytes / times.us / report.read_bytes_per_s;
    row["roofline_us"] = roofline_us;
    row["over_roofline"] = times.us / roofline_us;
  }
  if (report.variants.front().variant == AttentionVariant::kSequence) {
    row["speedup_over_sequence"] = report.variants.front().us / times.us;
  }
  return row;
}

void PrintTable(const nlohmann::ordered_json& report) {
  std::printf("%s; %s, %d queries; heads %s x %d, %s, KV %s, page %d\n",
              report["device"].get<std::string>().c_str(),
              report["tree"].get<std::string>().c_str(), report["queries"].get<int>(),
              report["heads"].get<std::string>().c_str(), report["head_dim"].get<int>(),
              report["dtype"].get<std::string>().c_str(),
              report["kv_dtype"].get<std::string>().c_str(), report["page_size"].get<int>());
  if (report.contains("read_gb_per_s")) {
    std::printf("measured: read %.0f GB/s, matrix product %.0f TFLOP/s\n",
                report["read_gb_per_s"].get<double>(), report["matmul_tflop_per_s"].get<double>());
  }
  std::printf("%-11s %10s %8s %9s %8s %8s %6s %8s %9s %6s %8s %8s %8s %6s %10s %8s\n", "variant",
              "us/layer", "spread", "unique MB", "read MB", "GB/s", "% bw", "TFLOP/s", "roofline",
              "ratio", "vs seq", "plan us", "grown us", "parts", "partial MB", "error");
  for (const auto& row : report["rows"]) {
    const auto number = [&](const char* key) { return row.value(key, std::nan("")); };
    std::printf(
        "%-11s %10.1f %8.1f %9.2f %8.2f %8.1f %6.1f %8.2f %9.1f %6.2f %7.2fx %8.1f %8.1f %6d "
        "%10.3f %8.1e\n",
        row["variant"].get<std::string>().c_str(), number("us_per_layer"), number("spread_us"),
        number("unique_kv_mb"), number("read_kv_mb"), number("unique_gb_per_s"),
        number("percent_of_bandwidth"), number("tflop_per_s"), number("roofline_us"),
        number("over_roofline"), number("speedup_over_sequence"), number("plan_us"),
        number("plan_grown_us"), row["partitions"].get<int>(), number("partial_bytes") / 1e6,
        number("relative_error"));
  }
  for (const auto& row : report["rows"]) {
    if (!row.contains("relative_error_of_kv")) continue;
    std::printf("%s: error against KV as it was before E4M3 %.1e\n",
                row["variant"].get<std::string>().c_str(),
                row["relative_error_of_kv"].get<double>());
  }
}

void Run(const Options& options) {
  const AttentionProblem problem = MakeProblem(options);
  const AttentionReport measured =
      options.device == "cuda" ? MeasureOnCuda(problem) : MeasureOnCpu(problem);
  nlohmann::ordered_json report = {{"device", measured.device},
                                   {"tree", problem.tree.name},
                                   {"queries", problem.tree.shape.num_queries()},
                                   {"heads", options.heads},
                                   {"head_dim", problem.head_dim},
                                   {"dtype", Info(problem.dtype).name},
                                   {"kv_dtype", Info(problem.kv_dtype).name},
                                   {"page_size", problem.tree.shape.page_size}};
  if (measured.read_bytes_per_s > 0) {
    report["read_gb_per_s"] = measured.read_bytes_per_s / 1e9;
    report["matmul_tflop_per_s"] = measured.flops_per_s / 1e12;
  }
  for (const AttentionTimes& times : measured.variants) {
    report["rows"].push_back(RowOf(problem, measured, times));
  }
  if (options.json) {
    std::printf("%s\n", report.dump(2).c_str());
  } else {
    PrintTable(report);
  }
}

}  // namespace

void AddAttentionCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  const char* folder = std::getenv("ESPALIER_WORKLOADS");
  options->tree.workload_folder = folder != nullptr ? folder : "tests/golden/workloads";
  CLI::App* command = app.add_subcommand(
      "attention", "Tree attention of one layer, cold KV; error against a plain reference");
  command->add_option("--device", options->device)->check(CLI::IsMember({"cpu", "cuda"}));
  command->add_option("--tree", options->tree.tree,
                      "Nodes a level / tokens a node, for example \"1,10,50 / 4000,300,300\"");
  command->add_option("--workload", options->tree.workload,
                      "A step of a recorded workload, for example few_shot/b20/p4000@200");
  command->add_option("--workloads", options->tree.workload_folder,
                      "Folder of the recorded workloads (or ESPALIER_WORKLOADS)");
  command->add_option("--spec", options->tree.draft_tokens, "A draft tree of that many tokens")
      ->check(CLI::PositiveNumber);
  command->add_option("--prompt", options->tree.prompt_tokens, "Tokens above the draft tree")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--tree-file", options->tree.tree_file,
                   "JSON {\"parent\": [...], \"tokens\": [...]}, -1 for roots; leaves decode")
      ->check(CLI::ExistingFile);
  std::vector<std::string> variants = {"all"};
  for (const NamedVariant& named : kVariants) variants.push_back(named.name);
  command->add_option("--variant", options->variant, "Plan variant, or all")
      ->check(CLI::IsMember(variants));
  command->add_option("--heads", options->heads, "Query heads / kv heads");
  command->add_option("--head-dim", options->head_dim)->check(CLI::Range(8, 256));
  command->add_option("--dtype", options->dtype, "KV type; on CUDA of everything (default bf16)")
      ->check(CLI::IsMember(kDTypes));
  command->add_option("--kv-dtype", options->kv_dtype, "auto: as --dtype; fp8: E4M3 with scales")
      ->check(CLI::IsMember({"auto", "fp8"}));
  command->add_option("--page", options->tree.page_size, "Tokens a page")
      ->check(CLI::IsMember({16, 32, 64}));
  command->add_option("--threads", options->threads)->check(CLI::PositiveNumber);
  command->add_option("--run", options->tree.run_tokens, "Queries at the end of each leaf: prefill")
      ->check(CLI::PositiveNumber);
  command->add_option("--block", options->block_tokens, "Tokens a block of node-chunk and flatten")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--tile-rows", options->tile_rows, "Most packed rows of a partition")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--token-cost", options->token_cost,
                   "Packed rows that a token weighs in the plan")
      ->check(CLI::PositiveNumber);
  command->add_option("--kernel", options->kernel, "On CUDA: best, or the portable one")
      ->check(CLI::IsMember({"best", "portable"}));
  command->add_option("--repeats", options->repeats)->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "Machine-readable output");
  command->callback([options] { Run(*options); });
}

}  // namespace espalier::bench
