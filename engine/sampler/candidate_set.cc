#include "engine/sampler/candidate_set.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/core/check.h"

namespace espalier {
namespace {

// The bits of a float in [0, 1] order as its value does. They are at most those of 1.0f, so the
// first digit is at most 2032.
struct Digit {
  int shift;
  uint32_t mask;
};
constexpr Digit kDigits[] = {{19, 0x1FFF}, {8, 0x7FF}, {0, 0xFF}};
constexpr size_t kBuckets = 2048;

uint32_t Bucket(float weight, Digit digit) {
  return (std::bit_cast<uint32_t>(weight) >> digit.shift) & digit.mask;
}

}  // namespace

// Both loops of this kind write first and count after: a branch would be mispredicted too often.
void CandidateSet::Collect(std::span<const float> weights, float threshold) {
  threshold = std::max(threshold, std::numeric_limits<float>::denorm_min());
  if (candidates_.size() < weights.size()) {
    candidates_.resize(weights.size());
    selection_.resize(weights.size());
  }
  size_ = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    candidates_[size_] = {weights[i], static_cast<int32_t>(i)};
    size_ += weights[i] >= threshold;
  }
  ESPALIER_CHECK(size_ > 0);
}

void CandidateSet::KeepMostLikely(int k) {
  if (size_ <= static_cast<size_t>(k)) return;
  DropBelow(FindBorder(k, [](const Candidate&) { return 1.0; }));
}

void CandidateSet::KeepWeight(double wanted) {
  DropBelow(FindBorder(wanted, [](const Candidate& c) { return static_cast<double>(c.weight); }));
}

template <typename Amount>
CandidateSet::Border CandidateSet::FindBorder(double wanted, Amount amount) {
  histogram_.resize(kBuckets);
  const Candidate* from = candidates_.data();
  size_t count = size_;
  for (Digit digit : kDigits) {
    std::ranges::fill(histogram_, 0.0);
    for (size_t i = 0; i < count; ++i) {
      histogram_[Bucket(from[i].weight, digit)] += amount(from[i]);
    }
    // Down to the bucket that reaches what is wanted; the last one if rounding lets none.
    size_t border = kBuckets;
    for (size_t bucket = kBuckets; bucket-- > 0;) {
      if (histogram_[bucket] == 0) continue;
      if (border < kBuckets) wanted -= histogram_[border];
      border = bucket;
      if (histogram_[bucket] >= wanted) break;
    }
    size_t selected = 0;
    for (size_t i = 0; i < count; ++i) {
      const Candidate c = from[i];
      selection_[selected] = c;
      selected += Bucket(c.weight, digit) == border;
    }
    from = selection_.data();
    count = selected;
  }
  const double ties = std::ceil(wanted / amount(from[0]));
  return {from[0].weight, static_cast<int64_t>(std::clamp(ties, 1.0, static_cast<double>(count)))};
}

void CandidateSet::DropBelow(Border border) {
  size_t kept = 0;
  for (size_t i = 0; i < size_; ++i) {
    const Candidate c = candidates_[i];
    candidates_[kept] = c;
    const bool tie = c.weight == border.weight;
    kept += c.weight > border.weight || (tie && border.ties > 0);
    border.ties -= tie;
  }
  size_ = kept;
}

double CandidateSet::TotalWeight() const {
  double total = 0;
  for (size_t i = 0; i < size_; ++i) total += candidates_[i].weight;
  return total;
}

int32_t CandidateSet::Draw(double uniform) const {
  double target = uniform * TotalWeight();
  for (size_t i = 0; i < size_; ++i) {
    target -= candidates_[i].weight;
    if (target < 0) return candidates_[i].token;
  }
  return candidates_[size_ - 1].token;  // rounding: the target was the whole weight
}

}  // namespace espalier
