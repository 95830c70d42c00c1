// Tree attention of one layer on CUDA. A captured graph runs the layers of a model, each with KV of
// its own, of four times the L2 cache together: a replay finds no layer's KV in the cache.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <numeric>

#include "kernels/core/half.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/cuda/plan_buffers.h"
#include "kernels/cuda/tree_attention/device_plan.h"
#include "kernels/ops.h"
#include "kernels/runtime/device_memory.h"
#include "kernels/weight_ops.h"
#include "tests/bench/attention_measure.h"
#include "tests/kernels/cuda/attention/device_measure.h"

namespace espalier::bench {
namespace {

constexpr int kColdFactor = 4;  // of the L2 cache
constexpr int kMostLayers = 128;

// Memory of the device, or an end with a message: a benchmark has nothing to fall back on.
DeviceBuffer Allocate(const Context& ctx, size_t bytes) {
  DeviceBuffer buffer(ctx, bytes);
  if (buffer.empty()) {
    throw CLI::ValidationError("the device lacks " + std::to_string(bytes >> 20) + " MiB");
  }
  return buffer;
}

DeviceBuffer RandomBuffer(const Context& ctx, DType dtype, int64_t elements, uint64_t seed) {
  DeviceBuffer buffer = Allocate(ctx, BytesOf(dtype, elements));
  kernels::FillRandom(ctx, {.weights = {.seed = seed, .mean = 0, .deviation = 1},
                            .elements = elements,
                            .dtype = dtype,
                            .out = buffer.As<void>()});
  return buffer;
}

class CudaBench {
 public:
  CudaBench(const Context& ctx, const AttentionProblem& problem)
      : ctx_(ctx),
        problem_(problem),
        buffers_(ctx, problem.num_heads, problem.head_dim, problem.kv_dtype, problem.kernel) {
    const int64_t kv_elements = int64_t{problem.tree.num_pages} * problem.tree.shape.page_size *
                                problem.num_kv_heads * problem.head_dim;
    const auto kv_bytes = static_cast<int64_t>(2 * BytesOf(problem.kv_dtype, kv_elements));
    const auto cold_bytes = static_cast<int64_t>(kColdFactor * testing::L2Bytes(ctx));
    const auto layers =
        static_cast<int>(std::clamp<int64_t>(cold_bytes / kv_bytes + 1, 2, kMostLayers));
    if (scaled()) {
      const std::vector<float> scales(problem.num_kv_heads, kKvScale);
      scales_ = Allocate(ctx, scales.size() * sizeof(float));
      CopyToDevice(ctx, scales_.As<void>(), scales.data(), scales_.bytes());
      Synchronize(ctx);
    }
    for (int i = 0; i < layers; ++i) {
      layers_.push_back({.k = Allocate(ctx, kv_bytes / 2),
                         .v = Allocate(ctx, kv_bytes / 2),
                         .q = RandomBuffer(ctx, problem.dtype, OutElements(), 2 * i + 1),
                         .out = Allocate(ctx, BytesOf(problem.dtype, OutElements()))});
      FillKv(View(layers_[i]), /*seed=*/2 * i);
    }
    reference_ = Reference(View(layers_[0]));
    if (!scaled()) return;
    const DeviceBuffer k = Allocate(ctx, BytesOf(problem.dtype, kv_elements));
    const DeviceBuffer v = Allocate(ctx, BytesOf(problem.dtype, kv_elements));
    KvLayerView exact = View(layers_[0]);
    exact.k = k.As<void>();
    exact.v = v.As<void>();
    exact.dtype = problem.dtype;
    exact.k_scale = exact.v_scale = nullptr;
    FillKv(exact, /*seed=*/0);
    exact_reference_ = Reference(exact);
  }

  AttentionTimes Measure(AttentionVariant variant) {
    PlanOptions options = CudaPlanOptions(ctx_, variant, problem_.num_heads, problem_.num_kv_heads,
                                          problem_.kv_dtype, problem_.kernel);
    options.block_tokens = problem_.block_tokens;
    if (problem_.tile_rows > 0) options.tile_rows = problem_.tile_rows;
    if (problem_.token_cost > 0) options.cost.token = problem_.token_cost;
    TreePlanner planner;
    const TreePlan& plan = planner.Plan(problem_.tree.shape, options);
    if (!buffers_.Upload(plan)) throw CLI::ValidationError("the device lacks memory for the plan");
    const std::vector<float> out = OutOfFirstLayer();
    std::vector<double> times = testing::TimeReplays(ctx_, problem_.repeats, [&] {
      for (const Layer& layer : layers_) Attend(layer);
    });
    for (double& time : times) time /= static_cast<double>(layers_.size());
    return {.variant = variant,
            .us = Percentile(times, 0.5),
            .spread_us = Percentile(times, 0.9) - Percentile(times, 0.1),
            .planning = TimePlanning(problem_.tree.shape, options, problem_.repeats),
            .error = RelativeError(out, reference_),
            .kv_error = scaled() ? RelativeError(out, exact_reference_) : 0,
            .partitions = plan.num_partitions(),
            .partial_bytes =
                plan.stats.partial_rows * problem_.num_heads *
                static_cast<int64_t>(problem_.head_dim * sizeof(uint16_t) + sizeof(PartialWeight)),
            .stats = plan.stats};
  }

 private:
  struct Layer {
    DeviceBuffer k;
    DeviceBuffer v;
    DeviceBuffer q;
    DeviceBuffer out;
  };

  bool scaled() const { return problem_.kv_dtype == DType::kE4M3; }
  int64_t OutElements() const {
    return int64_t{problem_.tree.shape.num_queries()} * problem_.num_heads * problem_.head_dim;
  }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(problem_.head_dim)); }
  KvLayerView View(const Layer& layer) const {
    return {.k = layer.k.As<void>(),
            .v = layer.v.As<void>(),
            .num_pages = problem_.tree.num_pages,
            .num_kv_heads = problem_.num_kv_heads,
            .head_dim = problem_.head_dim,
            .page_size = problem_.tree.shape.page_size,
            .dtype = problem_.kv_dtype,
            .k_scale = scaled() ? scales_.As<float>() : nullptr,
            .v_scale = scaled() ? scales_.As<float>() : nullptr};
  }
  void Attend(const Layer& layer) {
    kernels::TreeAttention(ctx_, {.q = layer.q.As<void>(),
                                  .kv = View(layer),
                                  .plan = nullptr,
                                  .device_plan = &buffers_.device_plan(),
                                  .num_heads = problem_.num_heads,
                                  .scale = Scale(),
                                  .out = layer.out.As<void>()});
  }

  // Stores a token of random K and V in every slot.
  void FillKv(const KvLayerView& kv, uint64_t seed) {
    constexpr int kRows = 1 << 14;
    const int width = 2 * kv.num_kv_heads * kv.head_dim;
    const int64_t num_slots = int64_t{kv.num_pages} * kv.page_size;
    const DeviceBuffer qkv = RandomBuffer(ctx_, problem_.dtype, int64_t{kRows} * width, seed);
    const DeviceBuffer zeros = Allocate(ctx_, kRows * sizeof(int32_t));
    const DeviceBuffer slots = Allocate(ctx_, kRows * sizeof(int64_t));
    FillDevice(ctx_, zeros.As<void>(), 0, zeros.bytes());
    for (int64_t begin = 0; begin < num_slots; begin += kRows) {
      std::vector<int64_t> ids(std::min<int64_t>(kRows, num_slots - begin));
      std::iota(ids.begin(), ids.end(), begin);
      CopyToDevice(ctx_, slots.As<void>(), ids.data(), ids.size() * sizeof(int64_t));
      // At position 0 nothing is rotated.
      kernels::RopeStoreKv(ctx_, {.qkv = qkv.As<void>(),
                                  .q = nullptr,
                                  .positions = zeros.As<int32_t>(),
                                  .kv_slots = slots.As<int64_t>(),
                                  .inv_freq = zeros.As<float>(),
                                  .rope_magnitude = 1,
                                  .rows = static_cast<int>(ids.size()),
                                  .num_heads = 0,
                                  .kv = kv,
                                  .row_bad = nullptr});
      Synchronize(ctx_);  // before the ids go
    }
  }

  std::vector<float> Reference(const KvLayerView& kv) {
    const DeviceBuffer out = Allocate(ctx_, OutElements() * sizeof(float));
    testing::ReferenceAttention(ctx_, problem_.tree.shape, kv, layers_[0].q.As<void>(),
                                problem_.num_heads, Scale(), out.As<float>());
    std::vector<float> values(OutElements());
    CopyToHost(ctx_, values.data(), out.As<void>(), out.bytes());
    Synchronize(ctx_);
    return values;
  }

  // Over a poisoned output.
  std::vector<float> OutOfFirstLayer() {
    const Layer& layer = layers_[0];
    FillDevice(ctx_, layer.out.As<void>(), 0xff, layer.out.bytes());
    Attend(layer);
    std::vector<uint16_t> out(OutElements());
    CopyToHost(ctx_, out.data(), layer.out.As<void>(), layer.out.bytes());
    Synchronize(ctx_);
    std::vector<float> values(out.size());
    for (size_t i = 0; i < out.size(); ++i) {
      values[i] = problem_.dtype == DType::kBF16 ? BFloat16ToFloat(out[i]) : HalfToFloat(out[i]);
    }
    return values;
  }

  static double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
      norm += double{want[i]} * want[i];
    }
    return std::sqrt(error / norm);
  }

  const Context& ctx_;
  const AttentionProblem& problem_;
  PlanBuffers buffers_;
  std::deque<Layer> layers_;
  DeviceBuffer scales_;                 // of K, and of V; empty unless KV is kE4M3
  std::vector<float> reference_;        // of the first layer
  std::vector<float> exact_reference_;  // of its KV before rounding
};

}  // namespace

AttentionReport MeasureOnCuda(const AttentionProblem& problem) {
  std::string why_not;
  const std::unique_ptr<Context> ctx =
      Context::Cuda(/*index=*/0, problem.dtype, problem.threads, &why_not);
  if (ctx == nullptr) throw CLI::ValidationError("--device cuda: " + why_not);
  AttentionReport report;
  report.device = cuda::DeviceName(*ctx);
  report.read_bytes_per_s = 1e9 * cuda::MeasureReadGbps(*ctx);
  report.flops_per_s = 1e12 * cuda::MeasureMatMulTflops(*ctx);
  CudaBench bench(*ctx, problem);
  for (const AttentionVariant variant : problem.variants) {
    report.variants.push_back(bench.Measure(variant));
  }
  if (const std::optional<std::string> error = ctx->TakeError()) {
    throw CLI::ValidationError(*error);
  }
  return report;
}

}  // namespace espalier::bench
