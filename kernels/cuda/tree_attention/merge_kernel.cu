// Grid: a few blocks an SM, which loop; a warp takes a (row, query head), or half of its columns
// where there are many states, so that all of these are asked for at once. Reads partial_rows *
// num_heads * (head_dim + 1) * 4 bytes.
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/tree_attention/attention_kernels.h"
#include "kernels/cuda/tree_attention/warp_mma.cuh"

namespace espalier::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 4;  // that an SM has registers for: 64 a thread
// That a warp asks for at once, of all columns; of half the columns twice as many.
constexpr int kFewStates = 8;

__device__ float WarpMax(float value) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, lane_mask));
  }
  return value;
}

// A lane's columns of a partial state: kHeadDim / 32 neighbours.
template <int kColumns>
struct alignas(4 * kColumns) Columns {
  float at[kColumns];
};

// Merges a row's states for a query head: of the columns [begin, begin + 32 * kColumns).
template <typename T, int kHeadDim, int kColumns, int kStates>
__device__ void MergeColumns(const AttentionArguments& p, const PlanMergeRow& row, int head,
                             int column_begin) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int column = column_begin + lane * kColumns;
  const int32_t* partials = reinterpret_cast<const int32_t*>(p.plan.header) + row.partials_at;
  Columns<kColumns> sum = {};
  float highest = -INFINITY;
  float total = 0;
  for (int begin = 0; begin < row.count; begin += kStates) {
    const int count = min(kStates, row.count - begin);
    const int state = lane < count ? __ldg(partials + begin + lane) * p.plan.num_heads + head : 0;
    AwaitKernelBefore();  // until here only the plan is read
    const float lse = lane < count ? p.plan.partial_lse[state] : -INFINITY;
    Columns<kColumns> columns[kStates];
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int64_t from = __shfl_sync(0xffffffff, state, i);
      columns[i] = {};
      if (i < count) {
        columns[i] = *reinterpret_cast<const Columns<kColumns>*>(p.plan.partial_out +
                                                                 from * kHeadDim + column);
      }
    }
    const float new_highest = fmaxf(highest, WarpMax(lse));
    const float factor = Exp2(highest - new_highest);
    const float weight = Exp2(lse - new_highest);
    highest = new_highest;
    total = total * factor + WarpSum(weight);
    for (float& x : sum.at) x *= factor;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const float share = __shfl_sync(0xffffffff, weight, i);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum.at[c] = fmaf(share, columns[i].at[c], sum.at[c]);
    }
  }
  struct alignas(sizeof(T) * kColumns) Narrow {
    T at[kColumns];
  } narrow;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) narrow.at[c] = FromFloat<T>(sum.at[c] / total);
  *reinterpret_cast<Narrow*>(static_cast<T*>(p.out) +
                             (int64_t{row.query} * p.plan.num_heads + head) * kHeadDim + column) =
      narrow;
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    MergeKernel(const __grid_constant__ AttentionArguments p) {
  constexpr int kColumns = kHeadDim / 32;
  const auto* words = reinterpret_cast<const int32_t*>(p.plan.header);
  const auto* rows = reinterpret_cast<const PlanMergeRow*>(words + p.plan.header->merge_rows_at);
  const int count = p.plan.header->num_merge_rows * p.plan.num_heads;
  const int warps = static_cast<int>(gridDim.x) * (kThreads / 32);
  LetDependentsStart();
  // Warps without work leave at once, and make room for the next kernel.
  for (int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) / 32; i < 2 * count;
       i += warps) {
    const int half = i < count ? 0 : 1;
    const int item = i - half * count;
    const PlanMergeRow row = rows[item / p.plan.num_heads];
    const int head = item % p.plan.num_heads;
    if (row.count > kFewStates) {
      MergeColumns<T, kHeadDim, kColumns / 2, 2 * kFewStates>(p, row, head, half * kHeadDim / 2);
    } else if (half == 0) {
      MergeColumns<T, kHeadDim, kColumns, kFewStates>(p, row, head, 0);
    }
  }
}

}  // namespace

cudaError_t LaunchMerge(const AttentionArguments& arguments, DType dtype,
                        const AttentionDevice& device, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  DispatchActivation(dtype, [&]<typename T>(T) {
    const auto kernel = arguments.plan.head_dim == 128 ? MergeKernel<T, 128> : MergeKernel<T, 64>;
    error = LaunchOverlapping(kernel, device.num_sms * kBlocksPerSm, kThreads, /*shared_bytes=*/0,
                              device.overlaps, stream, arguments);
  });
  return error;
}

}  // namespace espalier::cuda
