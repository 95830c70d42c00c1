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
// Of 384 threads three blocks fit a multiprocessor, in registers and in shared memory with 128k
// tokens: the phases of one row hide the waits of another.
constexpr int kClusterThreads = 384;
constexpr int kSingleThreads = 1024;

// Of some logits: the largest, its lowest token, and the sum of exp(logit - largest).
struct Summary {
  float largest;  // +inf as well when one is a NaN
  int32_t token;
  double sum;
};

constexpr int kRequestWords = sizeof(Request) / 4;

// The calling thread's word of a request.
__device__ int32_t RequestWord(const void* step, int index) {
  const auto* words = static_cast<const int32_t*>(step) + sizeof(StepHeader) / 4;
  return threadIdx.x < kRequestWords ? words[int64_t{index} * kRequestWords + threadIdx.x] : 0;
}

template <int kBlocks, int kThreads>
class RowSampler {
 public:
  using Group = RowGroup<kBlocks, kThreads>;

  __device__ RowSampler(Shared<kBlocks, kThreads>& shared, const Slice<kThreads>& slice,
                        const Shape& shape, const SampleParams& params)
      : shared_(shared), slice_(slice), shape_(shape), params_(params) {}

  // All threads of the row. `word` is the thread's of the request.
  __device__ void Run(int index, int32_t word) {
    Group::Arrive();
    SetRequest(word);
    const Request& request = shared_.request;
    const float* const row = params_.logits + int64_t{request.logits_row} * shape_.vocab;
    Load<kBlocks != 1>(slice_, row);

    Result result{.token = max(request.score_token, 0), .logprob = 0, .finite = 0, .num_top = 0};
    const Summary raw = Summarize();
    if (fabsf(raw.largest) < kInfinity) {
      const double log_sum = static_cast<double>(raw.largest) + log(raw.sum);
      if (request.top_logprobs > 0) result.num_top = WriteTop(index, log_sum);
      const int32_t token = request.score_token >= 0 ? request.score_token : Choose(raw);
      if (token >= 0) {
        const float logit = token == raw.token ? raw.largest : row[token];
        result.token = token;
        result.logprob = static_cast<float>(static_cast<double>(logit) - log_sum);
        result.finite = 1;
      }
    }
    if (Group::Rank() == 0 && threadIdx.x == 0) {
      if (result.finite == 0) result.num_top = 0;
      params_.results[index] = result;
    }
  }

 private:
  __device__ void SetRequest(int32_t word) {
    __syncthreads();  // the last row is done with it
    if (threadIdx.x < kRequestWords) {
      reinterpret_cast<int32_t*>(&shared_.request)[threadIdx.x] = word;
    }
    if (threadIdx.x == 0) shared_.num_top = 0;
    __syncthreads();
  }

  // The largest logit; +inf as well when one is a NaN.
  __device__ float LargestOfThread() const {
    float largest = -kInfinity;
    slice_.Visit([&](int, float x) { largest = fmaxf(largest, isnan(x) ? kInfinity : x); });
    return largest;
  }
  __device__ float Largest() {
    return Group::AllReduce(shared_.exchange, turn_, LargestOfThread(), -kInfinity,
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

  // Each block sums relative to its own largest logit, so that the row waits for all but once.
  __device__ Summary Summarize() {
    const float largest = Group::BlockReduce(shared_.exchange, LargestOfThread(), -kInfinity,
                                             [](float a, float b) { return fmaxf(a, b); });
    Summary part{.largest = largest, .token = INT_MAX, .sum = 0};
    if (fabsf(largest) < kInfinity) {
      slice_.Visit([&](int index, float x) {
        part.sum += Exp(x - largest);
        if (x == largest) part.token = min(part.token, slice_.first_token() + index);
      });
    }
    part = Group::BlockReduce(
        shared_.exchange, part, {.largest = largest, .token = INT_MAX, .sum = 0},
        [](const Summary& a, const Summary& b) {
          return Summary{
              .largest = a.largest, .token = min(a.token, b.token), .sum = a.sum + b.sum};
        });
    Group::Wait();  // every block of the row has begun
    Summary row{.largest = -kInfinity, .token = INT_MAX, .sum = 0};
    Group::ForEachBlock(shared_.exchange, turn_, part, [&](const Summary& block) {
      if (block.largest == -kInfinity) return;
      if (block.largest > row.largest) {
        row.sum *= row.sum > 0 ? Exp(row.largest - block.largest) : 0.0f;
        row.largest = block.largest;
        row.token = block.token;
      }
      row.sum += block.sum * Exp(block.largest - row.largest);
    });
    return row;
  }

  // The most likely tokens, in order, of the raw logits. Rank 0 learns how many.
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
    const int count = shared_.num_top;
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

  // -1 when nothing may be chosen.
  __device__ int32_t Choose(const Summary& raw) {
    const Request& request = shared_.request;
    float largest = raw.largest;
    int32_t token = raw.token;
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
__global__ void __launch_bounds__(kThreads, kBlocks == 1 ? 1 : 3)
    SampleKernel(const __grid_constant__ SampleParams params, const __grid_constant__ Shape shape) {
  using Group = RowGroup<kBlocks, kThreads>;
  const int rows_at_once = static_cast<int>(gridDim.x) / kBlocks;
  const int first = static_cast<int>(blockIdx.x) / kBlocks;
  // Read together, though there may be no such request: the step has room for it.
  int32_t word = RequestWord(params.step, first);
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
  if constexpr (kBlocks == 1) {
    slice.values = params.scratch + int64_t{first} * row_blocks * kRowBlock;
    slice.block_sums = reinterpret_cast<double*>(dynamic);
    slice.met = reinterpret_cast<uint32_t*>(slice.block_sums + row_blocks);
    for (int i = threadIdx.x; i < row_blocks * (kRowBlock / 32); i += kThreads) slice.met[i] = 0;
  } else {
    slice.values = reinterpret_cast<float*>(dynamic);
    slice.block_sums = reinterpret_cast<double*>(slice.values + shape.slice_blocks * kRowBlock);
    slice.met = shared.counters;
  }
  for (int i = threadIdx.x; i < 2 * kBuckets; i += kThreads) shared.counters[i] = 0;

  RowSampler<kBlocks, kThreads> sampler(shared, slice, shape, params);
  for (int index = first; index < num_requests; index += rows_at_once) {
    if (index != first) word = RequestWord(params.step, index);
    sampler.Run(index, word);
  }
}

}  // namespace

Shape ChooseShape(const Context& ctx, int vocab, bool portable) {
  ESPALIER_CHECK(vocab > 0 && vocab <= kMaxVocab);
  const CudaState& device = ctx.cuda();
  const int row_blocks = (vocab + kRowBlock - 1) / kRowBlock;
  const auto shape_of = [&](int blocks_per_row) {
    Shape shape{.vocab = vocab, .blocks_per_row = blocks_per_row};
    shape.slice_blocks = (row_blocks + blocks_per_row - 1) / blocks_per_row;
    // Sums of all blocks, and the slice's values or, where these are elsewhere, its flags.
    shape.shared_bytes = static_cast<int>(sizeof(double)) * row_blocks +
                         shape.slice_blocks * (blocks_per_row > 1 ? 4 * kRowBlock : kRowBlock / 8);
    return shape;
  };
  const Shape cluster = shape_of(kClusterBlocks);
  const size_t cluster_shared =
      cluster.shared_bytes + sizeof(Shared<kClusterBlocks, kClusterThreads>);
  if (!portable && device.compute_capability >= 90 &&
      cluster_shared <= static_cast<size_t>(device.max_shared_bytes) &&
      cluster.slice_blocks * (kRowBlock / 32) <= 2 * kBuckets) {
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
