// For sm_90a: products of whole warpgroups. Grid: one block an SM, each with a ring of stages of 64
// KV tokens. Four warps fill the ring, from a second one, by way of four more, where KV is of 8
// bits; two warpgroups of 64 packed rows each drain it. Shared memory: the ring, 32 KiB a stage at
// head_dim 128, and as much for Q, which consumers hold in registers.
#include "kernels/cuda/tree_attention/dispatch_attention.cuh"
#include "kernels/cuda/tree_attention/packed_rows.cuh"
#include "kernels/cuda/tree_attention/row_output.cuh"
#include "kernels/cuda/tree_attention/tensor_map.h"
#include "kernels/cuda/tree_attention/tensor_stream.cuh"
#include "kernels/cuda/tree_attention/widening_stream.cuh"

// Compiled to nothing for other architectures, where nothing launches it.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ESPALIER_HOPPER 1
#include "kernels/cuda/tree_attention/rows_in_flight.cuh"
#endif

namespace espalier::cuda {
namespace {

constexpr int kTileRows = 64;  // packed rows of a product
constexpr int kGroups = kConsumers / 4;
static_assert(kMostPackedRows == kTileRows * kGroups);

constexpr int kProducers = 4;  // two bring K, of which the first claims units; two bring V
constexpr int kOnesBytes = 16 * 8 * 2;

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
  static __host__ __device__ int OnesAt() { return (Layout().bytes + 127) / 128 * 128; }
  // Of the ring of what is to be widened.
  static __host__ __device__ int NarrowAt() { return OnesAt() + kOnesBytes; }
  static int SharedBytes() { return NarrowAt() + (kWidens ? NarrowLayout<kHeadDim>::kBytes : 0); }
};

#ifdef ESPALIER_HOPPER

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

template <typename T, typename Kv, int kHeadDim, bool kPairs>
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
    UnitStages stages(block.ring, block.shared + layout.rows, Uniform(unit.partition.num_stages),
                      &place);
    const WarpRows of_warp(p, unit, tile);
    LoadQueries<T, Kv, kHeadDim>(p, unit, of_warp, room);
    QueriesCame(block, &first_queries);
    RowsInFlight<ProductType<T, Kv>, kHeadDim, kPairs> rows(
        block.ring, Uniform(unit.in_pair) != 0,
        SharedAddress(block.shared + Shares<Kv, kHeadDim>::OnesAt()), group, tile, room,
        ScoreScale<Kv>(p));
    rows.Take(&stages);
    if (tile.ways > 1) {
      MergeWays<kHeadDim>(reinterpret_cast<float*>(block.shared + layout.room), tile,
                          &rows.state());
    }
    if (tile.way == 0) StoreRows<T>(p, of_warp, ValueScale<Kv>(p, unit), rows.state(), room);
    LeaveUnit(block, &slot);
  }
}

// A producer warp's part of a stage: `index` of kProducers.
struct ProducerPart {
  __device__ explicit ProducerPart(int index)
      : is_key(index < 2), first_token(index % 2 * kWarpTokens) {}
  bool is_key;
  int first_token;
};

// A producer warp. `first` is the block's first unit, and `rows` was started for it.
template <typename Tile, bool kPairs>
__device__ void Produce(const BlockState& block, const Ring& ring, const AttentionArguments& p,
                        const CUtensorMap& map, int index, const Unit& first,
                        const RowsAhead& rows) {
  const ProducerPart part(index);
  TensorStream<Tile, kPairs> stream(ring, SharedAddress(&block.barriers->queries), p, map,
                                    part.is_key, part.first_token, rows);
  stream.Start(first);
  LetDependentsStart();
  if (index == 0) {
    ClaimUnits(block, p, first, stream);
    // The other block may still release stages of this one's ring.
    if (kPairs && first.in_pair) stream.Drain();
  } else {
    FollowUnits(block, stream);
  }
}

#endif  // ESPALIER_HOPPER

// kPairs: the plan has pairs, and blocks are launched in clusters of two. Not where KV is widened.
template <typename T, typename Kv, int kHeadDim, bool kPairs>
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
  const int producer = warp - kConsumers;
  Unit first;
  RowsAhead rows;
  if (warp == 0) {
    InitBarriers(block, kConsumers, kProducers, kReleases<kPairs>, Mine::kWideners);
    if constexpr (Mine::kWidens) InitRing(narrow, kProducers * 32, Mine::kWideners);
    if constexpr (kPairs) AnnounceBarriers();
  } else if (producer >= 0 && producer < kProducers) {
    const ProducerPart part(producer);
    first = UnitAt(p, static_cast<int>(blockIdx.x));
    rows.Start(p, first.index, part.first_token);
    if (threadIdx.x % 32 == 0) PrefetchMap(part.is_key ? keys : values);
  }
  if (threadIdx.x < kOnesBytes / 4) {
    reinterpret_cast<uint32_t*>(shared + Mine::OnesAt())[threadIdx.x] =
        Pack<ProductType<T, Kv>>(1, 1);
    ProductsSeeCopies();
  }
  if constexpr (kPairs) SyncCluster();
  __syncthreads();
  if (warp < kConsumers) {
    LetDependentsStart();
    TakeRegisters<Mine::kConsumerRegisters>();
    Consume<T, Kv, kHeadDim, kPairs>(block, layout, p);
  } else if (producer < kProducers) {
    GiveRegisters<Mine::kProducerRegisters>();
    using Tile = std::conditional_t<Mine::kWidens, NarrowTile<kHeadDim>, OperandTile<kHeadDim>>;
    const bool is_key = ProducerPart(producer).is_key;
    Produce<Tile, kPairs>(block, Mine::kWidens ? narrow : block.ring, p, is_key ? keys : values,
                          producer, first, rows);
  } else if constexpr (Mine::kWidens) {
    GiveRegisters<Mine::kWidenerRegisters>();
    LetDependentsStart();
    const ProducerPart part(producer - kProducers);
    WideningStream<kHeadDim> stream(narrow, block.ring, part.is_key, part.first_token);
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
  using Mine = Shares<Kv, kHeadDim>;
  LaunchShape shape = {
      .blocks = device.num_sms, .threads = Mine::kThreads, .shared_bytes = Mine::SharedBytes()};
  auto* kernel = HopperAttention<T, Kv, kHeadDim, false>;
  if constexpr (!Mine::kWidens) {
    if (arguments.plan.has_pairs) {
      kernel = HopperAttention<T, Kv, kHeadDim, true>;
      shape.cluster_blocks = 2;
    }
  }
  return LaunchOverlapping(kernel, shape, device.overlaps, stream, arguments, keys, values);
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
