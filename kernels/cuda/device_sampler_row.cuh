// A row of logits, spread over the blocks that work on it: its memory, and the passes over it.
#pragma once

#include <cuda_pipeline.h>

#include <cstdint>

#include "kernels/cuda/device_sampler_group.cuh"
#include "kernels/cuda/device_sampler_step.h"

namespace espalier::device_sampler {

inline constexpr float kInfinity = __builtin_huge_valf();
inline constexpr int kBuckets = 1024;

// The last token that a filter keeps, as found digit by digit.
struct Border {
  int32_t bucket;
  int64_t equals;  // how many tokens have just this key
  double wanted;   // what they must bring, of what the filter sums
};

// Where a draw is: `token` when found, else the weight still to be passed.
struct DrawState {
  double target;
  int32_t token;
};

// A block's shared memory of fixed size.
template <int kBlocks, int kThreads>
struct Shared {
  Request request;
  typename RowGroup<kBlocks, kThreads>::Exchange exchange;
  // A histogram's lower and upper halves of sums; rank 0 sums those of the row. A block's flags of
  // Slice::met are here as well. All zero between uses.
  uint32_t counters[2 * kBuckets];
  double warp_sums[kThreads / 32];
  int first_reaching;
  int last_nonempty;
  Border border;
  DrawState draw[2];
  // Rank 0's: the row's.
  int num_top;
  float top_logits[kMaxTop];
  int32_t top_tokens[kMaxTop];
};

// One block's part of the row: `num_blocks` blocks of kRowBlock values, filled up with what is no
// candidate. The values are in shared memory, or in global memory where that is too small; first
// the logits, then the weights.
template <int kThreads>
struct Slice {
  float* values;       // [num_blocks * kRowBlock]
  uint32_t* met;       // [num_blocks * kRowBlock / 32] bits, all 0 between uses
  double* block_sums;  // [blocks of the whole row]
  int first_block;     // of the row
  int num_blocks;
  int size;        // tokens
  int row_blocks;  // blocks of the whole row

  __device__ int first_token() const { return first_block * kRowBlock; }
  // The index in `values`; negative for a token of another block's slice.
  __device__ int IndexOf(int32_t token) const {
    const uint32_t index = static_cast<uint32_t>(token) - static_cast<uint32_t>(first_token());
    return index < static_cast<uint32_t>(size) ? static_cast<int>(index) : -1;
  }

  // f(index, value).
  template <typename F>
  __device__ void Visit(F f) const {
    const auto* fours = reinterpret_cast<const float4*>(values);
    for (int i = threadIdx.x; i < num_blocks * (kRowBlock / 4); i += kThreads) {
      const float4 v = fours[i];
      f(4 * i, v.x);
      f(4 * i + 1, v.y);
      f(4 * i + 2, v.z);
      f(4 * i + 3, v.w);
    }
  }
  // value = f(value).
  template <typename F>
  __device__ void Update(F f) const {
    auto* fours = reinterpret_cast<float4*>(values);
    for (int i = threadIdx.x; i < num_blocks * (kRowBlock / 4); i += kThreads) {
      const float4 v = fours[i];
      fours[i] = {f(v.x), f(v.y), f(v.z), f(v.w)};
    }
    __syncthreads();
  }
};

// exp(x) for x <= 0, 0 below -86, with the polynomial and the roundings of the AVX2 kernel of
// engine/sampler/row_kernels.cc: the same bits.
__device__ inline float Exp(float x) {
  constexpr float kMinExponent = -86.0f;
  const bool in_range = x >= kMinExponent;
  x = fmaxf(x, kMinExponent);
  const float n = rintf(__fmul_rn(x, 1.44269504088896341f));
  float r = __fmaf_rn(-n, 0.693359375f, x);
  r = __fmaf_rn(-n, -2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  p = __fmaf_rn(p, __fmul_rn(r, r), __fadd_rn(r, 1.0f));
  const float power = __int_as_float((static_cast<int>(n) + 127) << 23);
  return in_range ? __fmul_rn(p, power) : 0.0f;
}

// Copies the block's part of the row. Global memory is read once, all of it in flight.
template <bool kShared, int kThreads>
__device__ void Load(const Slice<kThreads>& slice, const float* row) {
  const float* from = row + slice.first_token();
  if constexpr (kShared) {
    if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
      const int fours = slice.size / 4;
      for (int i = threadIdx.x; i < fours; i += kThreads) {
        __pipeline_memcpy_async(slice.values + 4 * i, from + 4 * i, 16);
      }
      for (int i = 4 * fours + threadIdx.x; i < slice.size; i += kThreads) {
        __pipeline_memcpy_async(slice.values + i, from + i, 4);
      }
    } else {
      for (int i = threadIdx.x; i < slice.size; i += kThreads) {
        __pipeline_memcpy_async(slice.values + i, from + i, 4);
      }
    }
    __pipeline_commit();
  } else {
#pragma unroll 8
    for (int i = threadIdx.x; i < slice.size; i += kThreads) slice.values[i] = from[i];
  }
  for (int i = slice.size + threadIdx.x; i < slice.num_blocks * kRowBlock; i += kThreads) {
    slice.values[i] = -kInfinity;
  }
  if constexpr (kShared) __pipeline_wait_prior(0);
  __syncthreads();
}

}  // namespace espalier::device_sampler
