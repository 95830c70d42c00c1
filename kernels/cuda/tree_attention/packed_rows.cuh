// What a consumer warp does with its 16 packed rows besides the products: queries in, masks, the
// online softmax, states merged; rows out are in row_output.cuh. Both attention kernels hold scores
// and outputs as the accumulators of 16 x 8 tiles that warp_mma.cuh describes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/tree_attention/async_copy.cuh"
#include "kernels/cuda/tree_attention/attention_kernels.h"
#include "kernels/cuda/tree_attention/unit_stream.cuh"
#include "kernels/cuda/tree_attention/warp_mma.cuh"

namespace espalier::cuda {

constexpr int kConsumers = 8;
static_assert(kMostPackedRows == kConsumers * kWarpRows);
constexpr int kConsumerBarrier = 1;  // bar.sync; 0 is __syncthreads

constexpr float kNever = -INFINITY;

// Rows of 16-bit elements in shared memory, kRowBytes apart; their 16-byte chunks are permuted so
// that the same chunk of eight neighbouring rows lies in different banks.
template <int kDim>
struct RowTile {
  static constexpr int kHeadDim = kDim;
  static __device__ int Offset(int row, int chunk) {
    return row * Geometry<kDim>::kRowBytes + ((chunk ^ (row & 7)) << 4);
  }
  // From a row's address at chunk 0 or 1 to that 2 * pair chunks further. Tiles are aligned to
  // rows.
  static __device__ uint32_t AdvanceChunks(uint32_t address, int pair) {
    return address ^ (pair << 5);
  }
};

// The online softmax of a warp's 16 rows: of each lane's rows g and g + 8 the highest score so far
// and the lane's share of the denominator, both in log2 units, and the output before division.
template <int kHeadDim>
struct WarpState {
  // What a warp hands over when it merges: its accumulators, two maxima and two sums a lane.
  static constexpr int kFloats = Geometry<kHeadDim>::kOutTiles * 4 + 4;

  float out[Geometry<kHeadDim>::kOutTiles][4];
  float highest[2];
  float sum[2];
};

// What a consumer warp works on: 16 packed rows, of which it takes one stage in `ways`.
struct WarpTile {
  int row_begin;  // packed, within the partition
  int row_end;    // at most row_begin + 16; not above row_begin: no rows
  int way;        // of the stages
  int ways;       // a power of two
};

// Shared memory for a block's queries, and when these are done with, for the states of half its
// warps.
template <int kHeadDim>
inline constexpr int kRoomBytes = std::max(kMostPackedRows* Geometry<kHeadDim>::kRowBytes,
                                           kConsumers / 2 * 32 * WarpState<kHeadDim>::kFloats * 4);

// What products are made of: that of activations, fp16 where KV is E4M3.
template <typename T, typename Kv>
using ProductType = std::conditional_t<std::is_same_v<Kv, E4M3>, __half, T>;

// What scores are still to be multiplied with, which of E4M3 LoadQueries has done; and of outputs.
template <typename Kv>
__device__ float ScoreScale(const AttentionArguments& p) {
  return std::is_same_v<Kv, E4M3> ? 1.0f : p.scale_log2;
}
template <typename Kv>
__device__ float ValueScale(const AttentionArguments& p, const Unit& unit) {
  if constexpr (!std::is_same_v<Kv, E4M3>) return 1;
  return __ldg(p.v_scale + unit.kv_head);
}

// Eight activations to fp16, scaled. Larger ones than fp16's largest become that, NaN stays.
template <typename T>
__device__ uint4 ScaledHalves(const uint4& activations, float scale) {
  const Eight<T>& from = reinterpret_cast<const Eight<T>&>(activations);
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] = ToFloat(from.at[i]) * scale;
    if (fabsf(x[i]) > kLargest<__half>) x[i] = copysignf(kLargest<__half>, x[i]);
  }
  return make_uint4(Pack<__half>(x[0], x[1]), Pack<__half>(x[2], x[3]), Pack<__half>(x[4], x[5]),
                    Pack<__half>(x[6], x[7]));
}

// A warp's rows: lane i has that of row i % 16. Indices are of rows of head_dim elements.
struct WarpRows {
  __device__ WarpRows(const AttentionArguments& p, const Unit& unit, const WarpTile& tile) {
    const int row = tile.row_begin + static_cast<int>(threadIdx.x) % kWarpRows;
    if (row >= tile.row_end) return;
    const auto* words = reinterpret_cast<const int32_t*>(p.plan.header);
    const int index = row * p.plan.group_inverse >> 16;  // of the query within the partition
    const int head = (unit.kv_head - index) * p.plan.group_size + row;
    const int query = LoadAhead(words + unit.partition.queries_at + index);
    target = LoadAhead(words + unit.partition.targets_at + index);
    query_row = query * p.plan.num_heads + head;
    out_row = target >= 0 ? target * p.plan.num_heads + head : query_row;
  }
  int query_row = -1;             // of Q; -1: there is no row
  int target = kTargetUntouched;  // as TreePlan::row_targets
  int out_row = 0;                // of the output, or of the partial states
};

// Brings the warp's rows of Q to shared memory; absent rows are zeros.
template <typename T, typename Kv, int kHeadDim>
__device__ void LoadQueries(const AttentionArguments& p, const Unit& unit, const WarpRows& of_warp,
                            uint32_t queries) {
  using G = Geometry<kHeadDim>;
  constexpr int kRowsAtOnce = 32 / G::kChunks;
  constexpr int kTimes = kWarpRows / kRowsAtOnce;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = lane % G::kChunks;
  int from[kTimes];
#pragma unroll
  for (int i = 0; i < kTimes; ++i) {
    from[i] = __shfl_sync(0xffffffff, of_warp.query_row, i * kRowsAtOnce + lane / G::kChunks);
  }
  const auto to = [&](int i) {
    return queries + RowTile<kHeadDim>::Offset(i * kRowsAtOnce + lane / G::kChunks, chunk);
  };
  const auto* q = static_cast<const uint4*>(p.q) + chunk;
  if constexpr (std::is_same_v<Kv, E4M3>) {
    const float scale = p.scale_log2 * __ldg(p.k_scale + unit.kv_head);
    AwaitKernelBefore();
    uint4 rows[kTimes];
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      rows[i] = make_uint4(0, 0, 0, 0);
      if (from[i] >= 0) rows[i] = q[int64_t{from[i]} * G::kChunks];
    }
#pragma unroll
    for (int i = 0; i < kTimes; ++i) StoreShared(to(i), ScaledHalves<T>(rows[i], scale));
  } else {
    AwaitKernelBefore();
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      CopyAsync16(to(i), q + int64_t{max(from[i], 0)} * G::kChunks, from[i] < 0 ? 0 : 16);
    }
    WaitForCopies();
  }
  __syncwarp();
}

// Which of a stage's tokens a warp's rows see: bit i of word w is token 32 * w + i.
struct Visibility {
  uint32_t some[2];  // at least one row sees the token
  bool all;          // every row sees every token
  __device__ bool Any() const { return (some[0] | some[1]) != 0; }
};

__device__ inline Visibility SeeStage(const uint32_t* token_rows, const WarpTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Visibility see = {.some = {0, 0}, .all = true};
#pragma unroll
  for (int word = 0; word < 2; ++word) {
    const uint32_t rows = token_rows[word * 32 + lane];
    const int begin = static_cast<int>(rows & 0xffff);
    const int end = static_cast<int>(rows >> 16);
    see.some[word] = __ballot_sync(0xffffffff, begin < tile.row_end && end > tile.row_begin);
    see.all &= __all_sync(0xffffffff, begin <= tile.row_begin && end >= tile.row_end);
  }
  return see;
}

// Sets scores of tokens that their row does not see to kNever.
__device__ inline void Mask(const uint32_t* token_rows, const WarpTile& tile,
                            float (&score)[kStageTokens / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = tile.row_begin + lane / 4;
#pragma unroll
  for (int i = 0; i < kStageTokens / 8; ++i) {
    const uint2 pair = *reinterpret_cast<const uint2*>(token_rows + i * 8 + lane % 4 * 2);
    const auto sees = [](int r, uint32_t rows) {
      return r >= static_cast<int>(rows & 0xffff) && r < static_cast<int>(rows >> 16);
    };
    if (!sees(row, pair.x)) score[i][0] = kNever;
    if (!sees(row, pair.y)) score[i][1] = kNever;
    if (!sees(row + 8, pair.x)) score[i][2] = kNever;
    if (!sees(row + 8, pair.y)) score[i][3] = kNever;
  }
}

// The same where a row sees all tokens of a group or none.
__device__ inline void MaskGroups(const uint32_t* token_rows, const WarpTile& tile,
                                  float (&score)[kStageTokens / 8][4]) {
  static_assert(kGroupTokens == 8);
  const int row = tile.row_begin + static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
  for (int i = 0; i < kStageTokens / 8; ++i) {
    const uint32_t rows = token_rows[i * 8];
    const int begin = static_cast<int>(rows & 0xffff);
    const int end = static_cast<int>(rows >> 16);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool sees = row + half * 8 >= begin && row + half * 8 < end;
      score[i][half * 2] = sees ? score[i][half * 2] : kNever;
      score[i][half * 2 + 1] = sees ? score[i][half * 2 + 1] : kNever;
    }
  }
}

// Where a row has seen nothing its maximum is kNever, and any finite stand-in makes its weights 0.
__device__ inline float Finite(float highest) { return highest == kNever ? 0.0f : highest; }

__device__ inline float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// The highest scores of a lane's rows.
__device__ inline void HighestOf(const float (&score)[kStageTokens / 8][4], float (&highest)[2]) {
  highest[0] = highest[1] = kNever;
#pragma unroll
  for (int i = 0; i < kStageTokens / 8; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = fmaxf(highest[half], fmaxf(score[i][half * 2], score[i][half * 2 + 1]));
    }
  }
#pragma unroll
  for (int mask = 1; mask < 4; mask *= 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(0xffffffff, highest[half], mask));
    }
  }
}

// Turns scores into weights 2^(score * scale - highest) of the new highest. `factor` is what the
// rest of the rows' state then has to be multiplied with: 1 where nothing rose.
template <int kHeadDim>
__device__ void Weigh(float scale, float (&score)[kStageTokens / 8][4], WarpState<kHeadDim>* state,
                      float (&factor)[2]) {
  float highest[2];
  HighestOf(score, highest);
  float offset[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    highest[half] = fmaxf(state->highest[half], highest[half] * scale);
    offset[half] = -Finite(highest[half]);
    factor[half] = Exp2(state->highest[half] + offset[half]);
    state->highest[half] = highest[half];
  }
  float sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kStageTokens / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      score[i][j] = Exp2(fmaf(score[i][j], scale, offset[j / 2]));
      sum[j / 2] += score[i][j];
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    state->sum[half] = state->sum[half] * factor[half] + sum[half];
  }
}

// What was added before the highest score rose.
template <int kHeadDim>
__device__ void Rescale(const float (&factor)[2], WarpState<kHeadDim>* state) {
#pragma unroll
  for (int i = 0; i < Geometry<kHeadDim>::kOutTiles; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) state->out[i][j] *= factor[j / 2];
  }
}

__device__ inline void ConsumerSync() {
  asm volatile("bar.sync %0, %1;" ::"n"(kConsumerBarrier), "n"(kConsumers * 32) : "memory");
}

// Brings the states of the warps that share rows together in those of way 0, always in the same
// order. All consumer warps take part.
template <int kHeadDim>
__device__ void MergeWays(float* room, const WarpTile& tile, WarpState<kHeadDim>* state) {
  using G = Geometry<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles = kConsumers >> (__ffs(tile.ways) - 1);
  ConsumerSync();  // the room is that of the queries
  for (int half = tile.ways / 2; half > 0; half /= 2) {
    const int slot = (tile.way & (half - 1)) * tiles + tile.row_begin / kWarpRows;
    float* at = room + slot * WarpState<kHeadDim>::kFloats * 32 + lane;
    if (tile.way >= half && tile.way < 2 * half) {
#pragma unroll
      for (int i = 0; i < G::kOutTiles * 4; ++i) at[i * 32] = state->out[i / 4][i % 4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        at[(G::kOutTiles * 4 + i) * 32] = state->highest[i];
        at[(G::kOutTiles * 4 + 2 + i) * 32] = state->sum[i];
      }
    }
    ConsumerSync();
    if (tile.way < half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float other = at[(G::kOutTiles * 4 + i) * 32];
        const float highest = fmaxf(state->highest[i], other);
        const float mine = Exp2(state->highest[i] - Finite(highest));
        const float theirs = Exp2(other - Finite(highest));
        state->highest[i] = highest;
        state->sum[i] = state->sum[i] * mine + at[(G::kOutTiles * 4 + 2 + i) * 32] * theirs;
#pragma unroll
        for (int j = 0; j < G::kOutTiles; ++j) {
#pragma unroll
          for (int c = i * 2; c < i * 2 + 2; ++c) {
            state->out[j][c] = state->out[j][c] * mine + at[(j * 4 + c) * 32] * theirs;
          }
        }
      }
    }
    ConsumerSync();
  }
}

}  // namespace espalier::cuda
