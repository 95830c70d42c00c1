// Tokens copied by the tensor memory accelerator (sm_90 and later), a group of neighbours an
// instruction; single tokens 16 bytes a thread.
#pragma once

#include "kernels/cuda/tree_attention/tensor_copy.cuh"
#include "kernels/cuda/tree_attention/unit_stream.cuh"

namespace espalier::cuda {

// Of each of a stage's sides, in shared memory: groups of 8 tokens, of each group blocks of 64
// dimensions, in each block 128 bytes a token. The 16-byte chunks of a block's row are permuted as
// the accelerator's 128-byte swizzle does it, and matrix products of warpgroups expect it.
template <int kDim>
struct OperandTile {
  static constexpr int kHeadDim = kDim;
  static constexpr int kBlockBytes = kGroupTokens * 128;
  static constexpr int kGroupBytes = kDim / 64 * kBlockBytes;
  static __device__ int Offset(int token, int chunk) {
    return token / 8 * kGroupBytes + chunk / 8 * kBlockBytes + token % 8 * 128 +
           ((chunk % 8 ^ token % 8) << 4);
  }
};

// A producer warp of K or V: the tokens [first_token, first_token + 32) of each stage.
template <int kHeadDim>
class TensorStream {
  using G = Geometry<kHeadDim>;
  using Tile = OperandTile<kHeadDim>;
  static constexpr uint32_t kAllGroups = 0x01010101;  // the first lane of each

 public:
  // `map` describes K or V, as `is_key` says which.
  __device__ TensorStream(const BlockState& block, const AttentionArguments& p,
                          const CUtensorMap& map, bool is_key, int first_token)
      : block_(block), p_(p), map_(map), is_key_(is_key), first_token_(first_token) {
    if (threadIdx.x % 32 == 0) PrefetchMap(map);
  }

  // Asks for what a partition's record says of its first stages.
  __device__ void Start(int partition) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const PlanRecord& record = RecordOf(p_, partition);
    num_known_ = __ldg(&record.num_start_stages);
#pragma unroll
    for (int i = 0; i < kStartStages; ++i) {
      ahead_[i] = 0;
      if (lane % kGroupTokens != 0) continue;
      ahead_[i] =
          __ldg(record.group_kv_rows + (i * kStageTokens + first_token_ + lane) / kGroupTokens);
    }
  }

  // After Start of the unit's partition.
  __device__ void Fill(const Unit& unit) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int num_stages = unit.partition.num_stages;
    const int32_t* kv_rows = p_.plan.token_kv_rows + unit.partition.token_begin;
    const uint32_t* token_rows = p_.plan.token_rows + unit.partition.token_begin;
    const auto* stages = reinterpret_cast<const PlanStage*>(
        reinterpret_cast<const int32_t*>(p_.plan.header) + unit.partition.stages_at);
    const int head_row = unit.kv_head * p_.plan.page_size;
    const bool brings_rows = is_key_ && first_token_ == 0;
    const uint64_t once = EvictFirst();
    const uint64_t again = EvictNormally();

    if (brings_rows) PrefetchFirstTokens(kv_rows, token_rows, num_stages);
    kv_rows += first_token_ + lane;
    if (num_known_ < kStartStages) {
#pragma unroll
      for (int i = 0; i < kStartStages; ++i) {
        if (i >= num_known_ && i < num_stages) ahead_[i] = __ldg(kv_rows + i * kStageTokens);
      }
    }
    for (int s = 0; s < num_stages; ++s) {
      const int now = ahead_[0];
#pragma unroll
      for (int i = 1; i < kStartStages; ++i) ahead_[i - 1] = ahead_[i];
      if (s + kStartStages < num_stages) {
        ahead_[kStartStages - 1] = __ldg(kv_rows + (s + kStartStages) * kStageTokens);
      }
      if (s == kFirstStages) BarrierWait(SharedAddress(&block_.barriers->queries), 0);
      BarrierWait(SharedAddress(&block_.barriers->empty[place_.at]), place_.lap ^ 1);
      const uint32_t full = SharedAddress(&block_.barriers->full[place_.at]);
      const uint32_t side =
          block_.stages + place_.at * G::kStageBytes + (is_key_ ? 0 : G::kSideBytes);
      const bool starts_group = lane % kGroupTokens == 0 && (now & kWholeGroup) != 0;
      const uint32_t groups = __ballot_sync(0xffffffff, starts_group);
      if (__any_sync(0xffffffff, (now & kWrittenNow) != 0)) AwaitKernelBefore();
      if (lane == 0) {
        ExpectBytes(full, __popc(groups) * Tile::kGroupBytes + (brings_rows ? kRowsBytes : 0));
        if (brings_rows) {
          const uint32_t rows = block_.rows + place_.at * kRowsBytes;
          CopyBulk(rows, token_rows + s * kStageTokens, kStageTokens * 4, full);
          CopyBulk(rows + kStageTokens * 4, stages + s, sizeof(PlanStage), full);
        }
      }
      __syncwarp();
      if (starts_group) {
        CopyRows(side + Tile::Offset(first_token_ + lane, 0), map_, (now & kKvRowMask) + head_row,
                 full, (now & kReadAgain) != 0 ? again : once);
      }
      if (groups == kAllGroups) {
        if (lane == 0) BarrierArriveAs(full, 32);
      } else {
        Gather(side, now, groups, head_row, once, again);
        BarrierArriveAfterCopies(full);
      }
      if (brings_rows) {
        PrefetchTokensAhead(kv_rows - lane, token_rows, s, num_stages);
      }
      place_.Next(block_.num_stages);
    }
  }

 private:
  // The tokens of the groups that are not whole, a lane has one of the warp's.
  __device__ void Gather(uint32_t side, int kv_rows, uint32_t groups, int head_row, uint64_t once,
                         uint64_t again) const {
    constexpr int kRowsAtOnce = 32 / G::kChunks;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int chunk = lane % G::kChunks;
    const auto* from = static_cast<const std::byte*>(is_key_ ? p_.k : p_.v) +
                       int64_t{head_row} * G::kRowBytes + chunk * 16;
#pragma unroll 1
    for (uint32_t rest = kAllGroups & ~groups; rest != 0; rest &= rest - 1) {
      const int group = __ffs(static_cast<int>(rest)) - 1;
#pragma unroll
      for (int i = 0; i < kGroupTokens; i += kRowsAtOnce) {
        const int token = group + i + lane / G::kChunks;
        const int kv_row = __shfl_sync(0xffffffff, kv_rows, token);
        const bool absent = kv_row == kAbsentToken;
        CopyAsync16(side + Tile::Offset(first_token_ + token, chunk),
                    from + int64_t{absent ? 0 : kv_row & kKvRowMask} * G::kRowBytes,
                    absent ? 0 : 16, (kv_row & kReadAgain) != 0 ? again : once);
      }
    }
  }

  const BlockState& block_;
  const AttentionArguments& p_;
  const CUtensorMap& map_;
  const bool is_key_;
  const int first_token_;
  int ahead_[kStartStages];  // of the list, the words of the next stages
  int num_known_;            // stages that the record tells of
  RingPlace place_;
};

}  // namespace espalier::cuda
