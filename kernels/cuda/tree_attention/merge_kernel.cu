// Grid: a few blocks an SM, which loop; a warp takes a (row, query head), or half of its columns
// where there are many states, so that all of these are asked for at once. Reads partial_rows *
// num_heads * (head_dim * 2 + 8) bytes.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/tree_attention/attention_kernels.h"
#include "kernels/cuda/tree_attention/warp_mma.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 4;  // that an SM has registers for: 64 a thread
constexpr int kLoads = 4;        // of 16 bytes, that a lane asks for at once

__device__ float WarpMax(float value) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lane_mask));
  }
  return value;
}

// Of so many columns a warp asks for so many states at once: side by side in its lanes, and by
// kLoads.
template <int kColumns>
struct Share {
  static constexpr int kLanes = kColumns / 8;  // of a state
  static constexpr int kSideBySide = 32 / kLanes;
  static constexpr int kStates = kLoads * kSideBySide;
};

// Merges a row's states for a query head: of the columns [begin, begin + kColumns).
template <typename T, int kHeadDim, int kColumns>
__device__ void MergeColumns(const AttentionArguments& p, const PlanMergeRow& row, int head,
                             int column_begin) {
  using S = Share<kColumns>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int column = column_begin + lane % S::kLanes * 8;
  const int32_t* partials = reinterpret_cast<const int32_t*>(p.plan.header) + row.partials_at;
  const auto* partial_out = reinterpret_cast<const uint4*>(p.plan.partial_out + column);
  float sum[8] = {};
  float highest = -INFINITY;
  float total = 0;
  for (int begin = 0; begin < row.count; begin += S::kStates) {
    const int count = min(S::kStates, row.count - begin);
    const int state =
        lane < count ? LoadAhead(partials + begin + lane) * p.plan.num_heads + head : 0;
    AwaitKernelBefore();  // until here only the plan is read
    PartialWeight of_state = {.lse = -INFINITY, .scale = 0};
    if (lane < count) of_state = p.plan.partial_weights[state];
    uint4 columns[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = i * S::kSideBySide + lane / S::kLanes;
      const int64_t from = __shfl_sync(0xffffffff, state, index);
      columns[i] = make_uint4(0, 0, 0, 0);
      if (index < count) columns[i] = partial_out[from * (kHeadDim / 8)];
    }
    const float new_highest = fmaxf(highest, WarpMax(of_state.lse));
    const float factor = Exp2(highest - new_highest);
    const float weight = Exp2(of_state.lse - new_highest);
    highest = new_highest;
    total = total * factor + WarpSum(weight);
    for (float& x : sum) x *= factor;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int index = i * S::kSideBySide + lane / S::kLanes;
      const float share = __shfl_sync(0xffffffff, weight * of_state.scale, index);
      const auto& halves = reinterpret_cast<const __half2(&)[4]>(columns[i]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 two = __half22float2(halves[c]);
        sum[2 * c] = fmaf(share, two.x, sum[2 * c]);
        sum[2 * c + 1] = fmaf(share, two.y, sum[2 * c + 1]);
      }
    }
  }
#pragma unroll
  for (int apart = S::kLanes; apart < 32; apart *= 2) {
    for (float& x : sum) x += __shfl_xor_sync(0xffffffff, x, apart);
  }
  if (lane >= S::kLanes) return;
  const float factor = 1 / total;
  Eight<T> out;
#pragma unroll
  for (int c = 0; c < 8; ++c) out.at[c] = FromFloat<T>(sum[c] * factor);
  *reinterpret_cast<Eight<T>*>(static_cast<T*>(p.out) +
                               (int64_t{row.query} * p.plan.num_heads + head) * kHeadDim + column) =
      out;
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    MergeKernel(const __grid_constant__ AttentionArguments p) {
  const auto* words = reinterpret_cast<const int32_t*>(p.plan.header);
  const auto* rows = reinterpret_cast<const PlanMergeRow*>(words + p.plan.header->merge_rows_at);
  const int count = p.plan.header->num_merge_rows * p.plan.num_heads;
  const int warps = static_cast<int>(gridDim.x) * (kThreads / 32);
  LetDependentsStart();
  // Neighbours in different blocks, so that all SMs have as many. Warps without work leave at once,
  // and make room for the next kernel.
  for (int i = static_cast<int>(threadIdx.x / 32 * gridDim.x + blockIdx.x); i < 2 * count;
       i += warps) {
    const int half = i < count ? 0 : 1;
    const int item = i - half * count;
    const PlanMergeRow row = rows[item / p.plan.num_heads];
    const int head = item % p.plan.num_heads;
    if (row.count > Share<kHeadDim>::kStates) {
      MergeColumns<T, kHeadDim, kHeadDim / 2>(p, row, head, half * kHeadDim / 2);
    } else if (half == 0) {
      MergeColumns<T, kHeadDim, kHeadDim>(p, row, head, 0);
    }
  }
}

}  // namespace

cudaError_t LaunchMerge(const AttentionArguments& arguments, DType dtype,
                        const AttentionDevice& device, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  DispatchActivation(dtype, [&]<typename T>(T) {
    const auto kernel = arguments.plan.head_dim == 128 ? MergeKernel<T, 128> : MergeKernel<T, 64>;
    error =
        LaunchOverlapping(kernel, {.blocks = device.num_sms * kBlocksPerSm, .threads = kThreads},
                          device.overlaps, stream, arguments);
  });
  return error;
}

}  // namespace espalier::cuda
