// Units of work and their KV on the way through a block's shared memory: producer warps claim
// units, (partition, kv head) pairs, one by one in the plan's order and copy their tokens, wherever
// these lie, side by side into a ring of stages that consumer warps drain. How tokens are copied is
// the kernels' own: gather_stream.cuh, tensor_stream.cuh.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/tree_attention/async_copy.cuh"
#include "kernels/cuda/tree_attention/attention_kernels.h"

namespace espalier::cuda {

constexpr int kMostStages = 8;
constexpr int kUnitSlots = 4;
// So many stages are asked for before the first queries have come: those would queue behind more.
constexpr int kFirstStages = 3;
// The token lists are asked into L2 this many stages ahead of the one at hand.
constexpr int kPrefetchStages = 16;
constexpr int kLineTokens = 32;  // of a list, in a line of the cache

template <int kHeadDim>
struct Geometry {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kChunks = kRowBytes / 16;  // of a row
  static constexpr int kSideBytes = kStageTokens * kRowBytes;
  static constexpr int kStageBytes = 2 * kSideBytes;
  static constexpr int kKeySteps = kHeadDim / 16;  // of a product over head_dim
  static constexpr int kOutTiles = kHeadDim / 8;   // accumulators of a warp's output
};

// A unit as it is handed to the warps.
struct Unit {
  PlanUnit partition;
  int index;    // of the partition's record
  int kv_head;  // -1: there is none
  int in_pair;  // whether the cluster's other block has the other unit of a pair
};

struct Barriers {
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
  uint64_t unit_full[kUnitSlots];
  uint64_t unit_empty[kUnitSlots];
  uint64_t queries;  // passed once the first unit's queries are there
};

// Beside a stage: who sees its tokens, one by one and, where the kernel asks for it, together.
constexpr int kRowsBytes = kStageTokens * 4 + static_cast<int>(sizeof(PlanStage));
constexpr int kRoomAlignment = 256;
constexpr int kUnitAlignment = static_cast<int>(alignof(Unit));

// Shared memory, from its start: stages (K, then V), token rows of each stage, units, barriers, and
// `room` for queries and later the states that are merged.
template <int kHeadDim>
struct SharedLayout {
  using G = Geometry<kHeadDim>;
  explicit constexpr __host__ __device__ SharedLayout(int num_stages, int room_bytes)
      : rows(num_stages * G::kStageBytes),
        units(rows +
              (num_stages * kRowsBytes + kUnitAlignment - 1) / kUnitAlignment * kUnitAlignment),
        barriers(units + kUnitSlots * static_cast<int>(sizeof(Unit))),
        room((barriers + static_cast<int>(sizeof(Barriers)) + kRoomAlignment - 1) / kRoomAlignment *
             kRoomAlignment),
        bytes(room + room_bytes) {}
  int rows;
  int units;
  int barriers;
  int room;
  int bytes;
};
static_assert(sizeof(Unit) % 8 == 0);
static_assert(kPrefetchStages * kStageTokens == 32 * kLineTokens);

// As many stages as are of use and fit.
template <int kHeadDim>
int NumStages(int ring_bytes, int room_bytes, int max_shared_bytes) {
  int num_stages = std::min(kMostStages, ring_bytes / Geometry<kHeadDim>::kStageBytes);
  while (num_stages > 2 &&
         SharedLayout<kHeadDim>(num_stages, room_bytes).bytes > max_shared_bytes) {
    --num_stages;
  }
  return num_stages;
}

// A place in a ring: where, and the parity of the lap.
struct RingPlace {
  int at = 0;
  uint32_t lap = 0;
  __device__ void Next(int size) {
    if (++at == size) {
      at = 0;
      lap ^= 1;
    }
  }
};

// A ring of stages by its shared addresses.
struct Ring {
  uint32_t stages;
  uint32_t rows;  // of stages' token rows
  uint32_t full;  // barriers, 8 bytes each
  uint32_t empty;
  int num_stages;
  __device__ uint32_t FullOf(int at) const { return full + at * 8; }
  __device__ uint32_t EmptyOf(int at) const { return empty + at * 8; }
};

// At most as many barriers as a warp has lanes. Whole warp.
__device__ inline void InitBarriers(uint32_t first, int count, int arrivals) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane < count) BarrierInit(first + lane * 8, arrivals);
}
__device__ inline void InitRing(const Ring& ring, int filling_threads, int releases) {
  InitBarriers(ring.full, ring.num_stages, filling_threads);
  InitBarriers(ring.empty, ring.num_stages, releases);
}

struct BlockState {
  std::byte* shared;
  Barriers* barriers;
  Unit* units;
  Ring ring;  // that consumers drain
};

template <int kHeadDim>
__device__ BlockState BlockStateOf(std::byte* shared, const SharedLayout<kHeadDim>& layout,
                                   int num_stages) {
  return {.shared = shared,
          .barriers = reinterpret_cast<Barriers*>(shared + layout.barriers),
          .units = reinterpret_cast<Unit*>(shared + layout.units),
          .ring = {.stages = SharedAddress(shared),
                   .rows = SharedAddress(shared + layout.rows),
                   .full = SharedAddress(shared + layout.barriers + offsetof(Barriers, full)),
                   .empty = SharedAddress(shared + layout.barriers + offsetof(Barriers, empty)),
                   .num_stages = num_stages}};
}

// One warp, before the block's warps part. `filling_warps` fill every stage, which is free again
// after so many releases a consumer warp, and `other_warps` beside these and the consumers follow
// units.
__device__ inline void InitBarriers(const BlockState& block, int consumer_warps, int filling_warps,
                                    int releases = 1, int other_warps = 0) {
  InitRing(block.ring, filling_warps * 32, consumer_warps * releases);
  InitBarriers(SharedAddress(block.barriers->unit_full), kUnitSlots, 1);
  InitBarriers(SharedAddress(block.barriers->unit_empty), kUnitSlots,
               consumer_warps + filling_warps + other_warps - 1);
  InitBarriers(SharedAddress(&block.barriers->queries), 1, consumer_warps);
}

__device__ inline const PlanRecord& RecordOf(const AttentionArguments& p, int partition) {
  return reinterpret_cast<const PlanRecord*>(p.plan.header + 1)[partition];
}

__device__ inline int NumUnitsInPairs(const AttentionArguments& p) {
  return p.plan.has_pairs ? 2 * p.plan.header->num_pairs * p.plan.num_kv_heads : 0;
}

// Asked for before it is known whether there is one: PlanBuffers leaves room to read so far.
__device__ inline Unit UnitAt(const AttentionArguments& p, int index) {
  const bool in_pair = index < NumUnitsInPairs(p);
  // Of two partitions, or of one: which, and which head.
  const int head_index = in_pair ? index / 2 : index;
  const auto quotient = static_cast<int>(head_index * p.plan.kv_heads_inverse >> 32);
  const int partition = in_pair ? 2 * quotient + index % 2 : quotient;
  const PlanUnit unit = RecordOf(p, partition).unit;
  const bool exists = partition < p.plan.header->num_partitions;
  return {.partition = unit,
          .index = partition,
          .kv_head = exists ? head_index - quotient * p.plan.num_kv_heads : -1,
          .in_pair = in_pair};
}

// The block's next unit behind `index`. Both blocks of a cluster know which pair is their next;
// others go to whoever comes first. One warp, whole.
__device__ inline int NextUnit(const AttentionArguments& p, int index) {
  const auto blocks = static_cast<int>(gridDim.x);
  const int in_pairs = NumUnitsInPairs(p);
  if (index + blocks < in_pairs) return index + blocks;
  AwaitKernelBefore();
  int claimed = 0;
  if (threadIdx.x % 32 == 0) claimed = atomicAdd(&p.plan.claims[0], 1);
  return max(blocks, in_pairs) + __shfl_sync(0xffffffff, claimed, 0);
}

// The next unit. It stays in shared memory, rather than in registers, until the warp leaves it.
__device__ inline const Unit& AwaitUnit(const BlockState& block, const RingPlace& slot) {
  BarrierWait(SharedAddress(&block.barriers->unit_full[slot.at]), slot.lap);
  return block.units[slot.at];
}
__device__ inline void LeaveUnit(const BlockState& block, RingPlace* slot) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(SharedAddress(&block.barriers->unit_empty[slot->at]));
  slot->Next(kUnitSlots);
}

// By every consumer warp when the queries of its first unit are there.
__device__ inline void QueriesCame(const BlockState& block, bool* waiting) {
  __syncwarp();
  if (*waiting && threadIdx.x % 32 == 0) BarrierArrive(SharedAddress(&block.barriers->queries));
  *waiting = false;
}

// Asks into L2 the lists' first stages of a unit, or what comes kPrefetchStages behind a stage.
__device__ inline void PrefetchFirstTokens(const int32_t* kv_rows, const uint32_t* token_rows,
                                           int num_stages) {
  const int token = static_cast<int>(threadIdx.x) % 32 * kLineTokens;
  if (token >= num_stages * kStageTokens) return;
  PrefetchToL2(kv_rows + token);
  PrefetchToL2(token_rows + token);
}
__device__ inline void PrefetchTokensAhead(const int32_t* kv_rows, const uint32_t* token_rows,
                                           int stage, int num_stages) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane >= 4 || stage + kPrefetchStages >= num_stages) return;
  const int token = (stage + kPrefetchStages) * kStageTokens + lane % 2 * kLineTokens;
  PrefetchToL2(lane < 2 ? static_cast<const void*>(kv_rows + token) : token_rows + token);
}

// Hands the next unit, or that there is none, to the other warps.
__device__ inline void HandOver(const BlockState& block, const Unit& unit, RingPlace* slot) {
  BarrierWait(SharedAddress(&block.barriers->unit_empty[slot->at]), slot->lap ^ 1);
  if (threadIdx.x % 32 == 0) {
    block.units[slot->at] = unit;
    BarrierArrive(SharedAddress(&block.barriers->unit_full[slot->at]));
  }
  slot->Next(kUnitSlots);
}

// Claims units, hands them to the other warps and fills stages from each; `unit` is the block's
// first, UnitAt its index. One warp of a block. Units and token lists were there before any kernel
// of the step began, and so was KV that is not kWrittenNow: `stream` may copy these before the
// kernel before has ended.
template <typename Stream>
__device__ void ClaimUnits(const BlockState& block, const AttentionArguments& p, Unit unit,
                           Stream& stream) {
  RingPlace slot;
  auto index = static_cast<int>(blockIdx.x);
  while (true) {
    HandOver(block, unit, &slot);
    if (unit.kv_head < 0) break;
    stream.Fill(unit);
    // Consumers have a ring of stages to take until the next unit is known.
    index = NextUnit(p, index);
    unit = UnitAt(p, index);
  }
  AwaitKernelBefore();  // a block without a unit has not yet
  // The last block to get here has seen every claim made: the next launch starts from zero.
  if (threadIdx.x % 32 == 0) {
    __threadfence();
    if (atomicAdd(&p.plan.claims[1], 1) == static_cast<int>(gridDim.x) - 1) {
      p.plan.claims[0] = 0;
      p.plan.claims[1] = 0;
    }
  }
}

// Fills stages from each of the units that another warp claims.
template <typename Stream>
__device__ void FollowUnits(const BlockState& block, Stream& stream) {
  RingPlace slot;
  while (true) {
    const Unit& unit = AwaitUnit(block, slot);
    if (unit.kv_head < 0) break;
    stream.Fill(unit);
    LeaveUnit(block, &slot);
  }
}

}  // namespace espalier::cuda
