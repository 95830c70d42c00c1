#include "kernels/weight_ops.h"

#include <cstddef>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/half.h"
#include "kernels/core/random_weight.h"

namespace espalier::kernels {
namespace {

constexpr int64_t kGrainElements = 1 << 16;

void StoreWeight(DType dtype, float value, int64_t index, void* out) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(out)[index] = value;
      return;
    case DType::kF16:
      static_cast<uint16_t*>(out)[index] = FloatToHalf(value);
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(out)[index] = FloatToBFloat16(value);
      return;
    default:
      internal::CheckFailed("random weights are of a plain type", __FILE__, __LINE__);
  }
}

void FillRandomOnCpu(const Context& ctx, const FillRandomParams& p) {
  const float scale = p.weights.deviation * kUniformToDeviation;
  ctx.pool().ParallelFor(p.elements, kGrainElements, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      StoreWeight(p.dtype, p.weights.mean + scale * UniformWeight(p.weights.seed, i), i, p.out);
    }
  });
}

}  // namespace

void ConvertWeights(const Context& ctx, const ConvertWeightsParams& p) {
  ESPALIER_CHECK(ctx.device() == Device::kCuda);
  cuda::ConvertWeights(ctx, p);
}

void FillRandom(const Context& ctx, const FillRandomParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return FillRandomOnCpu(ctx, p);
    case Device::kCuda:
      return cuda::FillRandom(ctx, p);
  }
}

}  // namespace espalier::kernels
