#include "engine/sampler/candidate_set.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "gtest/gtest.h"

namespace espalier {
namespace {

// Weights of one octave or of many, with and without ties; the largest is 1, as the sampler's.
std::vector<float> RandomWeights(int size, std::mt19937_64& rng) {
  std::vector<float> weights(size);
  const int octaves = std::vector{0, 1, 20, 120}[rng() % 4];
  const int steps = rng() % 2 == 0 ? 4 : 1 << 20;
  for (float& w : weights) {
    const double exponent = static_cast<double>(rng() % steps) / steps * octaves;
    w = static_cast<float>(std::exp2(-exponent));
  }
  if (size > 5) weights[rng() % size] = 0;
  weights[rng() % size] = 1;
  return weights;
}

std::vector<int32_t> MostLikely(const std::vector<float>& weights, size_t count) {
  std::vector<int32_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) { return weights[a] > weights[b]; });
  while (!order.empty() && weights[order.back()] == 0) order.pop_back();
  if (order.size() > count) order.resize(count);
  return order;
}

double Sum(const std::vector<float>& weights, const std::vector<int32_t>& tokens) {
  double sum = 0;
  for (int32_t token : tokens) sum += weights[token];
  return sum;
}

// The set holds just these tokens: their weight, and each is drawn in the middle of its share.
void ExpectLeft(const CandidateSet& set, const std::vector<float>& weights,
                std::vector<int32_t> expected) {
  std::ranges::sort(expected);
  const double total = Sum(weights, expected);
  EXPECT_NEAR(set.TotalWeight() / total, 1.0, 1e-12);
  double before = 0;
  for (int32_t token : expected) {
    const double share = weights[token] / total;
    if (share > 1e-9) {
      EXPECT_EQ(set.Draw(before / total + share / 2), token);
    }
    before += weights[token];
  }
}

TEST(CandidateSetTest, KeepMostLikelyKeepsWhatASortWould) {
  CandidateSet set;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const std::vector<float> weights = RandomWeights(static_cast<int>(1 + rng() % 300), rng);
    const int k = static_cast<int>(1 + rng() % 320);
    set.Collect(weights, 0);
    set.KeepMostLikely(k);
    ExpectLeft(set, weights, MostLikely(weights, k));
  }
}

TEST(CandidateSetTest, KeepWeightKeepsTheFewestThatHoldIt) {
  CandidateSet set;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const std::vector<float> weights = RandomWeights(static_cast<int>(1 + rng() % 300), rng);
    set.Collect(weights, 0);
    // Between what n - 1 and what n of the most likely hold.
    const std::vector<int32_t> all = MostLikely(weights, weights.size());
    const size_t n = 1 + rng() % all.size();
    const std::vector<int32_t> kept = MostLikely(weights, n);
    if (weights[kept.back()] < 1e-9f) continue;  // rounding of the sum decides
    set.KeepWeight(Sum(weights, kept) - 0.5 * weights[kept.back()]);
    ExpectLeft(set, weights, kept);
  }
}

TEST(CandidateSetTest, CollectDropsWhatIsBelowTheThreshold) {
  const std::vector<float> weights = {0.0f, 0.25f, 1.0f, 0.5f, 0.0f};
  CandidateSet set;
  set.Collect(weights, 0);
  ExpectLeft(set, weights, {1, 2, 3});
  set.Collect(weights, 0.5f);
  ExpectLeft(set, weights, {2, 3});
  set.KeepWeight(0);
  ExpectLeft(set, weights, {2});
}

}  // namespace
}  // namespace espalier
