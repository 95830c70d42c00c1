// A cluster of two neighbouring blocks, which reach each other's shared memory (PTX ISA:
// barrier.cluster, mapa; sm_90 and later). A block launched without clusters is one by itself.
#pragma once

#include <cstdint>

namespace espalier::cuda {

// Which of the two a block is.
__device__ inline int ClusterRank() { return static_cast<int>(blockIdx.x) % 2; }

// By whoever made barriers, before it arrives: for the other block's arrivals and copies.
__device__ inline void AnnounceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// All threads of both blocks. Tells of announced barriers; of nothing else that they wrote.
__device__ inline void SyncCluster() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// At the other block's barrier at the same place as `barrier`. Says nothing of what the thread
// wrote: a release for all of the cluster would wait for all of the thread's loads and stores.
__device__ inline void BarrierArriveAtPeer(uint32_t barrier) {
  asm volatile(
      "{ .reg .b32 peer; mapa.shared::cluster.u32 peer, %0, %1;"
      " mbarrier.arrive.shared::cluster.b64 _, [peer]; }" ::"r"(barrier),
      "r"(ClusterRank() ^ 1)
      : "memory");
}

}  // namespace espalier::cuda
