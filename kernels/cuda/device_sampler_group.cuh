// The thread blocks that work on one row together: a cluster, whose blocks reach into each other's
// shared memory, or on devices before sm_90 a single block.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>
#include <cstring>

namespace espalier::device_sampler {

inline constexpr unsigned kAllLanes = 0xffffffff;

__device__ inline int Lane() { return threadIdx.x % 32; }
__device__ inline int Warp() { return threadIdx.x / 32; }

template <typename T>
__device__ T ShuffleXor(T value, int lane_mask) {
  static_assert(sizeof(T) % 4 == 0);
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof(T));
  for (uint32_t& word : words) word = __shfl_xor_sync(kAllLanes, word, lane_mask);
  std::memcpy(&value, words, sizeof(T));
  return value;
}

// Every lane gets the same bits if `combine` commutes.
template <typename T, typename Combine>
__device__ T WarpReduce(T value, Combine combine) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    value = combine(value, ShuffleXor(value, lane_mask));
  }
  return value;
}

// Sum over this lane and those before it.
__device__ inline double WarpInclusiveSum(double value) {
  for (int distance = 1; distance < 32; distance *= 2) {
    const double before = __shfl_up_sync(kAllLanes, value, distance);
    if (Lane() >= distance) value += before;
  }
  return value;
}

template <int kBlocks, int kThreads>
struct RowGroup {
  static_assert(kBlocks <= 8 && kThreads % 32 == 0 && kThreads <= 1024);
  static constexpr int kWarps = kThreads / 32;

  // In shared memory.
  struct Exchange {
    alignas(16) unsigned char of_warps[kWarps][16];
    // Written in turns, so that a block may be one reduction ahead of its readers.
    alignas(16) unsigned char of_blocks[2][kBlocks][16];
  };

  __device__ static int Rank() {
    if constexpr (kBlocks == 1) return 0;
    return static_cast<int>(blockIdx.x % kBlocks);
  }

  // Every thread of the row waits for all; what they wrote before is seen by all after.
  __device__ static void Sync() {
    Arrive();
    Wait();
  }
  // Its two halves: what is between them needs no other block.
  __device__ static void Arrive() {
    if constexpr (kBlocks > 1) {
#if __CUDA_ARCH__ >= 900
      cooperative_groups::this_cluster().barrier_arrive();
#else
      __trap();  // the launcher chose a kernel that this device does not have
#endif
    }
  }
  __device__ static void Wait() {
    if constexpr (kBlocks == 1) {
      __syncthreads();
    } else {
#if __CUDA_ARCH__ >= 900
      cooperative_groups::this_cluster().barrier_wait();
#endif
    }
  }

  // The same variable of shared memory in another block of the row.
  template <typename T>
  __device__ static T* At(T* local, int rank) {
    if constexpr (kBlocks == 1) {
      return local;
    } else {
#if __CUDA_ARCH__ >= 900
      return cooperative_groups::this_cluster().map_shared_rank(local, rank);
#else
      return nullptr;
#endif
    }
  }

  // Called by all lanes of a warp: the value goes to that variable in every block of the row.
  template <typename T>
  __device__ static void Publish(T* local, const T& value) {
    if (Lane() < kBlocks) *At(local, Lane()) = value;
  }

  // Called by all threads of a block, who all get the same bits. Always in the same order;
  // `combine` commutes, and `identity` changes nothing.
  template <typename T, typename Combine>
  __device__ static T BlockReduce(Exchange& exchange, T value, T identity, Combine combine) {
    static_assert(sizeof(T) <= 16);
    value = WarpReduce(value, combine);
    __syncthreads();  // the last reduction has been read
    if (Lane() == 0) *reinterpret_cast<T*>(exchange.of_warps[Warp()]) = value;
    __syncthreads();
    value = Lane() < kWarps ? *reinterpret_cast<T*>(exchange.of_warps[Lane()]) : identity;
    return WarpReduce(value, combine);
  }

  // Called by all threads of the row: calls f(value) with each block's value, in order of ranks.
  template <typename T, typename F>
  __device__ static void ForEachBlock(Exchange& exchange, int& turn, T value, F f) {
    static_assert(sizeof(T) <= 16);
    if (Warp() == 0) Publish(reinterpret_cast<T*>(exchange.of_blocks[turn][Rank()]), value);
    Sync();
    for (int block = 0; block < kBlocks; ++block) {
      f(*reinterpret_cast<const T*>(exchange.of_blocks[turn][block]));
    }
    turn ^= 1;
  }

  // As BlockReduce, over all threads of the row.
  template <typename T, typename Combine>
  __device__ static T AllReduce(Exchange& exchange, int& turn, T value, T identity,
                                Combine combine) {
    value = BlockReduce(exchange, value, identity, combine);
    T result = identity;
    ForEachBlock(exchange, turn, value, [&](const T& other) { result = combine(result, other); });
    return result;
  }
};

}  // namespace espalier::device_sampler
