// One row a cluster of thread blocks, which keep it in their shared memory: the logits are read
// from global memory once, whatever the filters. Devices before sm_90 have no clusters: there one
// block has a row, in global memory that the second-level cache holds.
//
// Grid: (blocks_per_row * rows at once). All reductions are in a fixed order or of integers: the
// same input gives the same bits, whatever else is in the step.
#include <algorithm>
#include <climits>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/device_sampler_draw.cuh"
#include "kernels/cuda/device_sampler_kernel.h"
#include "kernels/cuda/device_sampler_process.cuh"

namespace espalier::device_sampler {
namespace {

constexpr int kClusterBlocks = 8;  // the most that every device with clusters has
constexpr int kClusterThreads = 512;
constexpr int kSingleThreads = 1024;

struct SumAndToken {
  double sum;
  int32_t token;
};

template <int kBlocks, int kThreads>
class RowSampler {
 public:
  using Group = RowGroup<kBlocks, kThreads>;

  __device__ RowSampler(Shared<kBlocks, kThreads>& shared, const Slice<kThreads>& slice,
                        const Shape& shape, const SampleParams& params)
      : shared_(shared), slice_(slice), shape_(shape), params_(params) {}

  // All threads of the row.
  __device__ void Run(int index) {
    CopyRequest(index);
    const Request& request = shared_.request;
    const float* const row = params_.logits + int64_t{request.logits_row} * shape_.vocab;
    Load<kBlocks != 1>(slice_, row);

    Result result{.token = max(request.score_token, 0), .logprob = 0, .finite = 0, .num_top = 0};
    const float largest = Largest();
    if (fabsf(largest) < kInfinity) {
      const SumAndToken raw = SumExp(largest);
      const double log_sum = static_cast<double>(largest) + log(raw.sum);
      if (request.top_logprobs > 0) result.num_top = WriteTop(index, log_sum);
      if (request.score_token < 0) result.token = Choose(largest, raw.token);
      if (result.token >= 0) {
        result.finite = 1;
        result.logprob = static_cast<float>(static_cast<double>(row[result.token]) - log_sum);
      }
    }
    if (Group::Rank() == 0 && threadIdx.x == 0) {
      if (result.finite == 0) result.num_top = 0;
      result.token = max(result.token, 0);
      params_.results[index] = result;
    }
    Group::Sync();  // the next row takes the memory
  }

 private:
  __device__ void CopyRequest(int index) {
    constexpr int kWords = sizeof(Request) / 4;
    static_assert(kWords <= kThreads);
    const auto* from = static_cast<const int32_t*>(params_.step) + sizeof(StepHeader) / 4 +
                       int64_t{index} * kWords;
    if (threadIdx.x < kWords) {
      reinterpret_cast<int32_t*>(&shared_.request)[threadIdx.x] = from[threadIdx.x];
    }
    if (threadIdx.x == 0) shared_.num_top = 0;
    __syncthreads();
  }

  // The largest logit; +inf as well when one is a NaN.
  __device__ float Largest() {
    float largest = -kInfinity;
    slice_.Visit([&](int, float x) { largest = fmaxf(largest, isnan(x) ? kInfinity : x); });
    return Group::AllReduce(shared_.exchange, turn_, largest, -kInfinity,
                            [](float a, float b) { return fmaxf(a, b); });
  }

  // The lowest token of the largest logit.
  __device__ int32_t TokenOf(float largest) {
    int32_t token = INT_MAX;
    slice_.Visit([&](int index, float x) {
      if (x == largest) token = min(token, slice_.first_token() + index);
    });
    return Group::AllReduce(shared_.exchange, turn_, token, INT_MAX,
                            [](int32_t a, int32_t b) { return min(a, b); });
  }

  // That token, and the sum of exp(logit - largest).
  __device__ SumAndToken SumExp(float largest) {
    SumAndToken part{.sum = 0, .token = INT_MAX};
    slice_.Visit([&](int index, float x) {
      part.sum += Exp(x - largest);
      if (x == largest) part.token = min(part.token, slice_.first_token() + index);
    });
    return Group::AllReduce(shared_.exchange, turn_, part, SumAndToken{.sum = 0, .token = INT_MAX},
                            [](const SumAndToken& a, const SumAndToken& b) {
                              return SumAndToken{.sum = a.sum + b.sum,
                                                 .token = min(a.token, b.token)};
                            });
  }

  // The most likely tokens, in order, of the raw logits. Returns how many.
  __device__ int WriteTop(int index, double log_sum) {
    VisitKept<LogitKey, kBlocks>(
        slice_, FindBorder<LogitKey, false>(shared_, slice_, shared_.request.top_logprobs),
        [&](int i, float logit, bool kept) {
          if (!kept) return;
          const int place = atomicAdd(Group::At(&shared_.num_top, 0), 1);
          *Group::At(&shared_.top_logits[place], 0) = logit;
          *Group::At(&shared_.top_tokens[place], 0) = slice_.first_token() + i;
        });
    Group::Sync();
    const int count = *Group::At(&shared_.num_top, 0);
    if (Group::Rank() == 0 && static_cast<int>(threadIdx.x) < count) {
      const float logit = shared_.top_logits[threadIdx.x];
      const int32_t token = shared_.top_tokens[threadIdx.x];
      int place = 0;
      for (int i = 0; i < count; ++i) {
        const float other = shared_.top_logits[i];
        place += other > logit || (other == logit && shared_.top_tokens[i] < token);
      }
      params_.top[int64_t{index} * kMaxTop + place] = {
          .token = token, .logprob = static_cast<float>(static_cast<double>(logit) - log_sum)};
    }
    return count;
  }

  // -1 when nothing may be chosen. `largest` and `token` are those of the raw logits.
  __device__ int32_t Choose(float largest, int32_t token) {
    const Request& request = shared_.request;
    if (request.processed != 0) {
      Process(slice_, request, static_cast<const int32_t*>(params_.step));
      largest = Largest();
      if (!(fabsf(largest) < kInfinity)) return -1;
      if (request.greedy != 0) token = TokenOf(largest);
    }
    if (request.greedy != 0) return token;
    return Draw(shared_, slice_, turn_, shape_.vocab, largest);
  }

  Shared<kBlocks, kThreads>& shared_;
  const Slice<kThreads>& slice_;
  const Shape& shape_;
  const SampleParams& params_;
  int turn_ = 0;  // of RowGroup::Exchange
};

template <int kBlocks, int kThreads>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    SampleKernel(const __grid_constant__ SampleParams params, const __grid_constant__ Shape shape) {
  using Group = RowGroup<kBlocks, kThreads>;
  const int rows_at_once = static_cast<int>(gridDim.x) / kBlocks;
  const int first = static_cast<int>(blockIdx.x) / kBlocks;
  const int num_requests = static_cast<const StepHeader*>(params.step)->num_requests;
  if (first >= num_requests) return;

  __shared__ Shared<kBlocks, kThreads> shared;
  extern __shared__ float4 dynamic[];
  const int row_blocks = (shape.vocab + kRowBlock - 1) / kRowBlock;
  Slice<kThreads> slice;
  slice.first_block = min(Group::Rank() * shape.slice_blocks, row_blocks);
  slice.num_blocks = min(shape.slice_blocks, row_blocks - slice.first_block);
  slice.size = min(slice.num_blocks * kRowBlock, shape.vocab - slice.first_token());
  slice.size = max(slice.size, 0);
  slice.row_blocks = row_blocks;
  auto* free = reinterpret_cast<float*>(dynamic);
  if constexpr (kBlocks == 1) {
    slice.values = params.scratch + int64_t{first} * row_blocks * kRowBlock;
  } else {
    slice.values = free;
    free += shape.slice_blocks * kRowBlock;
  }
  slice.block_sums = reinterpret_cast<double*>(free);
  slice.met = reinterpret_cast<uint32_t*>(slice.block_sums + row_blocks);

  for (int bucket = threadIdx.x; bucket < kBuckets; bucket += kThreads) {
    shared.low[bucket] = 0;
    shared.high[bucket] = 0;
  }
  Group::Sync();  // every block of the row has begun, and its counters are 0
  RowSampler<kBlocks, kThreads> sampler(shared, slice, shape, params);
  for (int index = first; index < num_requests; index += rows_at_once) sampler.Run(index);
}

}  // namespace

Shape ChooseShape(const Context& ctx, int vocab, bool portable) {
  ESPALIER_CHECK(vocab > 0 && vocab <= kMaxVocab);
  const CudaState& device = ctx.cuda();
  const int row_blocks = (vocab + kRowBlock - 1) / kRowBlock;
  const auto shape_of = [&](int blocks_per_row) {
    Shape shape{.vocab = vocab, .blocks_per_row = blocks_per_row};
    shape.slice_blocks = (row_blocks + blocks_per_row - 1) / blocks_per_row;
    const bool in_shared = blocks_per_row != 1;
    shape.shared_bytes = static_cast<int>(sizeof(double)) * row_blocks +
                         shape.slice_blocks * (kRowBlock / 8 + (in_shared ? 4 * kRowBlock : 0));
    return shape;
  };
  const Shape cluster = shape_of(kClusterBlocks);
  const size_t cluster_shared =
      cluster.shared_bytes + sizeof(Shared<kClusterBlocks, kClusterThreads>);
  if (!portable && device.compute_capability >= 90 &&
      cluster_shared <= static_cast<size_t>(device.max_shared_bytes)) {
    cuda::Check(
        ctx, "Sample",
        cudaFuncSetAttribute(SampleKernel<kClusterBlocks, kClusterThreads>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, cluster.shared_bytes));
    Shape shape = cluster;
    shape.max_rows_at_once = INT_MAX / kClusterBlocks;
    return shape;
  }
  Shape shape = shape_of(1);
  cuda::Check(
      ctx, "Sample",
      cudaFuncSetAttribute(SampleKernel<1, kSingleThreads>,
                           cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes));
  shape.max_rows_at_once = device.num_sms;
  shape.scratch_bytes_per_row = sizeof(float) * kRowBlock * row_blocks;
  return shape;
}

void Launch(const Context& ctx, const Shape& shape, const SampleParams& params, int max_requests) {
  if (max_requests == 0) return;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.blocks_per_row), 1, 1};
  const bool clusters = shape.blocks_per_row > 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks_per_row * std::min(max_requests, shape.max_rows_at_once);
  config.blockDim = clusters ? kClusterThreads : kSingleThreads;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = cuda::StreamOf(ctx);
  config.attrs = &cluster;
  config.numAttrs = clusters ? 1 : 0;
  cuda::Check(ctx, "Sample",
              clusters
                  ? cudaLaunchKernelEx(&config, SampleKernel<kClusterBlocks, kClusterThreads>,
                                       params, shape)
                  : cudaLaunchKernelEx(&config, SampleKernel<1, kSingleThreads>, params, shape));
}

}  // namespace espalier::device_sampler
