#include "engine/sampler/row_math.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/core/check.h"

namespace espalier {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::span<const float> Block(std::span<const float> row, size_t begin) {
  return row.subspan(begin, std::min<size_t>(kRowBlock, row.size() - begin));
}

}  // namespace

// The sum is kept relative to the largest logit so far and rescaled when a block raises it, so
// that each block is read while it is in the first-level cache.
RowSummary Summarize(std::span<const float> row) {
  const internal::RowKernels& kernels = internal::NativeRowKernels();
  RowSummary result{.argmax = 0, .max = -kInf, .sum_exp = 0, .finite = false};
  size_t max_block = 0;
  for (size_t begin = 0; begin < row.size(); begin += kRowBlock) {
    const std::span<const float> block = Block(row, begin);
    const auto [max, nan] = kernels.max(block);
    if (nan || max == kInf) return result;
    if (max > result.max) {
      result.sum_exp *= std::exp(static_cast<double>(result.max) - max);
      result.max = max;
      max_block = begin;
    }
    if (max > -kInf) result.sum_exp += kernels.sum_exp(block, result.max);
  }
  if (result.max == -kInf) return result;
  result.argmax = static_cast<int>(
      std::find(row.begin() + static_cast<ptrdiff_t>(max_block), row.end(), result.max) -
      row.begin());
  result.finite = true;
  return result;
}

void ExpWeights(std::span<const float> row, float max, float scale, std::span<float> weights,
                std::vector<double>* block_sums) {
  ESPALIER_CHECK(weights.size() == row.size());
  const internal::RowKernels& kernels = internal::NativeRowKernels();
  block_sums->clear();
  for (size_t begin = 0; begin < row.size(); begin += kRowBlock) {
    block_sums->push_back(
        kernels.exp_weights(Block(row, begin), max, scale, weights.data() + begin));
  }
}

// Each block's maximum is one of the values, so the k-th largest of the maxima is reached by at
// least k values.
float KthLargestLowerBound(std::span<const float> values, int k, std::vector<float>* scratch) {
  constexpr size_t kBlock = 64;
  if (k <= 0 || static_cast<size_t>(k) > values.size() / kBlock) return -kInf;
  scratch->clear();
  for (size_t begin = 0; begin < values.size(); begin += kBlock) {
    const size_t count = std::min(kBlock, values.size() - begin);
    scratch->push_back(internal::NativeRowKernels().max(values.subspan(begin, count)).max);
  }
  const auto kth = scratch->begin() + (k - 1);
  std::nth_element(scratch->begin(), kth, scratch->end(), std::greater<>());
  return *kth;
}

}  // namespace espalier
