// For sm_90a: products of whole warpgroups. Grid: one block an SM, each with a ring of stages of 64
// KV tokens. Four warps fill the ring, two warpgroups of 64 packed rows each drain it. Shared
// memory: the ring, 32 KiB a stage at head_dim 128, and as much for Q, which consumers hold in
// registers.
#include "kernels/cuda/tree_attention/dispatch_attention.cuh"
#include "kernels/cuda/tree_attention/packed_rows.cuh"
#include "kernels/cuda/tree_attention/unit_stream.cuh"

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
constexpr int kThreads = 32 * (kConsumers + kProducers);
// Registers a thread: 168 at launch, moved to where they are needed.
constexpr int kConsumerRegisters = 208;
constexpr int kProducerRegisters = 88;
static_assert(32 * (kConsumers * kConsumerRegisters + kProducers * kProducerRegisters) <=
              168 * kThreads);

// 64 keys or values as products read them: blocks of 64 dimensions, in each 128
// bytes a row.
template <int kDim>
struct OperandTile {
  static constexpr int kHeadDim = kDim;
  static constexpr int kRowBytes = 128;
  static constexpr int kBlockBytes = 64 * kRowBytes;
  static __device__ int Offset(int row, int chunk) {
    return chunk / 8 * kBlockBytes + row * kRowBytes + ((chunk % 8 ^ row % 8) << 4);
  }
};
static_assert(kStageTokens == 64 && kTileRows == 64);

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

// Starts score = queries * keys^T, in steps of 16 dimensions: 32 bytes of every key.
template <typename T, int kHeadDim>
__device__ void StartScore(const uint32_t (&queries)[Geometry<kHeadDim>::kKeySteps][4],
                           uint32_t keys, float (&score)[kStageTokens / 8][4]) {
  using Tile = OperandTile<kHeadDim>;
#pragma unroll
  for (int step = 0; step < Geometry<kHeadDim>::kKeySteps; ++step) {
    const uint64_t k = SharedOperand(keys + step / 4 * Tile::kBlockBytes + step % 4 * 32,
                                     /*across=*/0, /*along=*/8 * Tile::kRowBytes);
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
#pragma unroll
  for (int block = 0; block < kStageTokens / 16; ++block) {
    StartProductByRows<T>(out, weights[block],
                          SharedOperand(values + block * 16 * Tile::kRowBytes,
                                        /*across=*/Tile::kBlockBytes,
                                        /*along=*/8 * Tile::kRowBytes));
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

// A warpgroup's rows against a stage that some of them see.
template <typename T, int kHeadDim>
__device__ void TakeStage(const uint32_t* token_rows, uint32_t stage,
                          const uint32_t (&queries)[Geometry<kHeadDim>::kKeySteps][4],
                          const WarpTile& tile, float scale, WarpState<kHeadDim>* state) {
  float score[kStageTokens / 8][4];
  ProductsFence();
  StartScore<T, kHeadDim>(queries, stage, score);
  const Visibility see = SeeStage(token_rows, tile);
  AwaitProducts<0>(score);
  uint32_t weights[kStageTokens / 16][4] = {};
  if (see.Any()) {
    if (!see.all) Mask(token_rows, tile, score);
    float factor[2];
    Weigh<kHeadDim>(scale, score, state, factor);
    Rescale(factor, state);
    PackWeights<T>(score, weights);
  }
  ProductsFence();
  StartValues<T, kHeadDim>(stage + Geometry<kHeadDim>::kSideBytes, weights, state->out);
  AwaitProducts<0>(state->out);
}

template <typename T, int kHeadDim>
__device__ void Consume(const BlockState& block, const SharedLayout<kHeadDim>& layout,
                        const AttentionArguments& p) {
  using G = Geometry<kHeadDim>;
  using Rows = RowTile<kHeadDim>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int heads = p.plan.num_heads / p.plan.num_kv_heads;
  const uint32_t room = SharedAddress(block.shared + layout.room) + warp * kWarpRows * G::kRowBytes;
  RingPlace place;
  RingPlace slot;
  bool first_queries = true;
  while (true) {
    const Unit& unit = AwaitUnit(block, slot);
    if (unit.kv_head < 0) break;
    const WarpTile group = TileOfGroup(warp / 4, unit.partition.num_rows * heads);
    const WarpTile tile = TileOfWarp(group, warp % 4);
    LoadQueries<T, kHeadDim>(p, unit, tile, room);
    QueriesCame(block, &first_queries);
    uint32_t queries[G::kKeySteps][4];
#pragma unroll
    for (int step = 0; step < G::kKeySteps; ++step) {
      LoadMatrices(queries[step],
                   Rows::AdvanceChunks(room + Rows::Offset(lane % 16, lane / 16), step));
    }
    WarpState<kHeadDim> state = {};
    state.highest[0] = state.highest[1] = kNever;

    const int num_stages = (unit.partition.num_tokens + kStageTokens - 1) / kStageTokens;
    for (int s = 0; s < num_stages; ++s) {
      BarrierWait(SharedAddress(&block.barriers->full[place.at]), place.lap);
      const auto* token_rows =
          reinterpret_cast<const uint32_t*>(block.shared + layout.rows) + place.at * kStageTokens;
      if ((s & (tile.ways - 1)) == tile.way && SeeStage(token_rows, group).Any()) {
        ProductsSeeCopies();
        TakeStage<T>(token_rows, block.stages + place.at * G::kStageBytes, queries, tile,
                     p.scale_log2, &state);
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(SharedAddress(&block.barriers->empty[place.at]));
      place.Next(block.num_stages);
    }
    if (tile.ways > 1) {
      MergeWays<kHeadDim>(reinterpret_cast<float*>(block.shared + layout.room), tile, &state);
    }
    if (tile.way == 0) StoreRows<T, kHeadDim>(p, unit, tile, state);
    LeaveUnit(block, &slot);
  }
}

#endif  // ESPALIER_HOPPER

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, 1)
    HopperAttention(const __grid_constant__ AttentionArguments p) {
#ifdef ESPALIER_HOPPER
  extern __shared__ __align__(1024) std::byte shared[];
  constexpr int kStages = kRingBytes / Geometry<kHeadDim>::kStageBytes;
  const SharedLayout<kHeadDim> layout(kStages, kRoomBytes<kHeadDim>);
  const BlockState block = BlockStateOf(shared, layout, kStages);
  if (threadIdx.x == 0) InitBarriers<kProducers>(block, kConsumers);
  __syncthreads();
  LetDependentsStart();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kConsumers) {
    TakeRegisters<kConsumerRegisters>();
    AwaitKernelBefore();
    Consume<T>(block, layout, p);
    return;
  }
  GiveRegisters<kProducerRegisters>();
  constexpr int kHalf = kStageTokens / 2;
  const int index = warp - kConsumers;
  const Producer<OperandTile<kHeadDim>, kHalf> producer = {.is_key = index < 2,
                                                           .first_token = index % 2 * kHalf};
  if (index == 0) {
    producer.ClaimUnits(block, p);
  } else {
    AwaitKernelBefore();
    producer.FollowUnits(block, p);
  }
#endif
}

template <typename T, int kHeadDim>
cudaError_t Launch(const AttentionArguments& arguments, const AttentionDevice& device,
                   cudaStream_t stream) {
  const SharedLayout<kHeadDim> layout(kRingBytes / Geometry<kHeadDim>::kStageBytes,
                                      kRoomBytes<kHeadDim>);
  return LaunchOverlapping(HopperAttention<T, kHeadDim>, device.num_sms, kThreads, layout.bytes,
                           device, stream, arguments);
}

}  // namespace

cudaError_t LaunchHopperAttention(const AttentionArguments& arguments, DType dtype,
                                  const AttentionDevice& device, cudaStream_t stream) {
  return DispatchAttention(dtype, arguments.plan.head_dim, [&]<typename T, int kHeadDim>() {
    return Launch<T, kHeadDim>(arguments, device, stream);
  });
}

}  // namespace espalier::cuda
