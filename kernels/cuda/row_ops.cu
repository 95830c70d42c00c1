// The CUDA ops that work on each row by itself: one block a row, fp32 arithmetic. Those between a
// layer's products start while the product before ends.
#include "kernels/core/check.h"
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/numbers.cuh"

namespace espalier::kernels::cuda {
namespace {

using espalier::cuda::AwaitKernelBefore;
using espalier::cuda::BlockSum;
using espalier::cuda::Check;
using espalier::cuda::CheckLaunch;
using espalier::cuda::DispatchActivation;
using espalier::cuda::FromFloat;
using espalier::cuda::LaunchOverlapping;
using espalier::cuda::StreamOf;
using espalier::cuda::ToFloat;

constexpr int kThreads = 256;
constexpr int kNormThreads = 512;

template <typename T>
__global__ void EmbeddingKernel(const T* table, const int32_t* token_ids, int64_t cols,
                                float* out) {
  const T* row = table + token_ids[blockIdx.x] * cols;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    out[blockIdx.x * cols + i] = ToFloat(row[i]);
  }
}

// Four elements, one access.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// A row in registers: each thread has up to kItems runs of four elements, kNormThreads * 4 apart.
template <typename T, int kItems>
__global__ void __launch_bounds__(kNormThreads)
    RmsNormKernel(float* x, const T* residual, const float* weight, float eps, int hidden, T* out) {
  const int64_t row = int64_t{blockIdx.x} * hidden;
  const int first = static_cast<int>(threadIdx.x) * 4;
  Four<float> values[kItems];
  Four<float> weights[kItems];
  Four<T> deltas[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = first + k * kNormThreads * 4;
    if (i < hidden) weights[k] = *reinterpret_cast<const Four<float>*>(weight + i);
  }
  AwaitKernelBefore();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = first + k * kNormThreads * 4;
    if (i >= hidden) break;
    values[k] = *reinterpret_cast<const Four<float>*>(x + row + i);
    if (residual != nullptr) deltas[k] = *reinterpret_cast<const Four<T>*>(residual + row + i);
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = first + k * kNormThreads * 4;
    if (i >= hidden) break;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (residual != nullptr) values[k].at[e] += ToFloat(deltas[k].at[e]);
      squares += values[k].at[e] * values[k].at[e];
    }
    if (residual != nullptr) *reinterpret_cast<Four<float>*>(x + row + i) = values[k];
  }
  const float scale = 1.0f / sqrtf(BlockSum<kNormThreads>(squares) / hidden + eps);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int i = first + k * kNormThreads * 4;
    if (i >= hidden) break;
    Four<T> normed;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      normed.at[e] = FromFloat<T>(values[k].at[e] * scale * weights[k].at[e]);
    }
    *reinterpret_cast<Four<T>*>(out + row + i) = normed;
  }
}

// Any width. A thread meets the same elements in both passes, so that the second reads what it
// wrote itself.
template <typename T>
__global__ void __launch_bounds__(kNormThreads)
    RmsNormAnyKernel(float* x, const T* residual, const float* weight, float eps, int hidden,
                     T* out) {
  float* row = x + int64_t{blockIdx.x} * hidden;
  const T* delta = residual == nullptr ? nullptr : residual + int64_t{blockIdx.x} * hidden;
  AwaitKernelBefore();
  float squares = 0;
  for (int i = threadIdx.x; i < hidden; i += kNormThreads) {
    float value = row[i];
    if (delta != nullptr) {
      value += ToFloat(delta[i]);
      row[i] = value;
    }
    squares += value * value;
  }
  const float scale = 1.0f / sqrtf(BlockSum<kNormThreads>(squares) / hidden + eps);
  T* to = out + int64_t{blockIdx.x} * hidden;
  for (int i = threadIdx.x; i < hidden; i += kNormThreads) {
    to[i] = FromFloat<T>(row[i] * scale * weight[i]);
  }
}

__device__ float SwiGluOf(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// Grid: (intermediate / kWidth / kThreads, rows). kWidth elements a thread, one access.
template <typename T, int kWidth>
__global__ void SwiGluKernel(const T* gate_up, int64_t intermediate, T* out) {
  struct alignas(kWidth * sizeof(T)) Run {
    T at[kWidth];
  };
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  AwaitKernelBefore();
  if (i >= intermediate) return;
  const T* row = gate_up + blockIdx.y * 2 * intermediate;
  const Run gate = *reinterpret_cast<const Run*>(row + i);
  const Run up = *reinterpret_cast<const Run*>(row + intermediate + i);
  Run result;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    result.at[e] = FromFloat<T>(SwiGluOf(ToFloat(gate.at[e]), ToFloat(up.at[e])));
  }
  *reinterpret_cast<Run*>(out + blockIdx.y * intermediate + i) = result;
}

template <typename T>
__global__ void GatherRowsKernel(const T* x, const int32_t* indices, int64_t cols, T* out) {
  const T* row = x + indices[blockIdx.x] * cols;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) out[blockIdx.x * cols + i] = row[i];
}

template <typename T>
__global__ void FlagNonFiniteKernel(const T* x, int64_t cols, uint8_t* row_bad) {
  bool bad = false;
  for (int64_t i = threadIdx.x; i < cols; i += kThreads) {
    bad |= !isfinite(ToFloat(x[blockIdx.x * cols + i]));
  }
  if (__syncthreads_or(bad) && threadIdx.x == 0) row_bad[blockIdx.x] = 1;
}

// Grid: (kv heads, K and V, layers). `row_bytes` is a slot's of one head, a multiple of 16.
// A block does one head's K or V of a layer, a chunk of slots at a time: a chunk is read whole
// before it is written.
constexpr int kCopyChunk = 64;

__global__ void CopySlotsKernel(KvLayerView kv, int row_bytes, ptrdiff_t layer_bytes,
                                const int64_t* from, const int64_t* to, int count) {
  extern __shared__ uint4 chunk[];
  auto* side = reinterpret_cast<uint4*>(static_cast<char*>(blockIdx.y == 0 ? kv.k : kv.v) +
                                        blockIdx.z * layer_bytes);
  const int head = static_cast<int>(blockIdx.x);
  const int vectors = row_bytes / static_cast<int>(sizeof(uint4));
  const auto vector = [&](int64_t slot, int i) {
    const int64_t row =
        (slot / kv.page_size * kv.num_kv_heads + head) * kv.page_size + slot % kv.page_size;
    return side + row * vectors + i;
  };
  for (int begin = 0; begin < count; begin += kCopyChunk) {
    const int total = min(kCopyChunk, count - begin) * vectors;
    for (int i = threadIdx.x; i < total; i += blockDim.x) {
      chunk[i] = *vector(from[begin + i / vectors], i % vectors);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < total; i += blockDim.x) {
      *vector(to[begin + i / vectors], i % vectors) = chunk[i];
    }
    __syncthreads();
  }
}

}  // namespace

void Embedding(const Context& ctx, const EmbeddingParams& p) {
  if (p.rows == 0) return;
  ESPALIER_CHECK(p.table.dtype == ctx.activation_dtype());
  DispatchActivation(p.table.dtype, [&]<typename T>(T) {
    EmbeddingKernel<<<p.rows, kThreads, 0, StreamOf(ctx)>>>(static_cast<const T*>(p.table.data),
                                                            p.token_ids, p.table.cols, p.out);
  });
  CheckLaunch(ctx, "Embedding");
}

void RmsNorm(const Context& ctx, const RmsNormParams& p) {
  if (p.rows == 0) return;
  DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) {
    const auto launch = [&](auto* kernel) {
      const cudaError_t error = LaunchOverlapping(
          kernel, {.blocks = p.rows, .threads = kNormThreads}, ctx.cuda().overlaps(), StreamOf(ctx),
          p.x, static_cast<const T*>(p.residual), p.weight, p.eps, p.hidden,
          static_cast<T*>(p.out));
      Check(ctx, "RmsNorm", error);
    };
    constexpr int kPerItem = kNormThreads * 4;
    if (p.hidden % 4 != 0 || p.hidden > 4 * kPerItem) {
      launch(RmsNormAnyKernel<T>);
    } else if (p.hidden <= kPerItem) {
      launch(RmsNormKernel<T, 1>);
    } else if (p.hidden <= 2 * kPerItem) {
      launch(RmsNormKernel<T, 2>);
    } else {
      launch(RmsNormKernel<T, 4>);
    }
  });
}

void SwiGlu(const Context& ctx, const SwiGluParams& p) {
  if (p.rows == 0) return;
  DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) {
    const auto launch = [&](auto* kernel, int width) {
      const int a_block = kThreads * width;
      const dim3 grid((p.intermediate + a_block - 1) / a_block, p.rows);
      const cudaError_t error = LaunchOverlapping(
          kernel, {.blocks = grid, .threads = kThreads}, ctx.cuda().overlaps(), StreamOf(ctx),
          static_cast<const T*>(p.gate_up), p.intermediate, static_cast<T*>(p.out));
      Check(ctx, "SwiGlu", error);
    };
    if (p.intermediate % 8 == 0) {
      launch(SwiGluKernel<T, 8>, 8);
    } else {
      launch(SwiGluKernel<T, 1>, 1);
    }
  });
}

void GatherRows(const Context& ctx, const GatherRowsParams& p) {
  if (p.rows == 0) return;
  DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) {
    GatherRowsKernel<<<p.rows, kThreads, 0, StreamOf(ctx)>>>(static_cast<const T*>(p.x), p.indices,
                                                             p.cols, static_cast<T*>(p.out));
  });
  CheckLaunch(ctx, "GatherRows");
}

void FlagNonFinite(const Context& ctx, const FlagNonFiniteParams& p) {
  if (p.rows == 0) return;
  DispatchActivation(ctx.activation_dtype(), [&]<typename T>(T) {
    FlagNonFiniteKernel<<<p.rows, kThreads, 0, StreamOf(ctx)>>>(static_cast<const T*>(p.x), p.cols,
                                                                p.row_bad);
  });
  CheckLaunch(ctx, "FlagNonFinite");
}

void CopySlots(const Context& ctx, const CopySlotsParams& p) {
  if (p.count == 0) return;
  const int row_bytes = static_cast<int>(BytesOf(p.kv.dtype, p.kv.head_dim));
  ESPALIER_CHECK(row_bytes % sizeof(uint4) == 0);
  const dim3 grid(p.kv.num_kv_heads, 2, p.num_layers);
  CopySlotsKernel<<<grid, 256, kCopyChunk * row_bytes, StreamOf(ctx)>>>(
      p.kv, row_bytes, p.layer_bytes, p.from, p.to, p.count);
  CheckLaunch(ctx, "CopySlots");
}

}  // namespace espalier::kernels::cuda
