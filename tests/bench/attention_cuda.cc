// Tree attention of one layer on CUDA. A captured graph runs the layers of a model, each with KV of
// its own, of four times the L2 cache together: a replay finds no layer's KV in the cache.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>

#include "kernels/core/half.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/cuda/plan_buffers.h"
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
        buffers_(ctx, problem.num_heads, problem.head_dim, problem.kernel) {
    const int64_t kv_elements = int64_t{problem.tree.num_pages} * problem.tree.shape.page_size *
                                problem.num_kv_heads * problem.head_dim;
    const auto kv_bytes = static_cast<int64_t>(2 * BytesOf(problem.dtype, kv_elements));
    const auto cold_bytes = static_cast<int64_t>(kColdFactor * testing::L2Bytes(ctx));
    const auto layers =
        static_cast<int>(std::clamp<int64_t>(cold_bytes / kv_bytes + 1, 2, kMostLayers));
    for (int i = 0; i < layers; ++i) {
      layers_.push_back({.k = RandomBuffer(ctx, problem.dtype, kv_elements, 3 * i),
                         .v = RandomBuffer(ctx, problem.dtype, kv_elements, 3 * i + 1),
                         .q = RandomBuffer(ctx, problem.dtype, OutElements(), 3 * i + 2),
                         .out = Allocate(ctx, BytesOf(problem.dtype, OutElements()))});
    }
    const DeviceBuffer reference = Allocate(ctx, OutElements() * sizeof(float));
    testing::ReferenceAttention(ctx, problem.tree.shape, View(layers_[0]), layers_[0].q.As<void>(),
                                problem.num_heads, Scale(), reference.As<float>());
    reference_.resize(OutElements());
    CopyToHost(ctx, reference_.data(), reference.As<void>(), reference.bytes());
    Synchronize(ctx);
  }

  AttentionTimes Measure(AttentionVariant variant) {
    PlanOptions options =
        CudaPlanOptions(ctx_, variant, problem_.num_heads, problem_.num_kv_heads, problem_.kernel);
    options.block_tokens = problem_.block_tokens;
    if (problem_.tile_rows > 0) options.tile_rows = problem_.tile_rows;
    if (problem_.token_cost > 0) options.cost.token = problem_.token_cost;
    TreePlanner planner;
    const TreePlan& plan = planner.Plan(problem_.tree.shape, options);
    if (!buffers_.Upload(plan)) throw CLI::ValidationError("the device lacks memory for the plan");
    const double error = RelativeError();
    std::vector<double> times = testing::TimeReplays(ctx_, problem_.repeats, [&] {
      for (const Layer& layer : layers_) Attend(layer);
    });
    for (double& time : times) time /= static_cast<double>(layers_.size());
    return {.variant = variant,
            .us = Percentile(times, 0.5),
            .spread_us = Percentile(times, 0.9) - Percentile(times, 0.1),
            .planning = TimePlanning(problem_.tree.shape, options, problem_.repeats),
            .error = error,
            .partitions = plan.num_partitions(),
            .partial_bytes = plan.PartialBytes(problem_.num_heads, problem_.head_dim),
            .stats = plan.stats};
  }

 private:
  struct Layer {
    DeviceBuffer k;
    DeviceBuffer v;
    DeviceBuffer q;
    DeviceBuffer out;
  };

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
            .dtype = problem_.dtype};
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

  // Of the first layer, over a poisoned output.
  double RelativeError() {
    const Layer& layer = layers_[0];
    FillDevice(ctx_, layer.out.As<void>(), 0xff, layer.out.bytes());
    Attend(layer);
    std::vector<uint16_t> out(OutElements());
    CopyToHost(ctx_, out.data(), layer.out.As<void>(), layer.out.bytes());
    Synchronize(ctx_);
    double error = 0;
    double norm = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const double got =
          problem_.dtype == DType::kBF16 ? BFloat16ToFloat(out[i]) : HalfToFloat(out[i]);
      error += (got - reference_[i]) * (got - reference_[i]);
      norm += double{reference_[i]} * reference_[i];
    }
    return std::sqrt(error / norm);
  }

  const Context& ctx_;
  const AttentionProblem& problem_;
  PlanBuffers buffers_;
  std::deque<Layer> layers_;
  std::vector<float> reference_;
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
