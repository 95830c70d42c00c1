// What a CUDA context owns. For kernels/cuda alone: it brings CUDA's headers.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "kernels/cuda/matmul_plans.h"
#include "kernels/runtime/context.h"

namespace espalier {

struct CudaState {
  int index = 0;
  std::string name;
  int num_sms = 0;
  int compute_capability = 0;  // 90 for 9.0
  int max_shared_bytes = 0;    // of a block, opted in
  size_t l2_bytes = 0;
  // A kernel may start before the one before it has ended (dependent_launch.cuh).
  bool overlaps() const { return compute_capability >= 90; }

  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* blas_workspace = nullptr;
  std::unique_ptr<cuda::MatMulPlans> matmul_plans;
};

namespace cuda {

inline cudaStream_t StreamOf(const Context& ctx) { return ctx.cuda().stream; }

// Records what is not success, under the op's name.
inline void Check(const Context& ctx, const char* op, cudaError_t error) {
  if (error != cudaSuccess) ctx.RecordError(op, cudaGetErrorString(error));
}
// After a launch.
inline void CheckLaunch(const Context& ctx, const char* op) { Check(ctx, op, cudaGetLastError()); }

}  // namespace cuda
}  // namespace espalier
