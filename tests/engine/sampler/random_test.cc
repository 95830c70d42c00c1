#include <cstdint>
#include <unordered_set>

#include "engine/sampler/sampler.h"
#include "gtest/gtest.h"

namespace espalier {
namespace {

// The first outputs of SplitMix64 from state 1234567, as the generator's authors publish them.
TEST(BranchUniformTest, IsTheSplitMix64Stream) {
  const uint64_t expected[] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                               4593380528125082431u, 16408922859458223821u};
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(BranchUniform(1234567, i), static_cast<double>(expected[i] >> 11) * 0x1p-53);
  }
}

TEST(BranchUniformTest, IsUniformOverTheUnitInterval) {
  constexpr int kBins = 64;
  constexpr int kDraws = 64000;
  // Successive tokens of one branch, and the first token of many siblings.
  for (bool siblings : {false, true}) {
    SCOPED_TRACE(siblings);
    int counts[kBins] = {};
    for (int i = 0; i < kDraws; ++i) {
      const double u = siblings ? BranchUniform(BranchSeed(7, 0, i), 0) : BranchUniform(7, i);
      ASSERT_GE(u, 0.0);
      ASSERT_LT(u, 1.0);
      ++counts[static_cast<int>(u * kBins)];
    }
    double chi_square = 0;
    const double expected = static_cast<double>(kDraws) / kBins;
    for (int count : counts) chi_square += (count - expected) * (count - expected) / expected;
    EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom, p = 0.001
  }
}

TEST(BranchSeedTest, DiffersForEveryPath) {
  std::unordered_set<uint64_t> seen;
  for (uint64_t parent : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
    for (int node = 0; node < 64; ++node) {
      for (int sample = 0; sample < 64; ++sample) {
        EXPECT_TRUE(seen.insert(BranchSeed(parent, node, sample)).second);
      }
    }
  }
  EXPECT_EQ(BranchSeed(3, 1, 2), BranchSeed(3, 1, 2));
}

}  // namespace
}  // namespace espalier
