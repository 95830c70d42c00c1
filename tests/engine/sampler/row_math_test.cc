#include "engine/sampler/row_math.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace espalier {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> RandomRow(int size, float spread, std::mt19937_64& rng) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(size);
  for (float& x : row) x = normal(rng);
  return row;
}

// Sizes around the vector width, the block and a real vocabulary.
const int kSizes[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 1023, 1024, 1025, 2049, 49152};

TEST(SummarizeTest, EqualsADoublePrecisionReference) {
  for (int size : kSizes) {
    for (float spread : {0.01f, 3.0f, 200.0f}) {
      SCOPED_TRACE(testing::Message() << "seed = size " << size << ", spread " << spread);
      std::mt19937_64 rng(size);
      std::vector<float> row = RandomRow(size, spread, rng);
      if (size > 4) row[rng() % size] = -kInf;
      const auto max = std::ranges::max_element(row);
      double sum = 0;
      for (float x : row) sum += std::exp(static_cast<double>(x) - *max);

      const RowSummary summary = Summarize(row);
      ASSERT_TRUE(summary.finite);
      EXPECT_EQ(summary.max, *max);
      EXPECT_EQ(summary.argmax, max - row.begin());
      EXPECT_NEAR(summary.sum_exp / sum, 1.0, 2e-6);
    }
  }
}

TEST(SummarizeTest, TheLowestOfEqualMaximaWins) {
  for (int first : {0, 5, 1023, 1024, 3000}) {
    std::vector<float> row(5000, -1.0f);
    for (int i = first; i < 5000; i += 500) row[i] = 2.0f;
    EXPECT_EQ(Summarize(row).argmax, first);
  }
}

TEST(SummarizeTest, SaysSoWhereverARowIsNotFinite) {
  for (int size : {1, 8, 9, 1030}) {
    for (int at : {0, size / 2, size - 1}) {
      for (float bad : {kNan, -kNan, kInf}) {
        std::vector<float> row(size, 1.0f);
        row[at] = bad;
        EXPECT_FALSE(Summarize(row).finite) << size << " " << at << " " << bad;
      }
    }
    EXPECT_FALSE(Summarize(std::vector<float>(size, -kInf)).finite) << size;
  }
  EXPECT_FALSE(Summarize({}).finite);
}

TEST(SummarizeTest, ALeadingMaskedBlockIsNoObstacle) {
  std::vector<float> row(3 * kRowBlock, -kInf);
  row[2 * kRowBlock + 5] = -400.0f;
  const RowSummary summary = Summarize(row);
  ASSERT_TRUE(summary.finite);
  EXPECT_EQ(summary.argmax, 2 * kRowBlock + 5);
  EXPECT_EQ(summary.sum_exp, 1.0);
}

TEST(RowKernelsTest, NativeAndPortableEqualADoublePrecisionReference) {
  const internal::RowKernels* const both[] = {&internal::PortableRowKernels(),
                                              &internal::NativeRowKernels()};
  for (const internal::RowKernels* kernels : both) {
    SCOPED_TRACE(kernels == both[0] ? "portable" : "native");
    for (int size = 1; size <= 70; ++size) {
      SCOPED_TRACE(testing::Message() << "seed = size " << size);
      std::mt19937_64 rng(size);
      std::vector<float> block = RandomRow(size, 10.0f, rng);
      block[rng() % size] = -kInf;
      const float max = *std::ranges::max_element(block);
      EXPECT_EQ(kernels->max(block).max, max);
      EXPECT_FALSE(kernels->max(block).nan);
      if (max == -kInf) continue;

      std::vector<float> weights(size + 1, kNan);
      double sum = 0;
      double scaled_sum = 0;
      const double reported = kernels->exp_weights(block, max, 0.25f, weights.data());
      for (int i = 0; i < size; ++i) {
        sum += std::exp(static_cast<double>(block[i]) - max);
        const double weight = std::exp((static_cast<double>(block[i]) - max) * 0.25);
        scaled_sum += weight;
        EXPECT_NEAR(weights[i], weight, 1e-6 * weight);
        if (block[i] == max) {
          EXPECT_EQ(weights[i], 1.0f);
        }
        if (block[i] == -kInf) {
          EXPECT_EQ(weights[i], 0.0f);
        }
      }
      EXPECT_TRUE(std::isnan(weights[size]));  // nothing is written past the end
      EXPECT_NEAR(kernels->sum_exp(block, max) / sum, 1.0, 1e-6);
      EXPECT_NEAR(reported / scaled_sum, 1.0, 1e-6);
    }
  }
}

TEST(RowKernelsTest, EqualLogitsGetEqualWeightsWhereverTheyAre) {
  for (int size = 1; size <= 40; ++size) {
    for (float x : {-0.7f, -3.3f, -41.9f}) {
      const std::vector<float> block(size, x);
      std::vector<float> weights(size);
      internal::NativeRowKernels().exp_weights(block, 0, 1, weights.data());
      EXPECT_EQ(std::ranges::count(weights, weights[0]), size) << size << " " << x;
    }
  }
}

TEST(RowKernelsTest, ExpIsAccurateDownToItsCutOff) {
  for (const internal::RowKernels* kernels :
       {&internal::PortableRowKernels(), &internal::NativeRowKernels()}) {
    std::vector<float> block;
    for (float x = 0; x > -85.9f; x -= 0.0137f) block.push_back(x);
    std::vector<float> weights(block.size());
    kernels->exp_weights(block, 0, 1, weights.data());
    for (size_t i = 0; i < block.size(); ++i) {
      const double exact = std::exp(static_cast<double>(block[i]));
      ASSERT_NEAR(weights[i] / exact, 1.0, 2e-7) << block[i];
    }
    const std::vector<float> tiny(16, -87.5f);
    EXPECT_EQ(kernels->sum_exp(tiny, 0), 0.0);
  }
}

TEST(KthLargestLowerBoundTest, IsReachedByAtLeastKValues) {
  std::vector<float> scratch;
  for (int size : {1, 64, 100, 1000, 49152}) {
    for (int k : {0, 1, 2, 15, 50, 700}) {
      SCOPED_TRACE(testing::Message() << "seed = size " << size << ", k " << k);
      std::mt19937_64 rng(size);
      const std::vector<float> row = RandomRow(size, 1.0f, rng);
      const float bound = KthLargestLowerBound(row, k, &scratch);
      const auto reached = std::ranges::count_if(row, [&](float x) { return x >= bound; });
      EXPECT_GE(reached, std::min(k, size));
      if (size == 49152 && k == 50) {  // it is what it is for
        EXPECT_LT(reached, 100);
      }
    }
  }
}

}  // namespace
}  // namespace espalier
