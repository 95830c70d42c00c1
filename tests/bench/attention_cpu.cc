// Tree attention of one layer on the CPU. KV is cold: enough layers that no cache holds them all.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/tree_attention.h"
#include "tests/bench/attention_measure.h"
#include "tests/support/naive_attention.h"
#include "tests/support/random_forest.h"

namespace espalier::bench {
namespace {

using Clock = std::chrono::steady_clock;

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

struct CpuMemory {
  const AttentionProblem& problem;
  // Layers that hold the same values.
  std::vector<std::vector<std::byte>> k;
  std::vector<std::vector<std::byte>> v;
  std::vector<float> scales;   // of a layer's K, or V; empty unless KV is kE4M3
  std::vector<float> k_exact;  // before rounding
  std::vector<float> v_exact;
  std::vector<float> q;
  std::vector<float> out;

  float Scale() const { return scales.empty() ? 1.0f : scales.front(); }
  KvLayerView Layer(int layer) {
    const float* scale = scales.empty() ? nullptr : scales.data();
    return {.k = k[layer].data(),
            .v = v[layer].data(),
            .num_pages = problem.tree.num_pages,
            .num_kv_heads = problem.num_kv_heads,
            .head_dim = problem.head_dim,
            .page_size = problem.tree.shape.page_size,
            .dtype = problem.kv_dtype,
            .k_scale = scale,
            .v_scale = scale};
  }
};

CpuMemory MakeMemory(const AttentionProblem& problem) {
  CpuMemory memory{problem, {}, {}, {}, {}, {}, {}, {}};
  std::mt19937 rng(1);
  constexpr int64_t kColdBytes = int64_t{192} << 20;
  constexpr int kMostLayers = 64;
  const int64_t elements = int64_t{problem.tree.num_pages} * problem.tree.shape.page_size *
                           problem.num_kv_heads * problem.head_dim;
  const int64_t bytes = static_cast<int64_t>(BytesOf(problem.kv_dtype, elements));
  const int layers =
      static_cast<int>(std::clamp<int64_t>(kColdBytes / (2 * bytes) + 1, 2, kMostLayers));
  if (problem.kv_dtype == DType::kE4M3) memory.scales.assign(problem.num_kv_heads, kKvScale);
  const float scale = memory.Scale();
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<std::vector<std::byte>>* stored, std::vector<float>* exact) {
    std::vector<std::byte> layer(bytes);
    exact->resize(elements);
    for (int64_t i = 0; i < elements; ++i) {
      (*exact)[i] = normal(rng);
      testing::StoreAs(problem.kv_dtype, (*exact)[i] / scale, i, &layer);
    }
    stored->assign(layers, layer);
  };
  fill(&memory.k, &memory.k_exact);
  fill(&memory.v, &memory.v_exact);
  memory.q.resize(size_t(problem.tree.shape.num_queries()) * problem.num_heads * problem.head_dim);
  for (float& x : memory.q) x = normal(rng);
  memory.out.resize(memory.q.size());
  return memory;
}

// ||out - reference|| / ||reference|| over a few queries, all heads, in double precision; the
// reference is attention over KV as it is stored, or as it was before.
double RelativeError(CpuMemory& memory, float scale, bool stored) {
  constexpr int kSampled = 4;
  const AttentionProblem& problem = memory.problem;
  const TreeShape& shape = problem.tree.shape;
  const KvLayerView view = memory.Layer(0);
  const int head_dim = problem.head_dim;
  const auto value = [&](const std::vector<std::byte>& side, const std::vector<float>& exact,
                         int64_t element) {
    if (!stored) return double{exact[element]};
    return testing::LoadAs(problem.kv_dtype, element, side) * memory.Scale();
  };
  const int group = problem.num_heads / problem.num_kv_heads;
  double error = 0;
  double norm = 0;
  for (int sample = 0; sample < kSampled; ++sample) {
    const int query = static_cast<int>(int64_t{shape.num_queries() - 1} * sample / (kSampled - 1));
    const std::vector<int64_t> slots = testing::VisibleSlots(shape, query);
    for (int head = 0; head < problem.num_heads; ++head) {
      const int64_t row = (int64_t{query} * problem.num_heads + head) * head_dim;
      std::vector<double> weights;
      double highest = -1e300;
      for (const int64_t slot : slots) {
        double score = 0;
        for (int d = 0; d < head_dim; ++d) {
          score += memory.q[row + d] *
                   value(memory.k[0], memory.k_exact, view.Offset(slot, head / group) + d);
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
                  value(memory.v[0], memory.v_exact, view.Offset(slots[s], head / group) + d);
        }
        error += (memory.out[row + d] - want) * (memory.out[row + d] - want);
        norm += want * want;
      }
    }
  }
  return std::sqrt(error / norm);
}

AttentionTimes MeasureVariant(const Context& ctx, AttentionVariant variant, CpuMemory& memory) {
  const AttentionProblem& problem = memory.problem;
  PlanOptions options{.variant = variant,
                      .group_size = problem.num_heads / problem.num_kv_heads,
                      .num_kv_heads = problem.num_kv_heads,
                      .num_workers = problem.threads,
                      .block_tokens = problem.block_tokens};
  if (problem.tile_rows > 0) options.tile_rows = problem.tile_rows;
  TreePlanner planner;
  const TreePlan& plan = planner.Plan(problem.tree.shape, options);
  const float scale = 1.0f / std::sqrt(static_cast<float>(problem.head_dim));
  const auto attend = [&](int layer) {
    kernels::cpu::TreeAttention(ctx, {.q = memory.q.data(),
                                      .kv = memory.Layer(layer),
                                      .plan = &plan,
                                      .num_heads = problem.num_heads,
                                      .scale = scale,
                                      .out = memory.out.data()});
  };
  std::fill(memory.out.begin(), memory.out.end(), std::nanf(""));
  attend(0);
  const double error = RelativeError(memory, scale, /*stored=*/true);
  const double kv_error = RelativeError(memory, scale, /*stored=*/false);
  const int layers = static_cast<int>(memory.k.size());
  std::vector<double> layer_us;
  for (int i = 0; i < problem.repeats; ++i) {
    const int first = i * 2 % layers;
    const Clock::time_point start = Clock::now();
    for (int layer = 0; layer < 2; ++layer) attend((first + layer) % layers);
    layer_us.push_back(MicrosecondsSince(start) / 2);
  }
  return {.variant = variant,
          .us = Percentile(layer_us, 0.5),
          .spread_us = Percentile(layer_us, 0.9) - Percentile(layer_us, 0.1),
          .planning = TimePlanning(problem.tree.shape, options, problem.repeats),
          .error = error,
          .kv_error = kv_error,
          .partitions = plan.num_partitions(),
          .partial_bytes = plan.stats.partial_rows * problem.num_heads *
                           static_cast<int64_t>((problem.head_dim + 1) * sizeof(float)),
          .stats = plan.stats};
}

// The shape of the step before: plain leaves that decode have a token less, unless it is their only
// one.
TreeShape BeforeLastToken(const TreeShape& shape) {
  TreeShape before = shape;
  std::vector<int> queries(shape.num_nodes(), 0);
  for (const int32_t node : shape.query_node) ++queries[node];
  for (int i = 0; i < shape.num_queries(); ++i) {
    const int32_t node = shape.query_node[i];
    const int32_t last = shape.num_tokens[node] - 1;
    if (shape.draft_begin[node] >= 0 || queries[node] > 1 || last == 0) continue;
    if (shape.query_offset[i] != last) continue;
    --before.num_tokens[node];
    --before.query_offset[i];
  }
  return before;
}

}  // namespace

double Percentile(std::vector<double> values, double p) {
  const auto at =
      values.begin() + static_cast<ptrdiff_t>(p * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

PlanningTimes TimePlanning(const TreeShape& shape, PlanOptions options, int repeats) {
  TreePlanner planner;
  const auto time = [&] {
    const Clock::time_point start = Clock::now();
    planner.Plan(shape, options);
    return MicrosecondsSince(start);
  };
  const TreeShape shorter = BeforeLastToken(shape);
  std::vector<double> fresh;
  std::vector<double> grown;
  for (int i = 0; i < repeats; ++i) {
    options.cost.min_piece ^= 1;  // other options: nothing is kept of the plan before
    fresh.push_back(time());
    planner.Plan(shorter, options);
    grown.push_back(time());
  }
  return {.fresh_us = Percentile(fresh, 0.5), .grown_us = Percentile(grown, 0.5)};
}

AttentionReport MeasureOnCpu(const AttentionProblem& problem) {
  const Context ctx = Context::Cpu(problem.threads, CpuPrecision::kF32);
  CpuMemory memory = MakeMemory(problem);
  AttentionReport report;
  report.device = std::string("cpu ") + CpuIsaName(ctx.cpu_isa()) + ", " +
                  std::to_string(problem.threads) + " threads";
  for (const AttentionVariant variant : problem.variants) {
    report.variants.push_back(MeasureVariant(ctx, variant, memory));
  }
  return report;
}

}  // namespace espalier::bench
