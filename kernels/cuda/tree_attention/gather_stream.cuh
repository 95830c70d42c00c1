// Tokens copied 16 bytes a thread, each from wherever it lies.
#pragma once

#include "kernels/cuda/tree_attention/unit_stream.cuh"

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
      BarrierWait(SharedAddress(&block_.barriers->empty[place_.at]), place_.lap ^ 1);
      const uint32_t stage =
          block_.stages + place_.at * G::kStageBytes + (is_key_ ? 0 : G::kSideBytes);
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
          CopyAsync16(block_.rows + place_.at * kRowsBytes + lane * 16,
                      token_rows + s * kStageTokens + lane * 4, 16);
        }
        PrefetchTokensAhead(kv_rows, token_rows, s, num_stages);
      }
      BarrierArriveAfterCopies(SharedAddress(&block_.barriers->full[place_.at]));
      place_.Next(block_.num_stages);
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

}  // namespace espalier::cuda
