// Rows on their way through a unit's stages on Hopper: products of whole warpgroups that run while
// the lanes weigh. For sm_90a alone.
#pragma once

#include "kernels/cuda/tree_attention/packed_rows.cuh"
#include "kernels/cuda/tree_attention/tensor_copy.cuh"
#include "kernels/cuda/tree_attention/tensor_stream.cuh"
#include "kernels/cuda/tree_attention/warpgroup_mma.cuh"

namespace espalier::cuda {

// What is the same for all lanes, and the compiler is to know that: then it keeps loops, branches
// and operands' addresses out of the lanes' instructions and registers, of which a stage has no
// room.
template <typename T>
__device__ T Uniform(T x) {
  return __shfl_sync(0xffffffff, x, 0);
}

// Starts score = queries * keys^T, in steps of 16 dimensions: 32 bytes of every key.
template <typename T, int kHeadDim>
__device__ void StartScore(const uint32_t (&queries)[Geometry<kHeadDim>::kKeySteps][4],
                           uint32_t keys, float (&score)[kStageTokens / 8][4]) {
  using Tile = OperandTile<kHeadDim>;
  const SharedOperand first(keys, /*across=*/0, /*along=*/Tile::kGroupBytes);
#pragma unroll
  for (int step = 0; step < Geometry<kHeadDim>::kKeySteps; ++step) {
    const uint64_t k = first.At(step / 4 * Tile::kBlockBytes + step % 4 * 32);
    if (step == 0) {
      StartProduct<T, /*kAccumulate=*/false>(score, queries[step], k);
    } else {
      StartProduct<T, /*kAccumulate=*/true>(score, queries[step], k);
    }
  }
  CommitProducts();
}

template <typename T>
__device__ void PackWeights(const float (&weight)[kStageTokens / 8][4],
                            uint32_t (&packed)[kStageTokens / 16][4]) {
#pragma unroll
  for (int block = 0; block < kStageTokens / 16; ++block) {
    const float(&low)[4] = weight[block * 2];
    const float(&high)[4] = weight[block * 2 + 1];
    packed[block][0] = Pack<T>(low[0], low[1]);
    packed[block][1] = Pack<T>(low[2], low[3]);
    packed[block][2] = Pack<T>(high[0], high[1]);
    packed[block][3] = Pack<T>(high[2], high[3]);
  }
}

// A warp's way through a unit's stages. What it decides by must be the same in all warps of a
// warpgroup, which start products together: what the plan says, never what has come already.
class UnitStages {
 public:
  // `token_rows` is where the ring's stages say who sees them.
  __device__ UnitStages(const Ring& ring, const std::byte* token_rows, int num_stages,
                        RingPlace* place)
      : ring_(ring), token_rows_(token_rows), left_(num_stages), place_(place) {}
  __device__ bool AtEnd() const { return left_ == 0; }
  __device__ int place() const { return place_->at; }
  __device__ const uint32_t* TokenRows(int at) const {
    return reinterpret_cast<const uint32_t*>(token_rows_ + at * kRowsBytes);
  }
  // Waits for the stage at hand. What the plan says of it: PlanStage::seen.
  __device__ uint32_t Await() {
    if ((seen_ & kNotThere) != 0) {
      BarrierWait(ring_.FullOf(place_->at), place_->lap);
      seen_ = Uniform(TokenRows(place_->at)[kStageTokens]);
    }
    return seen_;
  }
  __device__ void Next() {
    place_->Next(ring_.num_stages);
    --left_;
    seen_ = kNotThere;
  }
  // Spares Await where the stage at hand has come.
  __device__ void Peek() {
    if (__all_sync(0xffffffff, BarrierHasPassed(ring_.FullOf(place_->at), place_->lap))) {
      seen_ = Uniform(TokenRows(place_->at)[kStageTokens]);
    }
  }

 private:
  static constexpr uint32_t kNotThere = 1u << 31;
  const Ring& ring_;
  const std::byte* token_rows_;
  int left_;
  RingPlace* place_;
  uint32_t seen_ = kNotThere;
};

// A warp's rows on the way through a unit's stages. The product of a stage's weights and values
// runs while the next stage's scores are weighed, and until then holds its stage. Sums of weights
// are products, too, with ones: so they are sums of the weights as the values meet them, rounded.
template <typename T, int kHeadDim, bool kPairs>
class RowsInFlight {
  using G = Geometry<kHeadDim>;
  using Score = float[kStageTokens / 8][4];

 public:
  // `queries` is where the warp's are, and `ones` where 16 x 8 ones, both in shared memory.
  // kPairs and `in_pair` are those of ReleaseStage.
  __device__ RowsInFlight(const Ring& ring, bool in_pair, uint32_t ones, const WarpTile& group,
                          const WarpTile& tile, uint32_t queries, float scale)
      : ring_(ring),
        in_pair_(in_pair),
        keys_(WithinBlock(ring.stages)),
        ones_(WithinBlock(ones)),
        tile_(tile),
        scale_(scale),
        group_sees_(kSomeSee * 0xf << group.row_begin / kWarpRows),
        some_see_(kSomeSee << tile.row_begin / kWarpRows),
        all_see_(kAllSee << tile.row_begin / kWarpRows) {
    using Rows = RowTile<kHeadDim>;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int step = 0; step < G::kKeySteps; ++step) {
      LoadMatrices(queries_[step],
                   Rows::AdvanceChunks(queries + Rows::Offset(lane % 16, lane / 16), step));
    }
    state_.highest[0] = state_.highest[1] = kNever;
  }

  // Takes those of a unit's stages that are the tile's.
  __device__ void Take(UnitStages* stages) {
    for (int s = 0; !stages->AtEnd(); ++s) {
      const int at = stages->place();
      const uint32_t seen = stages->Await();
      stages->Next();
      if ((s & (tile_.ways - 1)) != tile_.way || (seen & group_sees_) == 0) {
        Skip(at);
        continue;
      }
      Score score;
      if ((seen & kGathered) != 0) ProductsSeeCopies();
      ProductsFence();
      StartScore<T, kHeadDim>(queries_, KeysOf(at), score);
      // Where no stage is held, weights are 0, and any values will do.
      StartValues(held_ < 0 ? at : held_);
      stages->Peek();
      AwaitProducts<1>(score);
      // Apart from the weights, lest what is held be awaited before this.
      float highest[2];
      if ((seen & some_see_) != 0) {
        if ((seen & all_see_) == 0) MaskUnseen(seen, stages->TokenRows(at), score);
        HighestOf(score, highest);
      }
      AwaitHeld();
      if ((seen & some_see_) != 0) {
        Raise(highest);
        Weigh(score);
        PackWeights<T>(score, weights_);
      } else {
        SetWeightsToZero();
      }
      held_ = at;
      skipped_ = 0;
    }
    Settle();
    // All lanes of a quad have their rows' sums, where a share is asked of each.
    const bool is_first = threadIdx.x % 4 == 0;
    state_.sum[0] = is_first ? sum_[0][0] : 0.0f;
    state_.sum[1] = is_first ? sum_[0][2] : 0.0f;
  }

  __device__ WarpState<kHeadDim>& state() { return state_; }

 private:
  // A stage that the warpgroup does not take.
  __device__ void Skip(int at) {
    // Held through a ring of such stages, one would never be free again.
    if (++skipped_ > 1) Settle();
    __syncwarp();
    ReleaseStage<kPairs>(ring_, at, in_pair_);
  }

  // Ends with the stage that is held, if there is one.
  __device__ void Settle() {
    if (held_ < 0) return;
    ProductsFence();
    StartValues(held_);
    AwaitHeld();
    SetWeightsToZero();
    held_ = -1;
  }

  // Starts out += weights * values, and the weights' sums.
  __device__ void StartValues(int at) {
    const uint32_t values = KeysOf(at) + G::kSideBytes;
    using Tile = OperandTile<kHeadDim>;
    const SharedOperand first(values, /*across=*/Tile::kBlockBytes, /*along=*/Tile::kGroupBytes);
#pragma unroll
    for (int block = 0; block < kStageTokens / 16; ++block) {
      StartProductByRows<T>(state_.out, weights_[block], first.At(block * 2 * Tile::kGroupBytes));
    }
#pragma unroll
    for (int block = 0; block < kStageTokens / 16; ++block) {
      StartProductOfOnes<T>(sum_, weights_[block], ones_);
    }
    CommitProducts();
  }

  __device__ void AwaitHeld() {
    AwaitProducts<0>(state_.out);
    AwaitProducts<0>(sum_);
    __syncwarp();
    if (held_ >= 0) ReleaseStage<kPairs>(ring_, held_, in_pair_);
  }

  __device__ void MaskUnseen(uint32_t seen, const uint32_t* token_rows, Score& score) const {
    if ((seen & (kGathered | kCausal)) != 0) {
      Mask(token_rows, tile_, score);
    } else {
      MaskGroups(token_rows, tile_, score);
    }
  }

  // Weights are relative to state_.highest, which only rises when a score is above it by more than
  // kSlack: seldom, and so what was added before seldom has to be scaled. In 16 bits weights lose
  // no accuracy by being as large as 2^kSlack, and sums are of the same 16 bits.
  __device__ void Raise(const float (&highest)[2]) {
    bool rises = false;
    float raised[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      raised[half] = highest[half] * scale_;
      rises |= raised[half] > state_.highest[half] + kSlack;
    }
    if (!__any_sync(0xffffffff, rises)) return;
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      raised[half] = fmaxf(state_.highest[half], raised[half]);
      factor[half] = Exp2(state_.highest[half] - Finite(raised[half]));
      state_.highest[half] = raised[half];
    }
    Rescale(factor, &state_);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum_[0][j] *= factor[j / 2];
  }

  __device__ void Weigh(Score& score) const {
    const float offset[2] = {-Finite(state_.highest[0]), -Finite(state_.highest[1])};
#pragma unroll
    for (auto& tile : score) {
#pragma unroll
      for (int j = 0; j < 4; ++j) tile[j] = Exp2(fmaf(tile[j], scale_, offset[j / 2]));
    }
  }

  __device__ void SetWeightsToZero() {
    // Volatile, lest it be done in any case.
#pragma unroll
    for (auto& block : weights_) {
#pragma unroll
      for (uint32_t& pair : block) asm volatile("mov.b32 %0, 0;" : "=r"(pair));
    }
  }

  // An address as operands of products have it: without the bits that say which block of a cluster
  // it is in.
  static __device__ uint32_t WithinBlock(uint32_t address) {
    return kPairs ? address & 0x3ffff : address;
  }
  __device__ uint32_t KeysOf(int at) const { return keys_ + at * G::kStageBytes; }

  static constexpr float kSlack = 6;  // log2

  const Ring& ring_;
  const bool in_pair_;
  const uint32_t keys_;  // of the ring's first stage
  const uint32_t ones_;
  const WarpTile& tile_;
  const float scale_;
  const uint32_t group_sees_;
  const uint32_t some_see_;
  const uint32_t all_see_;
  uint32_t queries_[G::kKeySteps][4];
  WarpState<kHeadDim> state_ = {};
  float sum_[1][4] = {};
  uint32_t weights_[kStageTokens / 16][4] = {};
  int held_ = -1;    // place of the stage whose values are still to be added
  int skipped_ = 0;  // stages since
};

}  // namespace espalier::cuda
