// Sums over a block, always in the same order.
#pragma once

namespace espalier::cuda {

__device__ inline float WarpSum(float value) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, lane_mask);
  }
  return value;
}

// Every thread of the block calls it, once a kernel, and gets the sum.
template <int kThreads>
__device__ float BlockSum(float value) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  __shared__ float warp_sums[kThreads / 32];
  value = WarpSum(value);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum += warp_sums[i];
  return sum;
}

}  // namespace espalier::cuda
