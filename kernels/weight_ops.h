// What happens to weights once, when a model is loaded.
#pragma once

#include <cstdint>

#include "kernels/core/matrix.h"
#include "kernels/core/random_weight.h"
#include "kernels/runtime/context.h"

namespace espalier::kernels {

// out[i] = element i of `from`, rounded to the context's activation type. CUDA only: both are
// memory of the device, which cannot multiply by quantised blocks.
struct ConvertWeightsParams {
  ConstMatrix from;  // any dtype
  void* out;         // [from.rows * from.cols]
};
void ConvertWeights(const Context& ctx, const ConvertWeightsParams& p);

struct FillRandomParams {
  RandomWeights weights;
  int64_t elements;
  DType dtype;  // kF32, kF16 or kBF16
  void* out;    // [elements]
};
void FillRandom(const Context& ctx, const FillRandomParams& p);

namespace cuda {
void ConvertWeights(const Context& ctx, const ConvertWeightsParams& p);
void FillRandom(const Context& ctx, const FillRandomParams& p);
}  // namespace cuda

}  // namespace espalier::kernels
