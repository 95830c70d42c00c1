// The filters: the last token to keep by radix selection, three passes over a row that stays where
// it is. The same borders as CandidateSet of engine/sampler, whose digits these are.
//
// What a filter sums is exact, so that its order does not matter: tokens are counted, and weights
// that share the first digit share their exponent, so that their mantissas add up as integers.
#pragma once

#include <climits>

#include "kernels/cuda/device_sampler_row.cuh"

namespace espalier::device_sampler {

struct Digit {
  int shift;
  uint32_t mask;
};

// Weights are in [0, 1]: their bits order as their values do, the first digit is at most 1016, and
// 0 is no candidate.
struct WeightKey {
  static constexpr int kNumDigits = 3;
  __device__ static constexpr Digit At(int i) {
    constexpr Digit kDigits[kNumDigits] = {{20, 0x3FF}, {10, 0x3FF}, {0, 0x3FF}};
    return kDigits[i];
  }
  __device__ static uint32_t Of(float weight) { return __float_as_uint(weight); }
  __device__ static bool IsCandidate(float weight, bool) { return weight > 0; }
};

// Any logit but a NaN; -inf is a candidate, what fills up a block is not.
struct LogitKey {
  static constexpr int kNumDigits = 4;
  __device__ static constexpr Digit At(int i) {
    constexpr Digit kDigits[kNumDigits] = {{22, 0x3FF}, {12, 0x3FF}, {2, 0x3FF}, {0, 3}};
    return kDigits[i];
  }
  __device__ static uint32_t Of(float logit) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);  // of the two zeros one
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  }
  __device__ static bool IsCandidate(float, bool in_vocab) { return in_vocab; }
};

__device__ inline uint32_t Mantissa(uint32_t weight_bits) {
  return (weight_bits & 0x7FFFFF) | 0x800000;
}
// 2 to the power that one unit of such a weight's mantissa stands for.
__device__ inline double MantissaUnit(uint32_t weight_bits) {
  const int exponent = static_cast<int>(weight_bits >> 23) - 150;
  return __hiloint2double((exponent + 1023) << 20, 0);
}

struct Selection {
  uint32_t key;    // of the last token to keep; all of larger keys stay
  int64_t ties;    // how many of just this key stay: those of the lowest ids
  int64_t equals;  // how many there are
};

template <bool kWeighted>
__device__ double Amount(uint32_t low, uint32_t high, uint32_t key) {
  if constexpr (kWeighted) {
    return static_cast<double>(low + (static_cast<uint64_t>(high) << 12)) * MantissaUnit(key);
  } else {
    return low;
  }
}

// By rank 0: in which bucket, from the largest down, the sum reaches what is wanted; the last
// nonempty one if rounding lets none. Each thread has a run of buckets.
template <bool kWeighted, int kBlocks, int kThreads>
__device__ void FindBucket(Shared<kBlocks, kThreads>& shared, uint32_t prefix, Digit digit,
                           double wanted) {
  constexpr int kRun = (kBuckets + kThreads - 1) / kThreads;
  const uint32_t* const low = shared.counters;
  const uint32_t* const high = shared.counters + kBuckets;
  const auto bucket_of = [](int i) {
    return kBuckets - 1 - static_cast<int>(threadIdx.x) * kRun - i;
  };
  const auto amount_of = [&](int bucket) {
    if (bucket < 0) return 0.0;
    return Amount<kWeighted>(low[bucket], high[bucket],
                             prefix | static_cast<uint32_t>(bucket) << digit.shift);
  };
  double sum = 0;
  for (int i = 0; i < kRun; ++i) sum += amount_of(bucket_of(i));
  const double through = WarpInclusiveSum(sum);
  if (Lane() == 31) shared.warp_sums[Warp()] = through;
  if (threadIdx.x == 0) {
    shared.first_reaching = INT_MAX;
    shared.last_nonempty = 0;
  }
  __syncthreads();
  double before = through - sum;
  for (int warp = 0; warp < Warp(); ++warp) before += shared.warp_sums[warp];
  const int me = static_cast<int>(threadIdx.x);
  if (sum > 0) atomicMax(&shared.last_nonempty, me);
  if (sum > 0 && before + sum >= wanted) atomicMin(&shared.first_reaching, me);
  __syncthreads();
  const bool reached = shared.first_reaching != INT_MAX;
  if (me != (reached ? shared.first_reaching : shared.last_nonempty)) return;

  Border border{.bucket = 0, .equals = 0, .wanted = 0};
  double left = wanted - before;
  for (int i = 0; i < kRun; ++i) {
    const int bucket = bucket_of(i);
    const double amount = amount_of(bucket);
    if (amount == 0) continue;
    const uint32_t key = prefix | static_cast<uint32_t>(bucket) << digit.shift;
    const uint64_t units =
        low[bucket] + (kWeighted ? static_cast<uint64_t>(high[bucket]) << 12 : 0);
    border = {.bucket = bucket,
              .equals = static_cast<int64_t>(kWeighted ? units / Mantissa(key) : units),
              .wanted = left};
    if (amount >= left) break;
    left -= amount;
  }
  for (int rank = 0; rank < kBlocks; ++rank) {
    *RowGroup<kBlocks, kThreads>::At(&shared.border, rank) = border;
  }
}

// The border at which tokens, or their weight, summed from the largest key down, reach `wanted`.
template <typename Key, bool kWeighted, int kBlocks, int kThreads>
__device__ Selection FindBorder(Shared<kBlocks, kThreads>& shared, const Slice<kThreads>& slice,
                                double wanted) {
  using Group = RowGroup<kBlocks, kThreads>;
  uint32_t prefix = 0;
  uint32_t above = 0;  // the digits that are known
  for (int d = 0; d < Key::kNumDigits; ++d) {
    const Digit digit = Key::At(d);
    slice.Visit([&](int index, float value) {
      const uint32_t key = Key::Of(value);
      if (!Key::IsCandidate(value, index < slice.size) || (key & above) != prefix) return;
      const uint32_t bucket = (key >> digit.shift) & digit.mask;
      if constexpr (kWeighted) {
        atomicAdd(&shared.counters[bucket], Mantissa(key) & 0xFFF);
        atomicAdd(&shared.counters[kBuckets + bucket], Mantissa(key) >> 12);
      } else {
        atomicAdd(&shared.counters[bucket], 1u);
      }
    });
    __syncthreads();
    if (Group::Rank() != 0) {
      for (int i = threadIdx.x; i < 2 * kBuckets; i += kThreads) {
        const uint32_t mine = shared.counters[i];
        if (mine == 0) continue;
        atomicAdd(Group::At(&shared.counters[i], 0), mine);
        shared.counters[i] = 0;
      }
    }
    Group::Sync();
    if (Group::Rank() == 0) {
      FindBucket<kWeighted>(shared, prefix, digit, wanted);
      __syncthreads();
      for (int i = threadIdx.x; i < 2 * kBuckets; i += kThreads) shared.counters[i] = 0;
    }
    Group::Sync();
    prefix |= static_cast<uint32_t>(shared.border.bucket) << digit.shift;
    above |= digit.mask << digit.shift;
    wanted = shared.border.wanted;
  }
  const int64_t equals = shared.border.equals;
  const double one = kWeighted ? static_cast<double>(__uint_as_float(prefix)) : 1.0;
  const double ties = fmin(fmax(ceil(wanted / one), 1.0), static_cast<double>(equals));
  return {.key = prefix, .ties = static_cast<int64_t>(ties), .equals = equals};
}

// f(index, value, kept) for every value of the slice.
template <typename Key, int kBlocks, int kThreads, typename F>
__device__ void VisitKept(const Slice<kThreads>& slice, const Selection& selection, F f) {
  using Group = RowGroup<kBlocks, kThreads>;
  if (selection.ties == selection.equals) {
    slice.Visit([&](int index, float value) {
      f(index, value,
        Key::IsCandidate(value, index < slice.size) && Key::Of(value) >= selection.key);
    });
    return;
  }
  // Some of the tokens at the border stay: count them block by block, in order of ids.
  const auto is_tie = [&](int index, float value) {
    return Key::IsCandidate(value, index < slice.size) && Key::Of(value) == selection.key;
  };
  for (int block = Warp(); block < slice.num_blocks; block += Group::kWarps) {
    int ties = 0;
    for (int i = Lane(); i < kRowBlock; i += 32) {
      const int index = block * kRowBlock + i;
      ties += __popc(__ballot_sync(kAllLanes, is_tie(index, slice.values[index])));
    }
    Group::Publish(&slice.block_sums[slice.first_block + block], static_cast<double>(ties));
  }
  Group::Sync();
  for (int block = Warp(); block < slice.num_blocks; block += Group::kWarps) {
    double before = 0;
    for (int i = Lane(); i < slice.first_block + block; i += 32) before += slice.block_sums[i];
    before = WarpReduce(before, [](double a, double b) { return a + b; });
    auto left = selection.ties - static_cast<int64_t>(before);
    for (int i = Lane(); i < kRowBlock; i += 32) {
      const int index = block * kRowBlock + i;
      const float value = slice.values[index];
      const unsigned ties = __ballot_sync(kAllLanes, is_tie(index, value));
      const bool tie = (ties >> Lane() & 1) != 0;
      const int rank = __popc(ties & ((1u << Lane()) - 1));
      const bool larger =
          Key::IsCandidate(value, index < slice.size) && Key::Of(value) > selection.key;
      f(index, value, larger || (tie && rank < left));
      left -= __popc(ties);
    }
  }
  Group::Sync();  // block_sums may be written again
}

// Weights that the filter does not keep become 0, and so no candidates.
template <int kBlocks, int kThreads>
__device__ void Keep(const Slice<kThreads>& slice, const Selection& selection) {
  VisitKept<WeightKey, kBlocks>(slice, selection, [&](int index, float, bool kept) {
    if (!kept) slice.values[index] = 0;
  });
  __syncthreads();
}

}  // namespace espalier::device_sampler
