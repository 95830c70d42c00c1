// The draw: the lowest id whose cumulative weight, in order of ids, exceeds a target.
#pragma once

#include "kernels/cuda/device_sampler_select.cuh"

namespace espalier::device_sampler {

// The sum of each block's weights, to every block of the row, in fp32 along eight lanes and then in
// double: the order, and so the bits, of the AVX2 kernel of engine/sampler/row_kernels.cc. A warp
// has four blocks, each a step behind the one before it, so that they read different banks.
template <int kBlocks, int kThreads>
__device__ void SumBlocksAsCpu(const Slice<kThreads>& slice) {
  using Group = RowGroup<kBlocks, kThreads>;
  constexpr int kSteps = kRowBlock / 8;
  for (int first = 4 * Warp(); first < slice.num_blocks; first += 4 * Group::kWarps) {
    const int quarter = Lane() / 8;
    const int block = first + quarter;
    const int steps = block < slice.num_blocks ? kSteps : 0;
    const float* const from = slice.values + block * kRowBlock + Lane() % 8;
    float lane_sum = 0;
#pragma unroll 8
    for (int step = 0; step < kSteps + 3; ++step) {
      const int i = step - quarter;
      if (i >= 0 && i < steps) lane_sum = __fadd_rn(lane_sum, from[8 * i]);
    }
    double sum = lane_sum;
    for (int lane_mask = 4; lane_mask > 0; lane_mask /= 2) sum += ShuffleXor(sum, lane_mask);
    if (steps > 0 && Lane() % 8 < kBlocks) {
      *Group::At(&slice.block_sums[slice.first_block + block], Lane() % 8) = sum;
    }
  }
  Group::Sync();
}

// The same in double throughout.
template <int kBlocks, int kThreads>
__device__ void SumBlocks(const Slice<kThreads>& slice) {
  using Group = RowGroup<kBlocks, kThreads>;
  for (int block = Warp(); block < slice.num_blocks; block += Group::kWarps) {
    const float* const from = slice.values + block * kRowBlock;
    double sum = 0;
#pragma unroll 8
    for (int i = Lane(); i < kRowBlock; i += 32) sum += from[i];
    sum = WarpReduce(sum, [](double a, double b) { return a + b; });
    Group::Publish(&slice.block_sums[slice.first_block + block], sum);
  }
  Group::Sync();
}

// Of block_sums. Every warp sums for itself, and gets the same bits.
template <int kThreads>
__device__ double TotalWeight(const Slice<kThreads>& slice) {
  double total = 0;
  for (int block = Lane(); block < slice.row_blocks; block += 32) total += slice.block_sums[block];
  return WarpReduce(total, [](double a, double b) { return a + b; });
}

// The block that the draw is in, the last if rounding lets none be; the target that is left there.
template <int kThreads>
__device__ int FindBlock(const Slice<kThreads>& slice, double* target) {
  for (int first = 0;; first += 32) {
    const int block = first + Lane();
    const double sum = block < slice.row_blocks ? slice.block_sums[block] : 0.0;
    const double through = WarpInclusiveSum(sum);
    const unsigned reaching = __ballot_sync(kAllLanes, sum > 0 && *target - through < 0);
    const bool last = first + 32 >= slice.row_blocks;
    if (reaching == 0 && !last) {
      *target -= __shfl_sync(kAllLanes, through, 31);
      continue;
    }
    const int lane = reaching != 0 ? __ffs(reaching) - 1 : slice.row_blocks - 1 - first;
    *target -= __shfl_sync(kAllLanes, through - sum, lane);
    return first + lane;
  }
}

// By one warp: 32 runs of 32 weights, first which run, then which of it.
__device__ inline DrawState DrawInBlock(const float* weights, int32_t first_token, double target) {
  const int lane = Lane();
  double run = 0;
#pragma unroll 8
  for (int i = 0; i < 32; ++i) run += weights[32 * lane + (i + lane) % 32];  // no bank conflicts
  const double through = WarpInclusiveSum(run);
  const unsigned reaching = __ballot_sync(kAllLanes, run > 0 && target - through < 0);
  if (reaching == 0) {
    return {.target = target - __shfl_sync(kAllLanes, through, 31), .token = -1};
  }
  const int chosen = __ffs(reaching) - 1;
  const double before = __shfl_sync(kAllLanes, through - run, chosen);
  const double weight = weights[32 * chosen + lane];
  const bool passed = target - before - WarpInclusiveSum(weight) < 0;
  const unsigned candidates = __ballot_sync(kAllLanes, weight > 0);
  const unsigned first = __ballot_sync(kAllLanes, weight > 0 && passed);
  // Rounding: the run reaches the target, but not along its weights. Then it is the last.
  const int last = 31 - __clz(candidates);
  return {.target = 0, .token = first_token + 32 * chosen + (first != 0 ? __ffs(first) - 1 : last)};
}

// block_sums are those of the weights.
template <int kBlocks, int kThreads>
__device__ int32_t DrawAt(Shared<kBlocks, kThreads>& shared, const Slice<kThreads>& slice,
                          int& turn, double target) {
  using Group = RowGroup<kBlocks, kThreads>;
  DrawState state;
  for (int block = FindBlock(slice, &target);; ++block) {
    DrawState* const published = &shared.draw[block % 2];
    const int local = block - slice.first_block;
    if (Warp() == 0 && local >= 0 && local < slice.num_blocks) {
      state = DrawInBlock(slice.values + local * kRowBlock, block * kRowBlock, target);
      Group::Publish(published, state);
    }
    Group::Sync();
    state = *published;
    // Rounding: the block's sum exceeds the target, but not its weights one by one. Then the next.
    if (state.token >= 0 || block + 1 == slice.row_blocks) break;
    target = state.target;
  }
  if (state.token >= 0) return state.token;
  // Rounding: the target was the whole weight. The last token that has any.
  int32_t last = -1;
  slice.Visit([&](int index, float weight) {
    if (weight > 0) last = max(last, slice.first_token() + index);
  });
  return Group::AllReduce(shared.exchange, turn, last, -1,
                          [](int32_t a, int32_t b) { return max(a, b); });
}

// Temperature, min-p, top-k, top-p, then the draw. `max` is the largest of the processed logits.
template <int kBlocks, int kThreads>
__device__ int32_t Draw(Shared<kBlocks, kThreads>& shared, const Slice<kThreads>& slice, int& turn,
                        int vocab, float max) {
  const Request& request = shared.request;
  const float scale = request.inverse_temperature;
  slice.Update([&](float logit) { return Exp(__fmul_rn(__fsub_rn(logit, max), scale)); });
  const double top_p = request.top_p;
  if (request.top_k <= 0 && request.min_p <= 0) {
    SumBlocksAsCpu<kBlocks>(slice);
    const double total = TotalWeight(slice);
    if (top_p >= 1) {
      return DrawAt(shared, slice, turn, __dmul_rn(request.uniform, total));
    }
    // What is below holds less than 1 - top_p of the weight all together.
    const float spare = static_cast<float>((1.0 - top_p) * total / vocab);
    slice.Update([&](float weight) { return weight >= fminf(spare, 1.0f) ? weight : 0.0f; });
    Keep<kBlocks>(slice, FindBorder<WeightKey, true>(shared, slice, __dmul_rn(top_p, total)));
  } else {
    if (request.min_p > 0) {
      slice.Update([&](float weight) { return weight >= request.min_p ? weight : 0.0f; });
    }
    if (request.top_k > 0) {
      Keep<kBlocks>(slice, FindBorder<WeightKey, false>(shared, slice, request.top_k));
    }
    if (top_p < 1) {
      SumBlocks<kBlocks>(slice);
      const double wanted = __dmul_rn(top_p, TotalWeight(slice));
      Keep<kBlocks>(slice, FindBorder<WeightKey, true>(shared, slice, wanted));
    }
  }
  SumBlocks<kBlocks>(slice);
  return DrawAt(shared, slice, turn, __dmul_rn(request.uniform, TotalWeight(slice)));
}

}  // namespace espalier::device_sampler
