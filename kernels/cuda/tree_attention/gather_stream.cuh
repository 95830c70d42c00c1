// Tokens brought 16 bytes a thread, each from wherever it lies: copied, or widened on the way.
#pragma once

#include "kernels/cuda/tree_attention/unit_stream.cuh"
#include "kernels/cuda/tree_attention/widen_e4m3.cuh"

namespace espalier::cuda {

// A producer warp of K or V. Tile::Offset says where a 16-byte chunk of a token's row lies within a
// side of a stage.
template <typename Tile>
class GatherStream {
  using G = Geometry<Tile::kHeadDim>;

 public:
  __device__ GatherStream(const BlockState& block, const AttentionArguments& p, bool is_key)
      : block_(block), p_(p), is_key_(is_key) {}

  __device__ void Fill(const Unit& unit) {
    constexpr int kRowsAtOnce = 32 / G::kChunks;
    constexpr int kWords = kStageTokens / 32;  // of a stage's list that a lane holds
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int chunk = lane % G::kChunks;
    const int num_stages = unit.partition.num_stages;
    const int32_t* kv_rows = p_.plan.token_kv_rows + unit.partition.token_begin;
    const uint32_t* token_rows = p_.plan.token_rows + unit.partition.token_begin;
    const auto* side = static_cast<const std::byte*>(is_key_ ? p_.k : p_.v) +
                       int64_t{unit.kv_head} * p_.plan.page_size * G::kRowBytes + chunk * 16;
    AwaitKernelBefore();
    const uint64_t once = EvictFirst();
    const uint64_t again = EvictNormally();

    if (is_key_) PrefetchFirstTokens(kv_rows, token_rows, num_stages);
    int now[kWords];
    int next[kWords];
    const auto load = [&](int s, int(&to)[kWords]) {
#pragma unroll
      for (int word = 0; word < kWords; ++word) {
        to[word] = s < num_stages ? __ldg(kv_rows + s * kStageTokens + word * 32 + lane) : 0;
      }
    };
    load(0, now);
    for (int s = 0; s < num_stages; ++s) {
      load(s + 1, next);
      if (s == kFirstStages) BarrierWait(SharedAddress(&block_.barriers->queries), 0);
      BarrierWait(block_.ring.EmptyOf(place_.at), place_.lap ^ 1);
      const uint32_t stage =
          block_.ring.stages + place_.at * G::kStageBytes + (is_key_ ? 0 : G::kSideBytes);
#pragma unroll
      for (int i = 0; i < kStageTokens; i += kRowsAtOnce) {
        const int token = i + lane / G::kChunks;
        const int kv_row = __shfl_sync(0xffffffff, now[i / 32], token % 32);
        const bool absent = kv_row == kAbsentToken;
        CopyAsync16(stage + Tile::Offset(token, chunk),
                    side + int64_t{absent ? 0 : kv_row & kKvRowMask} * G::kRowBytes,
                    absent ? 0 : 16, (kv_row & kReadAgain) != 0 ? again : once);
      }
      if (is_key_) {
        if (lane < kStageTokens / 4) {
          CopyAsync16(block_.ring.rows + place_.at * kRowsBytes + lane * 16,
                      token_rows + s * kStageTokens + lane * 4, 16);
        }
        PrefetchTokensAhead(kv_rows, token_rows, s, num_stages);
      }
      BarrierArriveAfterCopies(block_.ring.FullOf(place_.at));
      place_.Next(block_.ring.num_stages);
#pragma unroll
      for (int word = 0; word < kWords; ++word) now[word] = next[word];
    }
  }

 private:
  const BlockState& block_;
  const AttentionArguments& p_;
  const bool is_key_;
  RingPlace place_;
};

// The same of 8-bit KV, for the tokens [first_token, first_token + kWarpTokens) of each stage: they
// come by way of registers, those of the next stage while this one's are widened.
template <typename Tile>
class WideningGather {
  static constexpr int kHeadDim = Tile::kHeadDim;
  using G = Geometry<kHeadDim>;
  static constexpr int kWarpTokens = 32;
  static constexpr int kChunks = kHeadDim / 16;  // of a row as it is stored
  static constexpr int kRowsAtOnce = 32 / kChunks;
  static constexpr int kTimes = kWarpTokens / kRowsAtOnce;

 public:
  __device__ WideningGather(const BlockState& block, const AttentionArguments& p, bool is_key,
                            int first_token)
      : block_(block), p_(p), is_key_(is_key), first_token_(first_token) {}

  __device__ void Fill(const Unit& unit) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int chunk = lane % kChunks;
    const int num_stages = unit.partition.num_stages;
    const int32_t* kv_rows =
        p_.plan.token_kv_rows + unit.partition.token_begin + first_token_ + lane;
    const uint32_t* token_rows = p_.plan.token_rows + unit.partition.token_begin;
    const auto* side = static_cast<const std::byte*>(is_key_ ? p_.k : p_.v) +
                       int64_t{unit.kv_head} * p_.plan.page_size * kHeadDim + chunk * 16;
    const bool brings_rows = is_key_ && first_token_ == 0;
    AwaitKernelBefore();
    uint4 now[kTimes];
    uint4 next[kTimes];
    const auto load = [&](int s, uint4(&to)[kTimes]) {
      const int word = s < num_stages ? __ldg(kv_rows + s * kStageTokens) : kAbsentToken;
#pragma unroll
      for (int i = 0; i < kTimes; ++i) {
        const int row = __shfl_sync(0xffffffff, word, i * kRowsAtOnce + lane / kChunks);
        to[i] = make_uint4(0, 0, 0, 0);
        if (row == kAbsentToken) continue;
        to[i] = *reinterpret_cast<const uint4*>(side + int64_t{row & kKvRowMask} * kHeadDim);
      }
    };
    load(0, now);
    for (int s = 0; s < num_stages; ++s) {
      load(s + 1, next);
      BarrierWait(block_.ring.EmptyOf(place_.at), place_.lap ^ 1);
      const uint32_t stage =
          block_.ring.stages + place_.at * G::kStageBytes + (is_key_ ? 0 : G::kSideBytes);
#pragma unroll
      for (int i = 0; i < kTimes; ++i) {
        const int token = first_token_ + i * kRowsAtOnce + lane / kChunks;
        uint4 wide[2];
        WidenSixteen(now[i], wide);
        StoreShared(stage + Tile::Offset(token, chunk * 2), wide[0]);
        StoreShared(stage + Tile::Offset(token, chunk * 2 + 1), wide[1]);
        now[i] = next[i];
      }
      if (brings_rows && lane < kStageTokens / 4) {
        CopyAsync16(block_.ring.rows + place_.at * kRowsBytes + lane * 16,
                    token_rows + s * kStageTokens + lane * 4, 16);
        WaitForCopies();
      }
      BarrierArrive(block_.ring.FullOf(place_.at));
      place_.Next(block_.ring.num_stages);
    }
  }

 private:
  const BlockState& block_;
  const AttentionArguments& p_;
  const bool is_key_;
  const int first_token_;
  RingPlace place_;
};

}  // namespace espalier::cuda
