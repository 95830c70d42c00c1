// Copies to shared memory by Hopper's copy engines, which announce their bytes at a barrier (PTX
// ISA: cp.async.bulk, cp.async.bulk.tensor, mbarrier.expect_tx; sm_90 and later).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace espalier::cuda {

// The barrier's phase does not end before so many bytes more have arrived.
__device__ inline void ExpectBytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// One arrival in the name of `count`.
__device__ inline void BarrierArriveAs(uint32_t barrier, int count) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count)
               : "memory");
}

// A multiple of 16 bytes, both addresses too.
__device__ inline void CopyBulk(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// The box of `map` (tensor_map.h) that begins at `row`; rows that there are not become zeros.
__device__ inline void CopyRows(uint32_t to, const CUtensorMap& map, int row, uint32_t barrier,
                                uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %2}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(0), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

// The same to the same place in both blocks of a cluster, each of which it tells at its barrier of
// that place.
__device__ inline void CopyRowsToBoth(uint32_t to, const CUtensorMap& map, int row,
                                      uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3, %2}], [%4], %6, %5;" ::"r"(to),
      "l"(&map), "r"(0), "r"(row), "r"(barrier), "l"(policy), "h"(static_cast<uint16_t>(3))
      : "memory");
}

// Makes what threads wrote to shared memory readable for products of warpgroups: by the writer
// before it announces that, or by the reader after.
__device__ inline void ProductsSeeCopies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// What a first copy would wait for.
__device__ inline void PrefetchMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

}  // namespace espalier::cuda
