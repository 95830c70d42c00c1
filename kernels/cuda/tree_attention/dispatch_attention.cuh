// The instance of a kernel for a plan.
#pragma once

#include "kernels/core/check.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/tree_attention/attention_kernels.h"

namespace espalier::cuda {

// Returns `launch<T, Kv, kHeadDim>()` of the element types, of activations and KV, and head size.
template <typename Launch>
cudaError_t DispatchAttention(DType dtype, DType kv_dtype, int head_dim, const Launch& launch) {
  ESPALIER_CHECK(head_dim == 64 || head_dim == 128);
  cudaError_t error = cudaSuccess;
  DispatchKv(dtype, kv_dtype, [&]<typename T, typename Kv>() {
    error = head_dim == 128 ? launch.template operator()<T, Kv, 128>()
                            : launch.template operator()<T, Kv, 64>();
  });
  return error;
}

}  // namespace espalier::cuda
