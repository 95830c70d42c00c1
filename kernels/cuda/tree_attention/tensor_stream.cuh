// Tokens copied by the tensor memory accelerator (sm_90 and later), a group of neighbours an
// instruction; single tokens 16 bytes a thread.
#pragma once

#include "kernels/cuda/tree_attention/cluster.cuh"
#include "kernels/cuda/tree_attention/tensor_copy.cuh"
#include "kernels/cuda/tree_attention/unit_stream.cuh"

namespace espalier::cuda {

// Of each of a stage's sides, in shared memory: groups of 8 tokens, of each group blocks of 64
// dimensions, in each block 128 bytes a token. The 16-byte chunks of a block's row are permuted as
// the accelerator's 128-byte swizzle does it, and matrix products of warpgroups expect it.
template <int kDim>
struct OperandTile {
  static constexpr int kHeadDim = kDim;
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kBlockBytes = kGroupTokens * 128;
  static constexpr int kGroupBytes = kDim / 64 * kBlockBytes;
  static __device__ int Offset(int token, int chunk) {
    return token / 8 * kGroupBytes + chunk / 8 * kBlockBytes + token % 8 * 128 +
           ((chunk % 8 ^ token % 8) << 4);
  }
};

// Tokens of a stage that a producer warp of K or V brings, a lane's word of the list each.
constexpr int kWarpTokens = 32;
constexpr uint32_t kAllGroups = 0x01010101;  // the first lane of each

// Releases of a warp after which a stage is free. Where copies go to the rings of both blocks of a
// cluster, at the same places, warps of both have drained it then.
template <bool kPairs>
constexpr int kReleases = kPairs ? 2 : 1;

// Lanes of a warp, once each has read the stage. `in_pair`: the unit is one of a pair, to which
// copies may come from the other block.
template <bool kPairs>
__device__ inline void ReleaseStage(const Ring& ring, int at, bool in_pair) {
  if (threadIdx.x % 32 != 0) return;
  if constexpr (!kPairs) {
    BarrierArrive(ring.EmptyOf(at));
  } else if (in_pair) {
    BarrierArrive(ring.EmptyOf(at));
    BarrierArriveAtPeer(ring.EmptyOf(at));
  } else {
    BarrierArriveAs(ring.EmptyOf(at), kReleases<kPairs>);
  }
}

// A producer warp's way along the list of KV rows: words are asked for kStartStages before they are
// needed, those of a block's first unit before the list could be.
class RowsAhead {
 public:
  // Takes what a partition's record says of its first stages. `first_token` is the warp's first of
  // a stage. Plain loads: read-only ones the compiler moves behind barriers.
  __device__ void Start(const AttentionArguments& p, int partition, int first_token) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const PlanRecord& record = RecordOf(p, partition);
    num_known_ = record.num_start_stages;
#pragma unroll
    for (int i = 0; i < kStartStages; ++i) {
      ahead_[i] = 0;
      if (lane % kGroupTokens != 0) continue;
      ahead_[i] = record.group_kv_rows[(i * kStageTokens + first_token + lane) / kGroupTokens];
    }
  }

  // The lane's word of the first stage, if the record tells of one.
  __device__ int First() const { return ahead_[0]; }
  __device__ int num_known() const { return num_known_; }

  // After Start of the partition. `kv_rows` is the lane's word of the first stage, here and below.
  __device__ void Begin(const int32_t* kv_rows, int num_stages) {
    if (num_known_ >= kStartStages) return;
#pragma unroll
    for (int i = 0; i < kStartStages; ++i) {
      if (i >= num_known_ && i < num_stages) ahead_[i] = __ldg(kv_rows + i * kStageTokens);
    }
  }

  // The lane's word of `stage`; for one after the other.
  __device__ int Take(const int32_t* kv_rows, int stage, int num_stages) {
    const int now = ahead_[0];
#pragma unroll
    for (int i = 1; i < kStartStages; ++i) ahead_[i - 1] = ahead_[i];
    if (stage + kStartStages < num_stages) {
      ahead_[kStartStages - 1] = __ldg(kv_rows + (stage + kStartStages) * kStageTokens);
    }
    return now;
  }

 private:
  int ahead_[kStartStages];
  int num_known_;  // stages that the record tells of
};

// What of a unit a producer warp of K or V reads.
struct UnitLists {
  __device__ UnitLists(const AttentionArguments& p, const Unit& unit, bool is_key, int first_token)
      : num_stages(unit.partition.num_stages),
        head_row(unit.kv_head * p.plan.page_size),
        kv_rows(p.plan.token_kv_rows + unit.partition.token_begin),
        token_rows(p.plan.token_rows + unit.partition.token_begin),
        stages(reinterpret_cast<const PlanStage*>(reinterpret_cast<const int32_t*>(p.plan.header) +
                                                  unit.partition.stages_at)),
        side(static_cast<const std::byte*>(is_key ? p.k : p.v)),
        brings_rows(!is_key && first_token == 0) {}
  int num_stages;
  int head_row;  // KV row of the kv head's first slot in page 0
  const int32_t* kv_rows;
  const uint32_t* token_rows;
  const PlanStage* stages;
  const std::byte* side;
  bool brings_rows;  // and who sees the tokens
};

// What is not read again makes room first. (The words that createpolicy gives: they would take
// registers.)
__device__ inline uint64_t PolicyOf(int kv_row) {
  return (kv_row & kReadAgain) != 0 ? 0x1000000000000000u : 0x12f0000000000000u;
}

// Asks for a warp's tokens of stage `s`: whole groups by the copy engine, the others 16 bytes a
// thread. `barrier` passes when all lanes' copies have landed, and who sees the tokens at
// `rows_to`, where the warp brings that. Chunk c of token t goes to `to + Offset(t, c)`.
// kAreWholeGroups: the caller knows that all are, and none kWrittenNow.
template <int kRowBytes, bool kPairs, bool kAreWholeGroups, typename OffsetOf>
__device__ void AskForTokens(const UnitLists& unit, int s, int kv_row, const CUtensorMap& map,
                             uint32_t to, const OffsetOf& offset, uint32_t rows_to,
                             uint32_t barrier) {
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kRowsAtOnce = 32 / kChunks;
  static_assert(kGroupTokens % kRowsAtOnce == 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  bool starts_group = lane % kGroupTokens == 0;
  uint32_t groups = kAllGroups;
  if constexpr (!kAreWholeGroups) {
    starts_group &= (kv_row & kWholeGroup) != 0;
    groups = __ballot_sync(0xffffffff, starts_group);
    if (__any_sync(0xffffffff, (kv_row & kWrittenNow) != 0)) AwaitKernelBefore();
  }
  if (lane == 0) {
    ExpectBytes(barrier,
                __popc(groups) * kGroupTokens * kRowBytes + (unit.brings_rows ? kRowsBytes : 0));
  }
  __syncwarp();
  if (starts_group) {
    const int row = (kv_row & kKvRowMask) + unit.head_row;
    const bool for_both = kPairs && kv_row != kAbsentToken && (kv_row & kForBoth) != 0;
    if (!for_both) {
      CopyRows(to + offset(lane, 0), map, row, barrier, PolicyOf(kv_row));
    } else if (lane / kGroupTokens % 2 == ClusterRank()) {
      CopyRowsToBoth(to + offset(lane, 0), map, row, barrier, PolicyOf(kv_row));
    }
  }
  if (unit.brings_rows && lane == 0) {
    CopyBulk(rows_to, unit.token_rows + s * kStageTokens, kStageTokens * 4, barrier);
    CopyBulk(rows_to + kStageTokens * 4, unit.stages + s, sizeof(PlanStage), barrier);
  }
  if (groups == kAllGroups) {
    if (lane == 0) BarrierArriveAs(barrier, 32);
    return;
  }
  const int chunk = lane % kChunks;
  const std::byte* from = unit.side + int64_t{unit.head_row} * kRowBytes + chunk * 16;
#pragma unroll 1
  for (uint32_t rest = kAllGroups & ~groups; rest != 0; rest &= rest - 1) {
    const int group = __ffs(static_cast<int>(rest)) - 1;
#pragma unroll
    for (int i = 0; i < kGroupTokens; i += kRowsAtOnce) {
      const int token = group + i + lane / kChunks;
      const int row = __shfl_sync(0xffffffff, kv_row, token);
      const bool absent = row == kAbsentToken;
      CopyAsync16(to + offset(token, chunk),
                  from + int64_t{absent ? 0 : row & kKvRowMask} * kRowBytes, absent ? 0 : 16,
                  PolicyOf(row));
    }
  }
  BarrierArriveAfterCopies(barrier);
}

// A producer warp of K or V: the tokens [first_token, first_token + kWarpTokens) of each stage,
// into a ring; of stages that are kForBoth half of the groups, into both rings. Tile::Offset says
// where a 16-byte chunk of a token's row lies within a side of a stage.
template <typename Tile, bool kPairs>
class TensorStream {
  static constexpr int kSideBytes = kStageTokens * Tile::kRowBytes;

 public:
  // `map` describes K or V, as `is_key` says which. `queries` is a barrier: only kFirstStages are
  // asked for before it has passed once. `rows` was started for the block's first unit.
  __device__ TensorStream(const Ring& ring, uint32_t queries, const AttentionArguments& p,
                          const CUtensorMap& map, bool is_key, int first_token,
                          const RowsAhead& rows)
      : ring_(ring),
        queries_(queries),
        p_(p),
        map_(map),
        is_key_(is_key),
        first_token_(first_token),
        rows_(rows) {}

  // Asks for the first stage of the block's first unit, if its record tells of it, before all else.
  __device__ void Start(const Unit& first) {
    const int kv_row = rows_.First();
    if (first.kv_head < 0 || rows_.num_known() == 0) return;
    if (__any_sync(0xffffffff, (kv_row & kWrittenNow) != 0)) return;
    const UnitLists lists(p_, first, is_key_, first_token_);
    Ask</*kAreWholeGroups=*/true>(lists, 0, kv_row);
    has_started_ = true;
  }

  __device__ void Fill(const Unit& unit) {
    if (!first_unit_) rows_.Start(p_, unit.index, first_token_);
    first_unit_ = false;
    const UnitLists lists(p_, unit, is_key_, first_token_);
    const int32_t* kv_rows = lists.kv_rows + first_token_ + threadIdx.x % 32;
    if (lists.brings_rows) PrefetchFirstTokens(lists.kv_rows, lists.token_rows, lists.num_stages);
    rows_.Begin(kv_rows, lists.num_stages);
    for (int s = 0; s < lists.num_stages; ++s) {
      const int kv_row = rows_.Take(kv_rows, s, lists.num_stages);
      if (s == 0 && has_started_) continue;
      if (s == kFirstStages) BarrierWait(queries_, 0);
      BarrierWait(ring_.EmptyOf(place_.at), place_.lap ^ 1);
      Ask</*kAreWholeGroups=*/false>(lists, s, kv_row);
      if (lists.brings_rows) {
        PrefetchTokensAhead(lists.kv_rows, lists.token_rows, s, lists.num_stages);
      }
    }
    has_started_ = false;
  }

  // Waits until the ring has been drained, by the other block, too.
  __device__ void Drain() {
    for (int i = 0; i < ring_.num_stages; ++i) {
      BarrierWait(ring_.EmptyOf(place_.at), place_.lap ^ 1);
      place_.Next(ring_.num_stages);
    }
  }

 private:
  // Into the ring's next place.
  template <bool kAreWholeGroups>
  __device__ void Ask(const UnitLists& lists, int s, int kv_row) {
    AskForTokens<Tile::kRowBytes, kPairs, kAreWholeGroups>(
        lists, s, kv_row, map_,
        ring_.stages + place_.at * 2 * kSideBytes + (is_key_ ? 0 : kSideBytes),
        [&](int token, int chunk) { return Tile::Offset(first_token_ + token, chunk); },
        ring_.rows + place_.at * kRowsBytes, ring_.FullOf(place_.at));
    place_.Next(ring_.num_stages);
  }

  const Ring& ring_;
  const uint32_t queries_;
  const AttentionArguments& p_;
  const CUtensorMap& map_;
  const bool is_key_;
  const int first_token_;
  bool first_unit_ = true;
  bool has_started_ = false;  // the unit: its first stage has been asked for
  RowsAhead rows_;
  RingPlace place_;
};

}  // namespace espalier::cuda
