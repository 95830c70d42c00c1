// KV of 8-bit elements on Hopper: TensorStream copies it as it is stored to a ring of its own, and
// warps beside it widen it from there into the ring that consumers drain.
#pragma once

#include "kernels/cuda/tree_attention/tensor_stream.cuh"
#include "kernels/cuda/tree_attention/widen_e4m3.cuh"

namespace espalier::cuda {

// Of each of a stage's sides as it is stored: a row of head_dim bytes a token.
template <int kDim>
struct NarrowTile {
  static constexpr int kRowBytes = kDim;
  static __device__ int Offset(int token, int chunk) { return token * kDim + chunk * 16; }
};

// Stages (K, then V), their token rows, barriers.
template <int kHeadDim>
struct NarrowLayout {
  static constexpr int kSideBytes = kStageTokens * kHeadDim;
  static constexpr int kStageBytes = 2 * kSideBytes;
  static constexpr int kNumStages = (48 << 10) / kStageBytes;
  static constexpr int kRows = kNumStages * kStageBytes;
  static constexpr int kBarriers = kRows + kNumStages * kRowsBytes;
  static constexpr int kBytes = kBarriers + 2 * kNumStages * 8;
  static __device__ Ring RingAt(uint32_t at) {
    return {.stages = at,
            .rows = at + kRows,
            .full = at + kBarriers,
            .empty = at + kBarriers + kNumStages * 8,
            .num_stages = kNumStages};
  }
};

// A warp that widens K or V: the tokens [first_token, first_token + kWarpTokens) of each stage.
template <int kHeadDim>
class WideningStream {
  using G = Geometry<kHeadDim>;
  using Narrow = NarrowLayout<kHeadDim>;
  using Tile = OperandTile<kHeadDim>;

 public:
  __device__ WideningStream(const Ring& from, const Ring& to, bool is_key, int first_token)
      : from_(from), to_(to), is_key_(is_key), first_token_(first_token) {}

  __device__ void Fill(const Unit& unit) {
    for (int s = 0; s < unit.partition.num_stages; ++s) {
      BarrierWait(from_.FullOf(narrow_.at), narrow_.lap);
      BarrierWait(to_.EmptyOf(place_.at), place_.lap ^ 1);
      Widen(from_.stages + narrow_.at * Narrow::kStageBytes + (is_key_ ? 0 : Narrow::kSideBytes),
            to_.stages + place_.at * G::kStageBytes + (is_key_ ? 0 : G::kSideBytes));
      const int lane = static_cast<int>(threadIdx.x) % 32;
      if (is_key_ && first_token_ == 0 && lane < kRowsBytes / 16) {
        StoreShared(to_.rows + place_.at * kRowsBytes + lane * 16,
                    LoadShared(from_.rows + narrow_.at * kRowsBytes + lane * 16));
      }
      ProductsSeeCopies();
      __syncwarp();
      if (lane == 0) {
        BarrierArrive(from_.EmptyOf(narrow_.at));
        BarrierArriveAs(to_.FullOf(place_.at), 32);
      }
      narrow_.Next(from_.num_stages);
      place_.Next(to_.num_stages);
    }
  }

 private:
  __device__ void Widen(uint32_t from, uint32_t to) const {
    // Eight lanes have two tokens; of these the odd one is a block ahead, so that reads and writes
    // meet no bank twice.
    constexpr int kBlocks = kHeadDim / 64;
    constexpr int kGroups = kWarpTokens / kGroupTokens;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int token = first_token_ + lane / 4;
#pragma unroll
    for (int pass = 0; pass < kBlocks; ++pass) {
      const int chunk = (pass + token) % kBlocks * 4 + lane % 4;
      uint4 narrow[kGroups];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        narrow[group] = LoadShared(from + NarrowTile<kHeadDim>::Offset(token, chunk) +
                                   group * kGroupTokens * kHeadDim);
      }
      const uint32_t first = to + Tile::Offset(token, chunk * 2);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        uint4 wide[2];
        WidenSixteen(narrow[group], wide);
        StoreShared(first + group * Tile::kGroupBytes, wide[0]);
        StoreShared((first ^ 16) + group * Tile::kGroupBytes, wide[1]);
      }
    }
  }

  const Ring& from_;
  const Ring& to_;
  const bool is_key_;
  const int first_token_;
  RingPlace narrow_;
  RingPlace place_;
};

}  // namespace espalier::cuda
