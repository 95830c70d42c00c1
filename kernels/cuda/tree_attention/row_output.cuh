// A consumer warp's 16 rows on their way out: divided, rounded, and by way of shared memory to the
// output or, in units of a power of two, to their partial states.
#pragma once

#include "kernels/cuda/tree_attention/packed_rows.cuh"

namespace espalier::cuda {

// A power of two that is at most x and more than half of it, as far as it and its inverse are well
// within fp32. Of NaN, any.
__device__ inline float PowerOfTwoOf(float x) {
  const float bounded = fminf(fmaxf(x, 0x1p-100f), 0x1p126f);
  return __uint_as_float(__float_as_uint(bounded) & 0x7f800000);
}
__device__ inline float InverseOf(float power_of_two) {
  return __uint_as_float(0x7f000000 - __float_as_uint(power_of_two));
}

// The largest output by magnitude of a lane's rows.
template <int kHeadDim>
__device__ void LargestOutputs(const WarpState<kHeadDim>& state, float (&largest)[2]) {
  largest[0] = largest[1] = 0;
#pragma unroll
  for (const auto& tile : state.out) {
#pragma unroll
    for (int j = 0; j < 4; ++j) largest[j / 2] = fmaxf(largest[j / 2], fabsf(tile[j]));
  }
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
    for (float& x : largest) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, mask));
  }
}

// Rounds outputs, times `factor`, to T, and writes them to shared memory: of a lane's rows those
// that are `wanted`, into the RowTile at `room`.
template <typename T, int kHeadDim>
__device__ void StageOutputs(const WarpState<kHeadDim>& state, const float (&factor)[2],
                             const bool (&wanted)[2], uint32_t room) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!wanted[half]) continue;
#pragma unroll
    for (int i = 0; i < Geometry<kHeadDim>::kOutTiles; ++i) {
      const float(&tile)[4] = state.out[i];
      StoreShared(room + RowTile<kHeadDim>::Offset(half * 8 + lane / 4, i) + lane % 4 * 4,
                  Pack<T>(tile[half * 2] * factor[half], tile[half * 2 + 1] * factor[half]));
    }
  }
}

// Divides, and writes the warp's rows to the output or to their partial states, by way of `room`.
// Whole warp.
template <typename T, int kHeadDim>
__device__ void StoreRows(const AttentionArguments& p, const WarpRows& of_warp, float value_scale,
                          const WarpState<kHeadDim>& state, uint32_t room) {
  using G = Geometry<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum[2];
  float factor[2];
  bool is_direct[2];
  bool is_partial[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = QuadSum(state.sum[half]);
    factor[half] = __fdividef(value_scale, sum[half]);
    const int target = __shfl_sync(0xffffffff, of_warp.target, half * 8 + lane / 4);
    is_direct[half] = target == kTargetDirect;
    is_partial[half] = target >= 0;
  }
  if (__any_sync(0xffffffff, is_direct[0] || is_direct[1])) {
    StageOutputs<T>(state, factor, is_direct, room);
  }
  if (__any_sync(0xffffffff, is_partial[0] || is_partial[1])) {
    float largest[2];
    LargestOutputs(state, largest);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = PowerOfTwoOf(largest[half] * factor[half]);
      factor[half] *= InverseOf(scale);
      const int out_row = __shfl_sync(0xffffffff, of_warp.out_row, half * 8 + lane / 4);
      if (!is_partial[half] || lane % 4 != 0) continue;
      p.plan.partial_weights[out_row] = {.lse = state.highest[half] + Log2(sum[half]),
                                         .scale = scale};
    }
    StageOutputs<__half>(state, factor, is_partial, room);
  }
  __syncwarp();
  constexpr int kRowsAtOnce = 32 / G::kChunks;
  const int chunk = lane % G::kChunks;
#pragma unroll
  for (int i = 0; i < kWarpRows / kRowsAtOnce; ++i) {
    const int row = i * kRowsAtOnce + lane / G::kChunks;
    const uint4 columns = LoadShared(room + RowTile<kHeadDim>::Offset(row, chunk));
    const int target = __shfl_sync(0xffffffff, of_warp.target, row);
    const int64_t out_row = __shfl_sync(0xffffffff, of_warp.out_row, row);
    void* out = target >= 0 ? p.plan.partial_out : p.out;
    if (target != kTargetUntouched) {
      static_cast<uint4*>(out)[out_row * G::kChunks + chunk] = columns;
    }
  }
  __syncwarp();
}

}  // namespace espalier::cuda
