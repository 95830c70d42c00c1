#include "tests/bench/attention_bench.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "kernels/cpu/tree_attention.h"

namespace espalier::bench {
namespace {

using Clock = std::chrono::steady_clock;

const std::map<std::string, AttentionVariant> kVariants = {
    {"sequence", AttentionVariant::kSequence},
    {"node", AttentionVariant::kNode},
    {"node-chunk", AttentionVariant::kNodeChunk},
    {"flatten", AttentionVariant::kFlatten},
    {"default", AttentionVariant::kDefault}};
const std::vector<std::string> kVariantOrder = {"sequence", "node", "node-chunk", "flatten",
                                                "default"};
const std::map<std::string, DType> kDTypes = {
    {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}};

struct Options {
  std::string tree = "1,50 / 4000,200";
  std::string variant = "all";
  std::string heads = "32/8";
  std::string dtype = "f16";
  int run_tokens = 1;
  int head_dim = 128;
  int page_size = 16;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  int block_tokens = 0;
  int repeats = 15;
  bool json = false;
};

std::vector<int> ParseInts(const std::string& text) {
  std::vector<int> numbers;
  for (const std::string& part : CLI::detail::split(text, ',')) {
    int number = 0;
    if (!CLI::detail::lexical_cast(CLI::detail::trim_copy(part), number) || number < 1) {
      throw CLI::ValidationError("'" + part + "' is not a positive number");
    }
    numbers.push_back(number);
  }
  return numbers;
}

std::pair<std::vector<int>, std::vector<int>> ParsePair(const std::string& text) {
  const std::vector<std::string> sides = CLI::detail::split(text, '/');
  if (sides.size() != 2) throw CLI::ValidationError("'" + text + "' is not of the form A / B");
  return {ParseInts(sides[0]), ParseInts(sides[1])};
}

struct Problem {
  TreeShape shape;
  int num_pages = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kF16;
  // Enough layers that no cache holds them all: a step never finds a layer's KV warm.
  std::vector<std::vector<std::byte>> k;
  std::vector<std::vector<std::byte>> v;
  std::vector<float> q;
  std::vector<float> out;

  int64_t TokenBytes() const { return 2 * num_kv_heads * BytesOf(dtype, head_dim); }
  KvLayerView Layer(int layer) {
    return {.k = k[layer].data(),
            .v = v[layer].data(),
            .num_pages = num_pages,
            .num_kv_heads = num_kv_heads,
            .head_dim = head_dim,
            .page_size = shape.page_size,
            .dtype = dtype};
  }
};

// Levels of evenly spread nodes; the last `run_tokens` of each leaf are queries. Pages are in
// random order, as in a pool that has been in use for a while.
void BuildShape(const Options& options, std::mt19937& rng, Problem* problem) {
  const auto [widths, lengths] = ParsePair(options.tree);
  if (widths.size() != lengths.size()) {
    throw CLI::ValidationError("--tree needs as many node counts as lengths");
  }
  int64_t num_pages = 0;
  for (size_t i = 0; i < widths.size(); ++i) {
    num_pages += int64_t{widths[i]} * ((lengths[i] + options.page_size - 1) / options.page_size);
  }
  std::vector<int32_t> ids(num_pages);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), rng);
  problem->num_pages = static_cast<int>(num_pages);
  problem->shape.page_size = options.page_size;
  size_t next = 0;
  int above = 0;
  for (size_t level = 0; level < widths.size(); ++level) {
    const int first = problem->shape.num_nodes();
    const size_t pages = (lengths[level] + options.page_size - 1) / options.page_size;
    for (int i = 0; i < widths[level]; ++i) {
      const int parent =
          level == 0 ? -1
                     : above + static_cast<int>(int64_t{i} * widths[level - 1] / widths[level]);
      problem->shape.AddNode(parent, lengths[level], 0, {ids.data() + next, pages});
      next += pages;
    }
    above = first;
  }
  for (int x = above; x < problem->shape.num_nodes(); ++x) {
    const int tokens = problem->shape.num_tokens[x];
    for (int t = std::max(0, tokens - options.run_tokens); t < tokens; ++t) {
      problem->shape.AddQuery(x, t);
    }
  }
}

void FillKv(std::mt19937& rng, Problem* problem) {
  constexpr int64_t kColdBytes = int64_t{192} << 20;
  constexpr int kMostLayers = 64;
  const int64_t elements = int64_t{problem->num_pages} * problem->shape.page_size *
                           problem->num_kv_heads * problem->head_dim;
  const int64_t bytes = static_cast<int64_t>(BytesOf(problem->dtype, elements));
  const int layers =
      static_cast<int>(std::clamp<int64_t>(kColdBytes / (2 * bytes) + 1, 2, kMostLayers));
  std::normal_distribution<float> normal;
  std::vector<std::byte> layer(bytes);
  for (int64_t i = 0; i < elements; ++i) {
    const float value = normal(rng);
    if (problem->dtype == DType::kF32) {
      std::memcpy(layer.data() + i * 4, &value, 4);
    } else if (problem->dtype == DType::kF16) {
      const _Float16 half = static_cast<_Float16>(value);
      std::memcpy(layer.data() + i * 2, &half, 2);
    } else {
      const uint16_t half = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
      std::memcpy(layer.data() + i * 2, &half, 2);
    }
  }
  problem->k.assign(layers, layer);
  std::rotate(layer.begin(), layer.begin() + 4 * (bytes / 12), layer.end());
  problem->v.assign(layers, layer);
  problem->q.resize(size_t(problem->shape.num_queries()) * problem->num_heads * problem->head_dim);
  for (float& x : problem->q) x = normal(rng);
  problem->out.resize(problem->q.size());
}

double Stored(const std::vector<std::byte>& bytes, DType dtype, int64_t element) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, bytes.data() + element * 4, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, bytes.data() + element * 2, 2);
  if (dtype == DType::kBF16) return std::bit_cast<float>(uint32_t{bits} << 16);
  return static_cast<float>(std::bit_cast<_Float16>(bits));
}

// ||out - reference|| / ||reference|| over a few queries, all heads, in double precision.
double RelativeError(Problem& problem, float scale) {
  constexpr int kSampled = 4;
  const TreeShape& shape = problem.shape;
  const KvLayerView view = problem.Layer(0);
  const int head_dim = problem.head_dim;
  const int group = problem.num_heads / problem.num_kv_heads;
  double error = 0;
  double norm = 0;
  for (int sample = 0; sample < kSampled; ++sample) {
    const int query = static_cast<int>(int64_t{shape.num_queries() - 1} * sample / (kSampled - 1));
    std::vector<int64_t> slots;
    int count = shape.query_offset[query] + 1;
    for (int x = shape.query_node[query]; x >= 0; x = shape.parent[x]) {
      for (int t = 0; t < count; ++t) {
        const int32_t page = shape.page_ids[shape.page_begin[x] + t / shape.page_size];
        slots.push_back(int64_t{page} * shape.page_size + t % shape.page_size);
      }
      if (shape.parent[x] >= 0) count = shape.num_tokens[shape.parent[x]];
    }
    for (int head = 0; head < problem.num_heads; ++head) {
      const int64_t row = (int64_t{query} * problem.num_heads + head) * head_dim;
      std::vector<double> weights;
      double highest = -1e300;
      for (const int64_t slot : slots) {
        double score = 0;
        for (int d = 0; d < head_dim; ++d) {
          score += problem.q[row + d] *
                   Stored(problem.k[0], problem.dtype, view.Offset(slot, head / group) + d);
        }
        weights.push_back(score * scale);
        highest = std::max(highest, weights.back());
      }
      double sum = 0;
      for (double& weight : weights) sum += weight = std::exp(weight - highest);
      for (int d = 0; d < head_dim; ++d) {
        double want = 0;
        for (size_t s = 0; s < slots.size(); ++s) {
          want += weights[s] / sum *
                  Stored(problem.v[0], problem.dtype, view.Offset(slots[s], head / group) + d);
        }
        error += (problem.out[row + d] - want) * (problem.out[row + d] - want);
        norm += want * want;
      }
    }
  }
  return std::sqrt(error / norm);
}

double Median(std::vector<double>* values) {
  std::nth_element(values->begin(), values->begin() + values->size() / 2, values->end());
  return (*values)[values->size() / 2];
}

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

nlohmann::ordered_json Measure(const std::string& name, const Options& options, const Context& ctx,
                               Problem& problem) {
  const PlanOptions plan_options{.variant = kVariants.at(name),
                                 .group_size = problem.num_heads / problem.num_kv_heads,
                                 .num_kv_heads = problem.num_kv_heads,
                                 .num_workers = options.threads,
                                 .block_tokens = options.block_tokens};
  TreePlanner planner;
  std::vector<double> plan_us;
  for (int i = 0; i < options.repeats; ++i) {
    const Clock::time_point start = Clock::now();
    planner.Plan(problem.shape, plan_options);
    plan_us.push_back(MicrosecondsSince(start));
  }
  const TreePlan& plan = planner.Plan(problem.shape, plan_options);

  const float scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  const auto attend = [&](int layer) {
    kernels::cpu::TreeAttention(ctx, {.q = problem.q.data(),
                                      .kv = problem.Layer(layer),
                                      .plan = &plan,
                                      .num_heads = problem.num_heads,
                                      .scale = scale,
                                      .out = problem.out.data()});
  };
  std::fill(problem.out.begin(), problem.out.end(), std::nanf(""));
  attend(0);
  const double error = RelativeError(problem, scale);
  const int layers = static_cast<int>(problem.k.size());
  std::vector<double> layer_us;
  for (int i = 0; i < options.repeats; ++i) {
    const int first = i * 2 % layers;
    const Clock::time_point start = Clock::now();
    for (int layer = 0; layer < 2; ++layer) attend((first + layer) % layers);
    layer_us.push_back(MicrosecondsSince(start) / 2);
  }

  const double us = Median(&layer_us);
  const double unique_mb =
      static_cast<double>(plan.stats.unique_kv_tokens * problem.TokenBytes()) / 1e6;
  const double flops = 4.0 * static_cast<double>(plan.stats.logical_kv_tokens) * problem.num_heads *
                       problem.head_dim;
  return {
      {"variant", name},
      {"us_per_layer", us},
      {"unique_kv_mb", unique_mb},
      {"read_kv_mb", static_cast<double>(plan.stats.read_kv_tokens * problem.TokenBytes()) / 1e6},
      {"unique_gb_per_s", unique_mb * 1e3 / us},
      {"gflop_per_s", flops / us / 1e3},
      {"plan_us", Median(&plan_us)},
      {"partitions", plan.num_partitions()},
      {"partial_bytes", plan.PartialBytes(problem.num_heads, problem.head_dim)},
      {"relative_error", error}};
}

void Run(const Options& options) {
  std::mt19937 rng(1);
  Problem problem;
  const auto [heads, kv_heads] = ParsePair(options.heads);
  problem.num_heads = heads.front();
  problem.num_kv_heads = kv_heads.front();
  problem.head_dim = options.head_dim;
  problem.dtype = kDTypes.at(options.dtype);
  if (problem.num_heads % problem.num_kv_heads != 0) {
    throw CLI::ValidationError("--heads: query heads must be a multiple of kv heads");
  }
  BuildShape(options, rng, &problem);
  FillKv(rng, &problem);
  const Context ctx = Context::Cpu(options.threads, CpuPrecision::kF32);

  std::vector<std::string> variants = kVariantOrder;
  if (options.variant != "all") variants = {options.variant};
  nlohmann::ordered_json rows;
  for (const std::string& name : variants) rows.push_back(Measure(name, options, ctx, problem));
  for (auto& row : rows) {
    if (rows[0]["variant"] != "sequence") break;
    row["speedup_over_sequence"] =
        rows[0]["us_per_layer"].get<double>() / row["us_per_layer"].get<double>();
  }
  const nlohmann::ordered_json report = {
      {"device", std::string("cpu ") + CpuIsaName(ctx.cpu_isa())},
      {"threads", options.threads},
      {"tree", options.tree},
      {"queries", problem.shape.num_queries()},
      {"heads", options.heads},
      {"head_dim", options.head_dim},
      {"dtype", options.dtype},
      {"page_size", options.page_size},
      {"rows", rows}};
  if (options.json) {
    std::printf("%s\n", report.dump(2).c_str());
    return;
  }
  std::printf("cpu %s, %d threads; tree %s, %d queries; heads %s x %d, %s, page %d\n",
              CpuIsaName(ctx.cpu_isa()), options.threads, options.tree.c_str(),
              problem.shape.num_queries(), options.heads.c_str(), options.head_dim,
              options.dtype.c_str(), options.page_size);
  std::printf("%-11s %10s %10s %8s %8s %8s %9s %8s %6s %11s %9s\n", "variant", "us/layer",
              "unique MB", "read MB", "GB/s", "GFLOP/s", "vs seq", "plan us", "parts", "partial MB",
              "error");
  for (const auto& row : rows) {
    std::printf("%-11s %10.1f %10.2f %8.2f %8.2f %8.1f %8.2fx %8.1f %6d %11.3f %9.1e\n",
                row["variant"].get<std::string>().c_str(), row["us_per_layer"].get<double>(),
                row["unique_kv_mb"].get<double>(), row["read_kv_mb"].get<double>(),
                row["unique_gb_per_s"].get<double>(), row["gflop_per_s"].get<double>(),
                row.value("speedup_over_sequence", std::nan("")), row["plan_us"].get<double>(),
                row["partitions"].get<int>(), row["partial_bytes"].get<double>() / 1e6,
                row["relative_error"].get<double>());
  }
}

}  // namespace

void AddAttentionCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "attention", "Tree attention of one layer, cold KV; error against double precision");
  command->add_option("--tree", options->tree,
                      "Nodes a level / tokens a node, for example \"1,10,50 / 4000,300,300\"");
  std::vector<std::string> variants = kVariantOrder;
  variants.push_back("all");
  command->add_option("--variant", options->variant, "Plan variant, or all")
      ->check(CLI::IsMember(variants));
  command->add_option("--heads", options->heads, "Query heads / kv heads");
  command->add_option("--head-dim", options->head_dim)->check(CLI::Range(8, 256));
  command->add_option("--dtype", options->dtype, "KV type")->check(CLI::IsMember(kDTypes));
  command->add_option("--page", options->page_size, "Tokens a page")
      ->check(CLI::IsMember({16, 32, 64}));
  command->add_option("--threads", options->threads)->check(CLI::PositiveNumber);
  command->add_option("--run", options->run_tokens, "Queries at the end of each leaf: prefill")
      ->check(CLI::PositiveNumber);
  command->add_option("--block", options->block_tokens, "Tokens a block of node-chunk and flatten")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--repeats", options->repeats)->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "Machine-readable output");
  command->callback([options] { Run(*options); });
}

}  // namespace espalier::bench
