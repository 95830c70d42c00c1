// Grid: one block an SM, each with a ring of stages of 64 KV tokens. Two warps fill the ring, eight
// warps of 16 packed rows each drain it. Blocks claim units, (partition, kv head) pairs, one by one
// in the plan's order. Shared memory: the ring, 32 KiB a stage at head_dim 128, and as much for Q.
#include <algorithm>

#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/tree_attention/async_copy.cuh"
#include "kernels/cuda/tree_attention/dependent_launch.cuh"
#include "kernels/cuda/tree_attention/portable_kernel.h"
#include "kernels/cuda/tree_attention/warp_mma.cuh"

namespace espalier::cuda {
namespace {

constexpr int kWarpRows = 16;  // packed rows of a consumer warp
constexpr int kConsumers = kMostPackedRows / kWarpRows;
constexpr int kProducers = 2;  // the first brings K and hands out units, the second brings V
constexpr int kThreads = 32 * (kConsumers + kProducers);
constexpr int kConsumerBarrier = 1;  // bar.sync; 0 is __syncthreads

constexpr int kStageTokens = 64;
constexpr int kMostStages = 8;
// In flight this many bytes hide the memory's latency; more only lengthen its queue.
constexpr int kRingBytes = 128 << 10;
constexpr int kUnitSlots = 4;
// The token lists are asked into L2 this far ahead of the stage at hand, a line a lane.
constexpr int kPrefetchTokens = 32 * 32;

constexpr float kNever = -INFINITY;

template <int kHeadDim>
struct Geometry {
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kChunks = kRowBytes / 16;  // of a row
  static constexpr int kSideBytes = kStageTokens * kRowBytes;
  static constexpr int kStageBytes = 2 * kSideBytes;
  static constexpr int kKeySteps = kHeadDim / 16;  // of a product over head_dim
  static constexpr int kOutTiles = kHeadDim / 8;   // accumulators of a warp's output
  // What a warp hands over when it merges: its accumulators, two maxima and two sums a lane.
  static constexpr int kStateFloats = kOutTiles * 4 + 4;
  static constexpr int kQueryBytes = kMostPackedRows * kRowBytes;
  static constexpr int kMergeBytes = kConsumers / 2 * 32 * kStateFloats * 4;
};

// A unit as it is handed to the warps.
struct Unit {
  PlanUnit partition;
  int kv_head;  // -1: there are no more
};

struct Barriers {
  uint64_t full[kMostStages];
  uint64_t empty[kMostStages];
  uint64_t unit_full[kUnitSlots];
  uint64_t unit_empty[kUnitSlots];
};

// Shared memory, from its start: stages (K, then V), token rows of each stage, queries and later
// the states that are merged, units, barriers.
template <int kHeadDim>
struct SharedLayout {
  using G = Geometry<kHeadDim>;
  explicit __host__ __device__ SharedLayout(int num_stages)
      : rows(num_stages * G::kStageBytes),
        queries(rows + num_stages * kStageTokens * 4),
        units(queries + std::max(G::kMergeBytes, G::kQueryBytes)),
        barriers(units + kUnitSlots * static_cast<int>(sizeof(Unit))),
        bytes(barriers + static_cast<int>(sizeof(Barriers))) {}
  int rows;
  int queries;
  int units;
  int barriers;
  int bytes;
};
static_assert(sizeof(Unit) % 8 == 0);

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

// The rows of a tile in shared memory start kRowBytes apart; their 16-byte chunks are permuted so
// that the same chunk of eight neighbouring rows lies in different banks.
template <int kHeadDim>
__device__ int TileOffset(int row, int chunk) {
  return row * Geometry<kHeadDim>::kRowBytes + ((chunk ^ (row & 7)) << 4);
}
// From a row's address at chunk 0 or 1 to that 2 * pair chunks further. Tiles are aligned to rows.
__device__ uint32_t AdvanceChunks(uint32_t address, int pair) { return address ^ (pair << 5); }

struct BlockState {
  std::byte* shared;
  Barriers* barriers;
  Unit* units;
  uint32_t stages;  // shared address of the ring
  uint32_t rows;    // shared address of its token rows
  int num_stages;
};

// ---- producers

template <int kHeadDim, bool kIsKey>
__device__ void FillStages(const BlockState& block, const AttentionArguments& p, const Unit& unit,
                           RingPlace* place) {
  using G = Geometry<kHeadDim>;
  constexpr int kRowsAtOnce = 32 / G::kChunks;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = lane % G::kChunks;
  const int num_tokens = unit.partition.num_tokens;
  const int32_t* kv_rows = p.plan.token_kv_rows + unit.partition.token_begin;
  const uint32_t* token_rows = p.plan.token_rows + unit.partition.token_begin;
  const auto* side = static_cast<const std::byte*>(kIsKey ? p.k : p.v) +
                     int64_t{unit.kv_head} * p.plan.page_size * G::kRowBytes + chunk * 16;

  if (kIsKey && lane * 32 < num_tokens) {
    PrefetchToL2(kv_rows + lane * 32);
    PrefetchToL2(token_rows + lane * 32);
  }
  const auto load = [&](int token) { return token < num_tokens ? __ldg(kv_rows + token) : -1; };
  int low = load(lane);
  int high = load(32 + lane);
  for (int begin = 0; begin < num_tokens; begin += kStageTokens) {
    const int next_low = load(begin + kStageTokens + lane);
    const int next_high = load(begin + kStageTokens + 32 + lane);
    BarrierWait(SharedAddress(&block.barriers->empty[place->at]), place->lap ^ 1);
    const uint32_t stage = block.stages + place->at * G::kStageBytes + (kIsKey ? 0 : G::kSideBytes);
#pragma unroll
    for (int i = 0; i < kStageTokens; i += kRowsAtOnce) {
      const int token = i + lane / G::kChunks;
      const int kv_row = __shfl_sync(0xffffffff, i < 32 ? low : high, token % 32);
      CopyAsync16(stage + TileOffset<kHeadDim>(token, chunk),
                  side + int64_t{max(kv_row, 0)} * G::kRowBytes, kv_row < 0 ? 0 : 16);
    }
    if (kIsKey && lane < kStageTokens / 4) {
      // Absent tokens get the rows [0, 0).
      const int left = num_tokens - begin - lane * 4;
      CopyAsync16(block.rows + (place->at * kStageTokens + lane * 4) * 4,
                  token_rows + (left > 0 ? begin + lane * 4 : 0), min(max(left * 4, 0), 16));
      const int ahead = begin + kPrefetchTokens + lane % 2 * 32;
      if (lane < 4 && ahead < num_tokens) {
        PrefetchToL2(lane < 2 ? static_cast<const void*>(kv_rows + ahead) : token_rows + ahead);
      }
    }
    BarrierArriveAfterCopies(SharedAddress(&block.barriers->full[place->at]));
    place->Next(block.num_stages);
    low = next_low;
    high = next_high;
  }
}

// Claims units, hands them to the other warps and brings their K.
template <int kHeadDim>
__device__ void ProduceKeys(const BlockState& block, const AttentionArguments& p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* units = reinterpret_cast<const PlanUnit*>(p.plan.header + 1);
  const int num_units = p.plan.header->num_partitions * p.plan.num_kv_heads;
  RingPlace stage;
  RingPlace slot;
  for (int index = static_cast<int>(blockIdx.x);;) {
    Unit unit = {};
    unit.kv_head = -1;
    int claimed = 0;
    if (index < num_units) {
      unit.partition = units[index / p.plan.num_kv_heads];
      unit.kv_head = index % p.plan.num_kv_heads;
      if (lane == 0) claimed = atomicAdd(&p.plan.claims[0], 1);
    }
    BarrierWait(SharedAddress(&block.barriers->unit_empty[slot.at]), slot.lap ^ 1);
    if (lane == 0) {
      block.units[slot.at] = unit;
      BarrierArrive(SharedAddress(&block.barriers->unit_full[slot.at]));
    }
    slot.Next(kUnitSlots);
    if (unit.kv_head < 0) break;
    FillStages<kHeadDim, true>(block, p, unit, &stage);
    index = static_cast<int>(gridDim.x) + __shfl_sync(0xffffffff, claimed, 0);
  }
  // The last block to get here has seen every claim made: the next launch starts from zero.
  if (lane == 0) {
    __threadfence();
    if (atomicAdd(&p.plan.claims[1], 1) == static_cast<int>(gridDim.x) - 1) {
      p.plan.claims[0] = 0;
      p.plan.claims[1] = 0;
    }
  }
}

// The next unit. It stays in shared memory, rather than in registers, until the warp leaves it.
__device__ const Unit& AwaitUnit(const BlockState& block, const RingPlace& slot) {
  BarrierWait(SharedAddress(&block.barriers->unit_full[slot.at]), slot.lap);
  return block.units[slot.at];
}
__device__ void LeaveUnit(const BlockState& block, RingPlace* slot) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(SharedAddress(&block.barriers->unit_empty[slot->at]));
  slot->Next(kUnitSlots);
}

template <int kHeadDim>
__device__ void ProduceValues(const BlockState& block, const AttentionArguments& p) {
  RingPlace stage;
  RingPlace slot;
  while (true) {
    const Unit& unit = AwaitUnit(block, slot);
    if (unit.kv_head < 0) break;
    FillStages<kHeadDim, false>(block, p, unit, &stage);
    LeaveUnit(block, &slot);
  }
}

// ---- consumers

// The online softmax of a warp's 16 rows: of each lane's rows g and g + 8 the highest score so far
// and the lane's share of the denominator, both in log2 units, and the output before division.
template <int kHeadDim>
struct WarpState {
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

__device__ WarpTile TileOfWarp(int warp, int packed_rows) {
  int tiles = 1;
  while (tiles * kWarpRows < packed_rows) tiles *= 2;
  const int tile = warp % tiles;
  return {.row_begin = tile * kWarpRows,
          .row_end = min((tile + 1) * kWarpRows, packed_rows),
          .way = warp / tiles,
          .ways = kConsumers / tiles};
}

// Query index and query head of a packed row.
struct RowPlace {
  __device__ RowPlace(const AttentionArguments& p, const Unit& unit, int row) {
    const int group = p.plan.num_heads / p.plan.num_kv_heads;
    const auto* words = reinterpret_cast<const int32_t*>(p.plan.header);
    index = row / group;
    head = unit.kv_head * group + row % group;
    query = __ldg(words + unit.partition.queries_at + index);
  }
  __device__ int64_t OutRow(const AttentionArguments& p) const {
    return int64_t{query} * p.plan.num_heads + head;
  }
  int index;  // of the query within the partition
  int head;
  int query;
};

// Copies the warp's rows of Q to shared memory; absent rows are zeros.
template <typename T, int kHeadDim>
__device__ void LoadQueries(const AttentionArguments& p, const Unit& unit, const WarpTile& tile,
                            uint32_t queries) {
  using G = Geometry<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunk = lane % G::kChunks;
#pragma unroll
  for (int i = 0; i < kWarpRows; i += 32 / G::kChunks) {
    const int row = tile.row_begin + i + lane / G::kChunks;
    const bool present = row < tile.row_end;
    const T* from = static_cast<const T*>(p.q) + chunk * 8;
    if (present) from += RowPlace(p, unit, row).OutRow(p) * kHeadDim;
    CopyAsync16(queries + TileOffset<kHeadDim>(i + lane / G::kChunks, chunk), from,
                present ? 16 : 0);
  }
  WaitForCopies();
  __syncwarp();
}

// Which of a stage's tokens a warp's rows see: bit i of word w is token 32 * w + i.
struct Visibility {
  uint32_t some[2];  // at least one row sees the token
  bool all;          // every row sees every token
};

__device__ Visibility SeeStage(const uint32_t* token_rows, const WarpTile& tile) {
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

// Scores of 16 rows against the stage's 64 tokens; of halves that no row sees, kNever.
template <typename T, int kHeadDim>
__device__ void Score(uint32_t queries, uint32_t keys, const Visibility& see,
                      float (&score)[kStageTokens / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  queries += TileOffset<kHeadDim>(lane % 16, lane / 16);
  keys += TileOffset<kHeadDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool seen = see.some[half] != 0;
#pragma unroll
    for (int tile = half * 4; tile < half * 4 + 4; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) score[tile][i] = seen ? 0.0f : kNever;
    }
    if (!seen) continue;
#pragma unroll
    for (int step = 0; step < Geometry<kHeadDim>::kKeySteps; ++step) {
      uint32_t q[4];
      LoadMatrices(q, AdvanceChunks(queries, step));
#pragma unroll
      for (int tile = half * 4; tile < half * 4 + 4; tile += 2) {
        uint32_t k[4];
        LoadMatrices(k, AdvanceChunks(keys, step) + tile * 8 * Geometry<kHeadDim>::kRowBytes);
        MultiplyAdd<T>(score[tile], q, k[0], k[1]);
        MultiplyAdd<T>(score[tile + 1], q, k[2], k[3]);
      }
    }
  }
}

// Sets scores of tokens that their row does not see to kNever.
__device__ void Mask(const uint32_t* token_rows, const WarpTile& tile,
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

// Where a row has seen nothing its maximum is kNever, and any finite stand-in makes its weights 0.
__device__ float Finite(float highest) { return highest == kNever ? 0.0f : highest; }

__device__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Turns scores into weights 2^(score * scale - highest), after `state` was brought to the new
// highest.
template <int kHeadDim>
__device__ void Weigh(float scale, float (&score)[kStageTokens / 8][4],
                      WarpState<kHeadDim>* state) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = kNever;
#pragma unroll
    for (int i = 0; i < kStageTokens / 8; ++i) {
      highest = fmaxf(highest, fmaxf(score[i][half * 2], score[i][half * 2 + 1]));
    }
    highest = fmaxf(state->highest[half], QuadMax(highest) * scale);
    if (__any_sync(0xffffffff, highest > state->highest[half])) {
      const float factor = Exp2(state->highest[half] - Finite(highest));
      state->highest[half] = highest;
      state->sum[half] *= factor;
#pragma unroll
      for (int i = 0; i < Geometry<kHeadDim>::kOutTiles; ++i) {
        state->out[i][half * 2] *= factor;
        state->out[i][half * 2 + 1] *= factor;
      }
    }
    const float offset = -Finite(highest);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kStageTokens / 8; ++i) {
#pragma unroll
      for (int j = half * 2; j < half * 2 + 2; ++j) {
        score[i][j] = Exp2(fmaf(score[i][j], scale, offset));
        sum += score[i][j];
      }
    }
    state->sum[half] += sum;
  }
}

// out += weights * V
template <typename T, int kHeadDim>
__device__ void AddValues(uint32_t values, const Visibility& see,
                          const float (&weight)[kStageTokens / 8][4], WarpState<kHeadDim>* state) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  values += TileOffset<kHeadDim>(lane % 16, lane / 16);
#pragma unroll
  for (int block = 0; block < kStageTokens / 16; ++block) {
    if ((see.some[block / 2] >> (block % 2 * 16) & 0xffff) == 0) continue;
    const float(&low)[4] = weight[block * 2];
    const float(&high)[4] = weight[block * 2 + 1];
    const uint32_t a[4] = {Pack<T>(low[0], low[1]), Pack<T>(low[2], low[3]),
                           Pack<T>(high[0], high[1]), Pack<T>(high[2], high[3])};
#pragma unroll
    for (int tile = 0; tile < Geometry<kHeadDim>::kOutTiles; tile += 2) {
      uint32_t v[4];
      LoadMatricesTransposed(
          v, AdvanceChunks(values, tile / 2) + block * 16 * Geometry<kHeadDim>::kRowBytes);
      MultiplyAdd<T>(state->out[tile], a, v[0], v[1]);
      MultiplyAdd<T>(state->out[tile + 1], a, v[2], v[3]);
    }
  }
}

__device__ void ConsumerSync() {
  asm volatile("bar.sync %0, %1;" ::"n"(kConsumerBarrier), "n"(kConsumers * 32) : "memory");
}

// Brings the states of the warps that share rows together in those of way 0, always in the same
// order. All consumer warps take part.
template <int kHeadDim>
__device__ void MergeWays(float* room, const WarpTile& tile, WarpState<kHeadDim>* state) {
  using G = Geometry<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles = kConsumers / tile.ways;
  ConsumerSync();  // the room is that of the queries
  for (int half = tile.ways / 2; half > 0; half /= 2) {
    const int slot = tile.way % half * tiles + tile.row_begin / kWarpRows;
    float* at = room + slot * G::kStateFloats * 32 + lane;
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

// Lane t of each quad gives its words x[0..3] and gets word t of its neighbours 0..3.
__device__ void TransposeQuad(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
  const bool upper = threadIdx.x % 4 >= 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffff, odd ? x[i] : x[i + 1], 1);
    (odd ? x[i] : x[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffff, upper ? x[i] : x[i + 2], 2);
    (upper ? x[i] : x[i + 2]) = got;
  }
}

// Divides, and writes the warp's rows to the output or to their partial states. Whole warp.
template <typename T, int kHeadDim>
__device__ void StoreRows(const AttentionArguments& p, const Unit& unit, const WarpTile& tile,
                          const WarpState<kHeadDim>& state) {
  using G = Geometry<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* words = reinterpret_cast<const int32_t*>(p.plan.header);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = QuadSum(state.sum[half]);
    const int row = tile.row_begin + half * 8 + lane / 4;
    int target = kTargetUntouched;
    int64_t out_row = 0;
    if (row < tile.row_end) {
      const RowPlace place(p, unit, row);
      target = __ldg(words + unit.partition.targets_at + place.index);
      out_row = target >= 0 ? int64_t{target} * p.plan.num_heads + place.head : place.OutRow(p);
    }
    const float factor = 1.0f / sum;
    if (target >= 0) {
      float* out = p.plan.partial_out + out_row * kHeadDim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < G::kOutTiles; ++i) {
        *reinterpret_cast<float2*>(out + i * 8) =
            make_float2(state.out[i][half * 2] * factor, state.out[i][half * 2 + 1] * factor);
      }
      if (lane % 4 == 0) p.plan.partial_lse[out_row] = state.highest[half] + log2f(sum);
    }
    if (!__any_sync(0xffffffff, target == kTargetDirect)) continue;
    // Of four neighbouring accumulators a lane takes one, eight columns: 16 bytes.
    T* out = static_cast<T*>(p.out) + out_row * kHeadDim + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < G::kOutTiles; i += 4) {
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        packed[j] =
            Pack<T>(state.out[i + j][half * 2] * factor, state.out[i + j][half * 2 + 1] * factor);
      }
      TransposeQuad(packed);
      if (target == kTargetDirect) {
        *reinterpret_cast<uint4*>(out + i * 8) =
            make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
  }
}

template <typename T, int kHeadDim>
__device__ void Consume(const BlockState& block, const AttentionArguments& p) {
  using G = Geometry<kHeadDim>;
  const SharedLayout<kHeadDim> layout(block.num_stages);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = p.plan.num_heads / p.plan.num_kv_heads;
  const uint32_t queries =
      SharedAddress(block.shared + layout.queries) + warp * kWarpRows * G::kRowBytes;
  RingPlace place;
  RingPlace slot;
  while (true) {
    const Unit& unit = AwaitUnit(block, slot);
    if (unit.kv_head < 0) break;
    const WarpTile tile = TileOfWarp(warp, unit.partition.num_rows * group);
    LoadQueries<T, kHeadDim>(p, unit, tile, queries);
    WarpState<kHeadDim> state = {};
    state.highest[0] = state.highest[1] = kNever;

    const int num_stages = (unit.partition.num_tokens + kStageTokens - 1) / kStageTokens;
    for (int s = 0; s < num_stages; ++s) {
      BarrierWait(SharedAddress(&block.barriers->full[place.at]), place.lap);
      if ((s & (tile.ways - 1)) == tile.way) {
        const auto* token_rows =
            reinterpret_cast<const uint32_t*>(block.shared + layout.rows) + place.at * kStageTokens;
        const Visibility see = SeeStage(token_rows, tile);
        if ((see.some[0] | see.some[1]) != 0) {
          const uint32_t stage = block.stages + place.at * G::kStageBytes;
          float score[kStageTokens / 8][4];
          Score<T, kHeadDim>(queries, stage, see, score);
          if (!see.all) Mask(token_rows, tile, score);
          Weigh<kHeadDim>(p.scale_log2, score, &state);
          AddValues<T, kHeadDim>(stage + G::kSideBytes, see, score, &state);
        }
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) BarrierArrive(SharedAddress(&block.barriers->empty[place.at]));
      place.Next(block.num_stages);
    }
    if (tile.ways > 1) {
      MergeWays<kHeadDim>(reinterpret_cast<float*>(block.shared + layout.queries), tile, &state);
    }
    if (tile.way == 0) StoreRows<T, kHeadDim>(p, unit, tile, state);
    LeaveUnit(block, &slot);
  }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    PortableAttention(const __grid_constant__ AttentionArguments p, int num_stages) {
  extern __shared__ __align__(256) std::byte shared[];
  const SharedLayout<kHeadDim> layout(num_stages);
  const BlockState block = {.shared = shared,
                            .barriers = reinterpret_cast<Barriers*>(shared + layout.barriers),
                            .units = reinterpret_cast<Unit*>(shared + layout.units),
                            .stages = SharedAddress(shared),
                            .rows = SharedAddress(shared + layout.rows),
                            .num_stages = num_stages};
  if (threadIdx.x == 0) {
    for (int i = 0; i < num_stages; ++i) {
      BarrierInit(SharedAddress(&block.barriers->full[i]), kProducers * 32);
      BarrierInit(SharedAddress(&block.barriers->empty[i]), kConsumers);
    }
    for (int i = 0; i < kUnitSlots; ++i) {
      BarrierInit(SharedAddress(&block.barriers->unit_full[i]), 1);
      BarrierInit(SharedAddress(&block.barriers->unit_empty[i]), kConsumers + 1);
    }
  }
  __syncthreads();
  LetDependentsStart();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kConsumers) {
    Consume<T, kHeadDim>(block, p);
  } else if (warp == kConsumers) {
    ProduceKeys<kHeadDim>(block, p);
  } else {
    ProduceValues<kHeadDim>(block, p);
  }
}

template <typename T, int kHeadDim>
cudaError_t Launch(const AttentionArguments& arguments, const AttentionDevice& device,
                   cudaStream_t stream) {
  int num_stages = std::min(kMostStages, kRingBytes / Geometry<kHeadDim>::kStageBytes);
  while (num_stages > 2 && SharedLayout<kHeadDim>(num_stages).bytes > device.max_shared_bytes) {
    --num_stages;
  }
  const int shared_bytes = SharedLayout<kHeadDim>(num_stages).bytes;
  const auto kernel = PortableAttention<T, kHeadDim>;
  // Not a launch: a graph that is being captured does not record it.
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  kernel<<<device.num_sms, kThreads, shared_bytes, stream>>>(arguments, num_stages);
  return cudaGetLastError();
}

template <typename T>
cudaError_t LaunchHeadDim(const AttentionArguments& arguments, const AttentionDevice& device,
                          cudaStream_t stream) {
  switch (arguments.plan.head_dim) {
    case 64:
      return Launch<T, 64>(arguments, device, stream);
    case 128:
      return Launch<T, 128>(arguments, device, stream);
    default:
      internal::CheckFailed("head_dim is 64 or 128", __FILE__, __LINE__);
  }
}

}  // namespace

cudaError_t LaunchPortableAttention(const AttentionArguments& arguments, DType dtype,
                                    const AttentionDevice& device, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  DispatchActivation(dtype,
                     [&]<typename T>(T) { error = LaunchHeadDim<T>(arguments, device, stream); });
  return error;
}

}  // namespace espalier::cuda
