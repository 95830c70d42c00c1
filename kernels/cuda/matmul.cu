// Matrix products through cuBLASLt, and biases.
#include <string>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/numbers.cuh"

namespace espalier::kernels::cuda {
namespace {

using espalier::cuda::CheckLaunch;
using espalier::cuda::FromFloat;
using espalier::cuda::StreamOf;
using espalier::cuda::ToFloat;

constexpr int kBiasThreads = 256;

// Grid: (features / kBiasThreads, rows).
template <typename T>
__global__ void AddBias(T* out, int64_t stride, const float* bias, int64_t features) {
  const int64_t column = int64_t{blockIdx.x} * kBiasThreads + threadIdx.x;
  if (column >= features) return;
  T& element = out[blockIdx.y * stride + column];
  element = FromFloat<T>(ToFloat(element) + bias[column]);
}

template <typename T>
void LaunchAddBias(const Context& ctx, const Projection& p, int rows) {
  const dim3 grid(static_cast<unsigned>((p.weight.rows + kBiasThreads - 1) / kBiasThreads), rows);
  AddBias<<<grid, kBiasThreads, 0, StreamOf(ctx)>>>(static_cast<T*>(p.out), p.out_stride, p.bias,
                                                    p.weight.rows);
  CheckLaunch(ctx, "AddBias");
}

size_t OutBytes(const Context& ctx, const Projection& p, int64_t elements) {
  return BytesOf(p.out_f32 ? DType::kF32 : ctx.activation_dtype(), elements);
}

// Whether b's weight and output lie right behind a's, so that both are one product.
bool Joins(const Context& ctx, const Projection& a, int64_t a_features, const Projection& b) {
  const auto* a_end = static_cast<const std::byte*>(a.weight.data) +
                      BytesOf(a.weight.dtype, a_features * a.weight.cols);
  const auto* out_end = static_cast<const std::byte*>(a.out) + OutBytes(ctx, a, a_features);
  return b.weight.data == a_end && b.out == out_end && b.out_stride == a.out_stride &&
         b.out_f32 == a.out_f32;
}

}  // namespace

void Project(const Context& ctx, const ProjectParams& p) {
  if (p.rows == 0) return;
  CudaState& cuda = ctx.cuda();
  for (size_t i = 0; i < p.projections.size();) {
    const Projection& first = p.projections[i];
    ESPALIER_CHECK(first.weight.dtype == ctx.activation_dtype());
    int64_t features = first.weight.rows;
    size_t end = i + 1;
    for (; end < p.projections.size() && Joins(ctx, first, features, p.projections[end]); ++end) {
      features += p.projections[end].weight.rows;
    }
    const cublasStatus_t status =
        cuda.matmul_plans->Run({.rows = p.rows,
                                .features = features,
                                .depth = first.weight.cols,
                                .out_stride = first.out_stride,
                                .dtype = first.weight.dtype,
                                .out_f32 = first.out_f32},
                               p.x, first.weight.data, first.out, cuda.blas_workspace, cuda.stream);
    if (status != CUBLAS_STATUS_SUCCESS) {
      ctx.RecordError("Project", std::string(cublasLtGetStatusString(status)) + " for [" +
                                     std::to_string(p.rows) + ", " +
                                     std::to_string(first.weight.cols) + "] x [" +
                                     std::to_string(features) + ", " +
                                     std::to_string(first.weight.cols) + "]^T");
    }
    i = end;
  }
  for (const Projection& projection : p.projections) {
    if (projection.bias == nullptr) continue;
    if (projection.out_f32) {
      LaunchAddBias<float>(ctx, projection, p.rows);
    } else {
      espalier::cuda::DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) {
        LaunchAddBias<T>(ctx, projection, p.rows);
      });
    }
  }
}

}  // namespace espalier::kernels::cuda
