// Grid: one block an SM, each with a ring of stages of 64 KV tokens. Two warps fill the ring, four
// where they widen KV of 8 bits; eight warps of 16 packed rows each drain it. Shared memory: the
// ring, 32 KiB a stage at head_dim 128, and as much for Q.
#include "kernels/cuda/tree_attention/dispatch_attention.cuh"
#include "kernels/cuda/tree_attention/gather_stream.cuh"
#include "kernels/cuda/tree_attention/packed_rows.cuh"
#include "kernels/cuda/tree_attention/row_output.cuh"

namespace espalier::cuda {
namespace {

// Half of them bring K, of which the first claims units, the others V.
template <typename Kv>
constexpr int kProducers = std::is_same_v<Kv, E4M3> ? 4 : 2;
template <typename Kv>
constexpr int kThreads = 32 * (kConsumers + kProducers<Kv>);
// In flight this many bytes hide the memory's latency; more only lengthen its queue.
constexpr int kRingBytes = 128 << 10;
// Two stages must fit where a block has least: 99 KiB, on sm_86 and sm_89.
static_assert(SharedLayout<128>(2, kRoomBytes<128>).bytes <= 99 << 10);

__device__ WarpTile TileOfWarp(int warp, int packed_rows) {
  int tiles = 1;
  while (tiles * kWarpRows < packed_rows) tiles *= 2;
  const int tile = warp % tiles;
  return {.row_begin = tile * kWarpRows,
          .row_end = min((tile + 1) * kWarpRows, packed_rows),
          .way = warp / tiles,
          .ways = kConsumers / tiles};
}

// Scores of 16 rows against the stage's 64 tokens; of halves that no row sees, kNever.
template <typename T, int kHeadDim>
__device__ void Score(uint32_t queries, uint32_t keys, const Visibility& see,
                      float (&score)[kStageTokens / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  queries += RowTile<kHeadDim>::Offset(lane % 16, lane / 16);
  keys += RowTile<kHeadDim>::Offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
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
      LoadMatrices(q, RowTile<kHeadDim>::AdvanceChunks(queries, step));
#pragma unroll
      for (int tile = half * 4; tile < half * 4 + 4; tile += 2) {
        uint32_t k[4];
        LoadMatrices(k, RowTile<kHeadDim>::AdvanceChunks(keys, step) +
                            tile * 8 * Geometry<kHeadDim>::kRowBytes);
        MultiplyAdd<T>(score[tile], q, k[0], k[1]);
        MultiplyAdd<T>(score[tile + 1], q, k[2], k[3]);
      }
    }
  }
}

// out += weights * V
template <typename T, int kHeadDim>
__device__ void AddValues(uint32_t values, const Visibility& see,
                          const float (&weight)[kStageTokens / 8][4], WarpState<kHeadDim>* state) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  values += RowTile<kHeadDim>::Offset(lane % 16, lane / 16);
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
      LoadMatricesTransposed(v, RowTile<kHeadDim>::AdvanceChunks(values, tile / 2) +
                                    block * 16 * Geometry<kHeadDim>::kRowBytes);
      MultiplyAdd<T>(state->out[tile], a, v[0], v[1]);
      MultiplyAdd<T>(state->out[tile + 1], a, v[2], v[3]);
    }
  }
}

template <typename T, typename Kv, int kHeadDim>
__device__ void Consume(const BlockState& block, const AttentionArguments& p) {
  using G = Geometry<kHeadDim>;
  using Product = ProductType<T, Kv>;
  const SharedLayout<kHeadDim> layout(block.ring.num_stages, kRoomBytes<kHeadDim>);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int group = p.plan.num_heads / p.plan.num_kv_heads;
  const uint32_t queries =
      SharedAddress(block.shared + layout.room) + warp * kWarpRows * G::kRowBytes;
  RingPlace place;
  RingPlace slot;
  bool first_queries = true;
  while (true) {
    const Unit& unit = AwaitUnit(block, slot);
    if (unit.kv_head < 0) break;
    const WarpTile tile = TileOfWarp(warp, unit.partition.num_rows * group);
    LoadQueries<T, Kv, kHeadDim>(p, unit, WarpRows(p, unit, tile), queries);
    QueriesCame(block, &first_queries);
    WarpState<kHeadDim> state = {};
    state.highest[0] = state.highest[1] = kNever;

    for (int s = 0; s < unit.partition.num_stages; ++s) {
      BarrierWait(block.ring.FullOf(place.at), place.lap);
      if ((s & (tile.ways - 1)) == tile.way) {
        const auto* token_rows =
            reinterpret_cast<const uint32_t*>(block.shared + layout.rows + place.at * kRowsBytes);
        const Visibility see = SeeStage(token_rows, tile);
        if (see.Any()) {
          const uint32_t stage = block.ring.stages + place.at * G::kStageBytes;
          float score[kStageTokens / 8][4];
          Score<Product, kHeadDim>(queries, stage, see, score);
          if (!see.all) Mask(token_rows, tile, score);
          float factor[2];
          Weigh<kHeadDim>(ScoreScale<Kv>(p), score, &state, factor);
          if (__any_sync(0xffffffff, factor[0] != 1 || factor[1] != 1)) Rescale(factor, &state);
          AddValues<Product, kHeadDim>(stage + G::kSideBytes, see, score, &state);
        }
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) BarrierArrive(block.ring.EmptyOf(place.at));
      place.Next(block.ring.num_stages);
    }
    if (tile.ways > 1) {
      MergeWays<kHeadDim>(reinterpret_cast<float*>(block.shared + layout.room), tile, &state);
    }
    if (tile.way == 0) {
      StoreRows<T>(p, WarpRows(p, unit, tile), ValueScale<Kv>(p, unit), state, queries);
    }
    LeaveUnit(block, &slot);
  }
}

template <typename T, typename Kv, int kHeadDim>
__global__ void __launch_bounds__(kThreads<Kv>, 1)
    PortableAttention(const __grid_constant__ AttentionArguments p, int num_stages) {
  extern __shared__ __align__(256) std::byte shared[];
  const SharedLayout<kHeadDim> layout(num_stages, kRoomBytes<kHeadDim>);
  const BlockState block = BlockStateOf(shared, layout, num_stages);
  if (threadIdx.x < 32) InitBarriers(block, kConsumers, kProducers<Kv>);
  __syncthreads();
  LetDependentsStart();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kConsumers) {
    AwaitKernelBefore();
    Consume<T, Kv, kHeadDim>(block, p);
    return;
  }
  const int index = warp - kConsumers;
  using Tile = RowTile<kHeadDim>;
  const auto stream = [&](bool is_key) {
    if constexpr (std::is_same_v<Kv, E4M3>) {
      return WideningGather<Tile>(block, p, is_key, /*first_token=*/index % 2 * 32);
    } else {
      return GatherStream<Tile>(block, p, is_key);
    }
  };
  if (index == 0) {
    auto keys = stream(/*is_key=*/true);
    ClaimUnits(block, p, UnitAt(p, static_cast<int>(blockIdx.x)), keys);
  } else {
    auto other = stream(/*is_key=*/kProducers<Kv> > 2 && index < kProducers<Kv> / 2);
    FollowUnits(block, other);
  }
}

template <typename T, typename Kv, int kHeadDim>
cudaError_t Launch(const AttentionArguments& arguments, const AttentionDevice& device,
                   cudaStream_t stream) {
  const int num_stages =
      NumStages<kHeadDim>(kRingBytes, kRoomBytes<kHeadDim>, device.max_shared_bytes);
  const SharedLayout<kHeadDim> layout(num_stages, kRoomBytes<kHeadDim>);
  return LaunchOverlapping(
      PortableAttention<T, Kv, kHeadDim>,
      {.blocks = device.num_sms, .threads = kThreads<Kv>, .shared_bytes = layout.bytes},
      device.overlaps, stream, arguments, num_stages);
}

}  // namespace

cudaError_t LaunchPortableAttention(const AttentionArguments& arguments, DType dtype,
                                    DType kv_dtype, const AttentionDevice& device,
                                    cudaStream_t stream) {
  return DispatchAttention(dtype, kv_dtype, arguments.plan.head_dim,
                           [&]<typename T, typename Kv, int kHeadDim>() {
                             return Launch<T, Kv, kHeadDim>(arguments, device, stream);
                           });
}

}  // namespace espalier::cuda
