// Passes over a row of logits, vectorised for the processor at hand.
#pragma once

#include <span>
#include <vector>

namespace espalier {

struct RowSummary {
  int argmax = 0;       // lowest id of the largest logit
  float max = 0;        // the largest logit
  double sum_exp = 0;   // sum of exp(logit - max); relative error about 1e-6
  bool finite = false;  // no NaN, no +inf, and not all -inf; else the other fields mean nothing
};

// One pass over memory. log-softmax of element i is row[i] - max - log(sum_exp).
RowSummary Summarize(std::span<const float> row);

// weights[i] = exp((row[i] - max) * scale), exactly 1 at the maximum and exactly 0 at -inf and
// where the result would be below 5e-38. block_sums[b] is the sum of the b-th kRowBlock weights.
inline constexpr int kRowBlock = 1024;
void ExpWeights(std::span<const float> row, float max, float scale, std::span<float> weights,
                std::vector<double>* block_sums);

// A value that at least k of `values` reach, near the k-th largest when k is small beside the
// size: what is below need not be looked at to find the k largest. -inf when k is 0 or
// there are too few values to say. No value is NaN. `scratch` saves an allocation.
float KthLargestLowerBound(std::span<const float> values, int k, std::vector<float>* scratch);

namespace internal {

// One block, of at most kRowBlock elements. `nan` tells of any NaN; max is then meaningless.
struct BlockMax {
  float max;
  bool nan;
};
struct RowKernels {
  BlockMax (*max)(std::span<const float> block);
  double (*sum_exp)(std::span<const float> block, float max);
  double (*exp_weights)(std::span<const float> block, float max, float scale, float* weights);
};
// Plain C++, and the best for this processor.
const RowKernels& PortableRowKernels();
const RowKernels& NativeRowKernels();

}  // namespace internal
}  // namespace espalier
