// For sm_90a: products of whole warpgroups. Grid: one block an SM, each with a ring of stages of 64
// KV tokens. Four warps fill the ring, from a second one, by way of four more, where KV is of 8
// bits; two warpgroups of 64 packed rows each drain it. Shared memory: the ring, 32 KiB a stage at
// head_dim 128, and as much for Q, which consumers hold in registers.
#include "kernels/cuda/tree_attention/dispatch_attention.cuh"
#include "kernels/cuda/tree_attention/packed_rows.cuh"
#include "kernels/cuda/tree_attention/tensor_map.h"
#include "kernels/cuda/tree_attention/tensor_stream.cuh"
#include "kernels/cuda/tree_attention/widening_stream.cuh"

// Compiled to nothing for other architectures, where nothing launches it.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ESPALIER_HOPPER 1
#include "kernels/cuda/tree_attention/warpgroup_mma.cuh"
#endif

namespace espalier::cuda {
namespace {

constexpr int kTileRows = 64;  // packed rows of a product
constexpr int kGroups = kConsumers / 4;
static_assert(kMostPackedRows == kTileRows * kGroups);

constexpr int kProducers = 4;  // two bring K, of which the first claims units; two bring V

// How a block shares out what it has, by the type of KV.
template <typename Kv, int kHeadDim>
struct Shares {
  static constexpr bool kWidens = std::is_same_v<Kv, E4M3>;
  static constexpr int kWideners = kWidens ? 4 : 0;  // warps, likewise of K and of V
  static constexpr int kThreads = 32 * (kConsumers + kProducers + kWideners);
  static constexpr int kRingBytes = (kWidens ? 128 : 160) << 10;
  static constexpr int kStages =
      std::min(kMostStages, kRingBytes / Geometry<kHeadDim>::kStageBytes);
  // Registers a thread: at launch as many for each, then moved to where they are needed.
  static constexpr int kLaunchRegisters = kWidens ? 128 : 168;
  static constexpr int kConsumerRegisters = kWidens ? 192 : 216;
  static constexpr int kProducerRegisters = 72;
  static constexpr int kWidenerRegisters = 56;
  static_assert(32 * (kConsumers * kConsumerRegisters + kProducers * kProducerRegisters +
                      kWideners * kWidenerRegisters) <=
                kLaunchRegisters * kThreads);

  static __host__ __device__ SharedLayout<kHeadDim> Layout() {
    return SharedLayout<kHeadDim>(kStages, kRoomBytes<kHeadDim>);
  }
  // Of the ring of what is to be widened.
  static __host__ __device__ int NarrowAt() { return (Layout().bytes + 127) / 128 * 128; }
  static int SharedBytes() {
    return kWidens ? NarrowAt() + NarrowLayout<kHeadDim>::kBytes : Layout().bytes;
  }
};

#ifdef ESPALIER_HOPPER

// What is the same for all lanes, and the compiler is to know that.
template <typename T>
__device__ T Uniform(T x) {
  return __shfl_sync(0xffffffff, x, 0);
}

// Two warpgroups share the rows of a partition that one has room for, and take turns at stages.
__device__ WarpTile TileOfGroup(int group, int packed_rows) {
  const bool shared = packed_rows <= kTileRows;
  const int row_begin = shared ? 0 : group * kTileRows;
  return {.row_begin = row_begin,
          .row_end = min(row_begin + kTileRows, packed_rows),
          .way = shared ? group : 0,
          .ways = shared ? kGroups : 1};
}
__device__ WarpTile TileOfWarp(const WarpTile& group, int warp) {
  WarpTile tile = group;
  tile.row_begin += warp * kWarpRows;
  tile.row_end = min(tile.row_begin + kWarpRows, group.row_end);
  return tile;
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

// Starts out += weights * values.
template <typename T, int kHeadDim>
__device__ void StartValues(uint32_t values, const uint32_t (&weights)[kStageTokens / 16][4],
                            float (&out)[Geometry<kHeadDim>::kOutTiles][4]) {
  using Tile = OperandTile<kHeadDim>;
  const SharedOperand first(values, /*across=*/Tile::kBlockBytes, /*along=*/Tile::kGroupBytes);
#pragma unroll
  for (int block = 0; block < kStageTokens / 16; ++block) {
    StartProductByRows<T>(out, weights[block], first.At(block * 2 * Tile::kGroupBytes));
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

constexpr uint32_t kNotThere = 1u << 31;  // a stage, yet

// A warp's rows on the way through a unit's stages. The product of a stage's weights and values
// runs while the next stage's scores are weighed, and until then holds its stage.
template <typename T, int kHeadDim>
class RowsInFlight {
  using G = Geometry<kHeadDim>;

 public:
  __device__ RowsInFlight(const BlockState& block, const WarpTile& tile, int warp_of_rows,
                          uint32_t queries, float scale)
      : block_(block),
        tile_(tile),
        scale_(scale),
        some_see_(kSomeSee << warp_of_rows),
        all_see_(kAllSee << warp_of_rows) {
    using Rows = RowTile<kHeadDim>;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int step = 0; step < G::kKeySteps; ++step) {
      LoadMatrices(queries_[step],
                   Rows::AdvanceChunks(queries + Rows::Offset(lane % 16, lane / 16), step));
    }
    state_.highest[0] = state_.highest[1] = kNever;
  }

  // A stage that the warpgroup takes, of which `seen` is known. While its products run,
  // `look_ahead` is called.
  template <typename LookAhead>
  __device__ void Take(uint32_t seen, int at, const uint32_t* token_rows,
                       const LookAhead& look_ahead) {
    float score[kStageTokens / 8][4];
    // Where no stage is held, weights are 0, and any values will do.
    const int held = held_ < 0 ? at : held_;
    if (__builtin_expect((seen & kGathered) != 0, 0)) ProductsSeeCopies();
    ProductsFence();
    StartScore<T, kHeadDim>(queries_, KeysOf(at), score);
    StartValues<T, kHeadDim>(ValuesOf(held), weights_, state_.out);
    look_ahead();
    AwaitProducts<1>(score);
    if (__builtin_expect((seen & some_see_) != 0, 1)) {
      if (__builtin_expect((seen & all_see_) == 0, 0)) {
        if ((seen & (kGathered | kCausal)) != 0) {
          Mask(token_rows, tile_, score);
        } else {
          MaskGroups(token_rows, tile_, score);
        }
      }
      float factor[2];
      RaiseHighest(scale_, score, &state_, factor);
      AwaitHeld();
      Weigh(scale_, factor, score, &state_);
      Rescale(factor, &state_);
      PackWeights<T>(score, weights_);
    } else {
      AwaitHeld();
      SetWeightsToZero();
    }
    held_ = at;
    skipped_ = 0;
  }

  // One that it does not.
  __device__ void Skip(int at) {
    // Held through a ring of stages that no row sees, one would never be free again.
    if (++skipped_ > 1) Settle();
    Release(at);
  }

  // Ends with the stage that is held, if there is one.
  __device__ void Settle() {
    if (held_ < 0) return;
    ProductsFence();
    StartValues<T, kHeadDim>(ValuesOf(held_), weights_, state_.out);
    AwaitHeld();
    SetWeightsToZero();
    held_ = -1;
  }

  __device__ WarpState<kHeadDim>& state() { return state_; }

 private:
  __device__ uint32_t KeysOf(int at) const { return block_.ring.stages + at * G::kStageBytes; }
  __device__ uint32_t ValuesOf(int at) const { return KeysOf(at) + G::kSideBytes; }

  __device__ void Release(int at) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) BarrierArrive(block_.ring.EmptyOf(at));
  }

  __device__ void AwaitHeld() {
    AwaitProducts<0>(state_.out);
    __syncwarp();
    if (held_ >= 0 && threadIdx.x % 32 == 0) BarrierArrive(block_.ring.EmptyOf(held_));
  }

  __device__ void SetWeightsToZero() {
    // Volatile, lest it be done in any case.
#pragma unroll
    for (auto& block : weights_) {
#pragma unroll
      for (uint32_t& pair : block) asm volatile("mov.b32 %0, 0;" : "=r"(pair));
    }
  }

  const BlockState& block_;
  const WarpTile& tile_;
  const float scale_;
  const uint32_t some_see_;
  const uint32_t all_see_;
  uint32_t queries_[G::kKeySteps][4];
  WarpState<kHeadDim> state_ = {};
  uint32_t weights_[kStageTokens / 16][4] = {};
  int held_ = -1;    // place of the stage whose values are still to be added
  int skipped_ = 0;  // stages since
};

template <typename T, typename Kv, int kHeadDim>
__device__ void Consume(const BlockState& block, const SharedLayout<kHeadDim>& layout,
                        const AttentionArguments& p) {
  const int warp = Uniform(static_cast<int>(threadIdx.x) / 32);
  const uint32_t room =
      SharedAddress(block.shared + layout.room) + warp * kWarpRows * Geometry<kHeadDim>::kRowBytes;
  RingPlace place;
  RingPlace slot;
  bool first_queries = true;
  while (true) {
    const Unit& unit = AwaitUnit(block, slot);
    if (Uniform(unit.kv_head) < 0) break;
    const WarpTile group =
        TileOfGroup(warp / 4, Uniform(unit.partition.num_rows) * p.plan.group_size);
    const WarpTile tile = TileOfWarp(group, warp % 4);
    const RowTargets targets(p, unit, tile);
    LoadQueries<T, Kv, kHeadDim>(p, unit, tile, room);
    QueriesCame(block, &first_queries);
    const int warp_of_rows = tile.row_begin / kWarpRows;
    const uint32_t group_sees = kSomeSee * 0xf << group.row_begin / kWarpRows;
    RowsInFlight<ProductType<T, Kv>, kHeadDim> rows(block, tile, warp_of_rows, room,
                                                    ScoreScale<Kv>(p));
    const auto token_rows_of = [&](int at) {
      return reinterpret_cast<const uint32_t*>(block.shared + layout.rows + at * kRowsBytes);
    };
    const int num_stages = Uniform(unit.partition.num_stages);
    // Of the s-th stage, which is there.
    const auto look_at = [&](int s, const RingPlace& place) {
      return (s & (tile.ways - 1)) == tile.way ? token_rows_of(place.at)[kStageTokens] : 0;
    };
    uint32_t seen = kNotThere;
    for (int s = 0; s < num_stages; ++s) {
      const int at = place.at;
      if (__builtin_expect((seen & kNotThere) != 0, 0)) {
        BarrierWait(block.ring.FullOf(place.at), place.lap);
        seen = Uniform(look_at(s, place));
      }
      const uint32_t now = seen;
      seen = kNotThere;
      place.Next(block.ring.num_stages);
      if ((now & group_sees) == 0) {
        rows.Skip(at);
        continue;
      }
      rows.Take(now, at, token_rows_of(at), [&] {
        if (BarrierHasPassed(block.ring.FullOf(place.at), place.lap)) seen = look_at(s + 1, place);
        seen = Uniform(seen);
      });
    }
    rows.Settle();
    if (tile.ways > 1) {
      MergeWays<kHeadDim>(reinterpret_cast<float*>(block.shared + layout.room), tile,
                          &rows.state());
    }
    if (tile.way == 0) StoreRows<T>(p, targets, ValueScale<Kv>(p, unit), rows.state());
    LeaveUnit(block, &slot);
  }
}

// The producer warps of a block: `index` is one's.
template <typename Tile>
__device__ void Produce(const BlockState& block, const Ring& ring, const AttentionArguments& p,
                        const CUtensorMap& keys, const CUtensorMap& values, int index) {
  const bool is_key = index < 2;
  TensorStream<Tile> stream(
      ring, SharedAddress(&block.barriers->queries), p, is_key ? keys : values, is_key,
      /*first_token=*/index % 2 * kWarpTokens, static_cast<int>(blockIdx.x) / p.plan.num_kv_heads);
  __syncthreads();
  LetDependentsStart();
  if (index == 0) {
    ClaimUnits(block, p, stream);
  } else {
    FollowUnits(block, stream);
  }
}

#endif  // ESPALIER_HOPPER

template <typename T, typename Kv, int kHeadDim>
__global__ void __launch_bounds__((Shares<Kv, kHeadDim>::kThreads), 1)
    HopperAttention(const __grid_constant__ AttentionArguments p,
                    const __grid_constant__ CUtensorMap keys,
                    const __grid_constant__ CUtensorMap values) {
#ifdef ESPALIER_HOPPER
  using Mine = Shares<Kv, kHeadDim>;
  extern __shared__ __align__(1024) std::byte shared[];
  const SharedLayout<kHeadDim> layout = Mine::Layout();
  const BlockState block = BlockStateOf(shared, layout, Mine::kStages);
  const Ring narrow = NarrowLayout<kHeadDim>::RingAt(SharedAddress(shared) + Mine::NarrowAt());
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kConsumers) {
    if (threadIdx.x == 0) {
      InitBarriers(block, kConsumers, kProducers, Mine::kWideners);
      if constexpr (Mine::kWidens) InitRing(narrow, kProducers * 32, Mine::kWideners);
    }
    __syncthreads();
    LetDependentsStart();
    TakeRegisters<Mine::kConsumerRegisters>();
    Consume<T, Kv>(block, layout, p);
  } else if (warp < kConsumers + kProducers) {
    GiveRegisters<Mine::kProducerRegisters>();
    const int index = warp - kConsumers;
    if constexpr (Mine::kWidens) {
      Produce<NarrowTile<kHeadDim>>(block, narrow, p, keys, values, index);
    } else {
      Produce<OperandTile<kHeadDim>>(block, block.ring, p, keys, values, index);
    }
  } else if constexpr (Mine::kWidens) {
    GiveRegisters<Mine::kWidenerRegisters>();
    __syncthreads();
    LetDependentsStart();
    const int index = warp - kConsumers - kProducers;
    WideningStream<kHeadDim> stream(narrow, block.ring, /*is_key=*/index < 2,
                                    /*first_token=*/index % 2 * kWarpTokens);
    FollowUnits(block, stream);
  }
#endif
}

template <typename T, typename Kv, int kHeadDim>
cudaError_t Launch(const AttentionArguments& arguments, DType kv_dtype,
                   const AttentionDevice& device, cudaStream_t stream) {
  CUtensorMap keys;
  CUtensorMap values;
  const auto map = [&](const void* side, CUtensorMap* to) {
    return MapRows(side, arguments.num_kv_rows, kHeadDim, kGroupTokens, kv_dtype, to);
  };
  if (const cudaError_t error = map(arguments.k, &keys); error != cudaSuccess) return error;
  if (const cudaError_t error = map(arguments.v, &values); error != cudaSuccess) return error;
  return LaunchOverlapping(HopperAttention<T, Kv, kHeadDim>, device.num_sms,
                           Shares<Kv, kHeadDim>::kThreads, Shares<Kv, kHeadDim>::SharedBytes(),
                           device.overlaps, stream, arguments, keys, values);
}

}  // namespace

cudaError_t LaunchHopperAttention(const AttentionArguments& arguments, DType dtype, DType kv_dtype,
                                  const AttentionDevice& device, cudaStream_t stream) {
  return DispatchAttention(dtype, kv_dtype, arguments.plan.head_dim,
                           [&]<typename T, typename Kv, int kHeadDim>() {
                             return Launch<T, Kv, kHeadDim>(arguments, kv_dtype, device, stream);
                           });
}

}  // namespace espalier::cuda
