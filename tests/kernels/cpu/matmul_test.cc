#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/ops.h"
#include "tests/support/random_weights.h"

namespace espalier {
namespace {

using testing::RandomFloats;
using testing::RandomMatrix;

struct Product {
  double value = 0;
  double magnitude = 0;  // sum of |x * w|: what rounding errors are relative to
};

Product NaiveDot(const float* x, const float* w, int64_t n) {
  Product product;
  for (int64_t k = 0; k < n; ++k) {
    const double term = static_cast<double>(x[k]) * w[k];
    product.value += term;
    product.magnitude += std::abs(term);
  }
  return product;
}

// x rounded as kAuto documents it: in blocks of 32 to multiples of largest / 127.
std::vector<float> RoundToInt8Blocks(std::vector<float> x) {
  for (size_t block = 0; block < x.size(); block += 32) {
    float largest = 0;
    for (size_t j = 0; j < 32; ++j) largest = std::max(largest, std::abs(x[block + j]));
    if (largest == 0) continue;
    for (size_t j = 0; j < 32; ++j) {
      x[block + j] = std::nearbyint(x[block + j] * (127.0f / largest)) * (largest / 127.0f);
    }
  }
  return x;
}

struct Case {
  DType dtype;
  int rows;
  int64_t out_features;
  int64_t in_features;
};

std::string Name(const Case& c) {
  return std::string(Info(c.dtype).name) + " rows " + std::to_string(c.rows) + " out " +
         std::to_string(c.out_features) + " in " + std::to_string(c.in_features);
}

class MatMulTest : public ::testing::TestWithParam<std::tuple<CpuIsa, CpuPrecision>> {
 protected:
  CpuIsa isa() const { return std::get<0>(GetParam()); }
  CpuPrecision precision() const { return std::get<1>(GetParam()); }
  Context MakeContext(int threads) const { return Context::Cpu(threads, precision(), isa()); }

  void ExpectCorrect(const Context& ctx, const Case& c, uint32_t seed) {
    SCOPED_TRACE(Name(c) + " seed " + std::to_string(seed) + " threads " +
                 std::to_string(ctx.pool().num_threads()));
    std::mt19937 rng(seed);
    const RandomMatrix weight(c.dtype, c.out_features, c.in_features, rng);
    const std::vector<float> x = RandomFloats(c.rows * c.in_features, rng);
    const std::vector<float> bias = RandomFloats(c.out_features, rng);
    const bool with_bias = seed % 2 == 0;
    std::vector<float> out(c.rows * c.out_features, std::numeric_limits<float>::quiet_NaN());
    kernels::MatMul(ctx, {.x = x.data(),
                          .weight = weight.view,
                          .bias = with_bias ? bias.data() : nullptr,
                          .rows = c.rows,
                          .out = out.data()});

    const bool int8 = precision() == CpuPrecision::kAuto && Info(c.dtype).block_elements > 1;
    const std::vector<float> rounded = int8 ? RoundToInt8Blocks(x) : x;
    for (int r = 0; r < c.rows; ++r) {
      for (int64_t o = 0; o < c.out_features; ++o) {
        const float* w = weight.values.data() + o * c.in_features;
        const Product exact = NaiveDot(x.data() + r * c.in_features, w, c.in_features);
        const Product want = NaiveDot(rounded.data() + r * c.in_features, w, c.in_features);
        const double b = with_bias ? bias[o] : 0;
        const double got = out[r * c.out_features + o];
        ASSERT_LE(std::abs(got - want.value - b), 1e-6 + 2e-6 * want.magnitude)
            << "row " << r << " column " << o;
        // Rounding to 1 / 127 of a block's largest is an error of 1 % of the magnitude at most.
        ASSERT_LE(std::abs(got - exact.value - b), 0.01 * exact.magnitude + 1e-6);
      }
    }
  }
};

// Around every switch of kernel, tile and panel: rows 1..13, columns at 16 and 16 +- 1, depths at
// and beyond a panel.
TEST_P(MatMulTest, EqualsDoublePrecision) {
  const Context ctx = MakeContext(2);
  uint32_t seed = 1;
  for (DType dtype : testing::kAllDTypes) {
    const int64_t block = std::max(Info(dtype).block_elements, 1);
    for (int rows : {1, 2, 3, 4, 5, 7, 8, 13, 33}) {
      const int64_t depth = block == 1 ? 37 + 64 * rows : block * (1 + rows % 5);
      ExpectCorrect(ctx, {dtype, rows, 15 + rows % 3, depth}, seed++);
    }
    const int64_t deep = block == 1 ? 1300 : 1280;  // more than one panel of either kind
    ExpectCorrect(ctx, {dtype, 1, 70, deep}, seed++);
    ExpectCorrect(ctx, {dtype, 9, 50, deep}, seed++);
    ExpectCorrect(ctx, {dtype, 6, 1, deep}, seed++);
  }
}

TEST_P(MatMulTest, AnyNumberOfThreadsGivesTheSameBits) {
  std::mt19937 rng(7);
  for (DType dtype : testing::kAllDTypes) {
    const RandomMatrix weight(dtype, 200, 512, rng);
    for (int rows : {1, 6, 70}) {
      SCOPED_TRACE(std::string(Info(dtype).name) + " rows " + std::to_string(rows));
      const std::vector<float> x = RandomFloats(rows * 512, rng);
      std::vector<std::vector<float>> results;
      for (int threads : {1, 2, 5}) {
        const Context ctx = MakeContext(threads);
        results.emplace_back(rows * 200);
        kernels::MatMul(ctx, {.x = x.data(),
                              .weight = weight.view,
                              .bias = nullptr,
                              .rows = rows,
                              .out = results.back().data()});
      }
      EXPECT_EQ(results[0], results[1]);
      EXPECT_EQ(results[0], results[2]);
    }
  }
}

// A branch's logits must not depend on its batch mates beyond rounding.
TEST_P(MatMulTest, ARowBarelyDependsOnItsBatch) {
  const Context ctx = MakeContext(2);
  std::mt19937 rng(11);
  for (DType dtype : testing::kAllDTypes) {
    SCOPED_TRACE(Info(dtype).name);
    const RandomMatrix weight(dtype, 48, 768, rng);
    const std::vector<float> x = RandomFloats(20 * 768, rng);
    std::vector<float> together(20 * 48);
    kernels::MatMul(ctx, {.x = x.data(),
                          .weight = weight.view,
                          .bias = nullptr,
                          .rows = 20,
                          .out = together.data()});
    for (int r = 0; r < 20; ++r) {
      std::vector<float> alone(48);
      kernels::MatMul(ctx, {.x = x.data() + r * 768,
                            .weight = weight.view,
                            .bias = nullptr,
                            .rows = 1,
                            .out = alone.data()});
      for (int o = 0; o < 48; ++o) {
        const double magnitude =
            NaiveDot(x.data() + r * 768, weight.values.data() + o * 768, 768).magnitude;
        ASSERT_NEAR(alone[o], together[r * 48 + o], 1e-6 * magnitude) << r << " " << o;
      }
    }
  }
}

TEST_P(MatMulTest, ProjectionsOfMixedTypesShareTheirInput) {
  const Context ctx = MakeContext(2);
  std::mt19937 rng(13);
  const int64_t depth = 512;
  const RandomMatrix q4(DType::kQ4_1, 40, depth, rng);
  const RandomMatrix f32(DType::kF32, 33, depth, rng);
  const RandomMatrix q6(DType::kQ6_K, 17, depth, rng);
  const std::vector<float> bias = RandomFloats(33, rng);
  for (int rows : {1, 10}) {
    SCOPED_TRACE(rows);
    const std::vector<float> x = RandomFloats(rows * depth, rng);
    // The first two side by side in one buffer, with a gap that must stay untouched.
    const int64_t stride = 40 + 33 + 3;
    std::vector<float> side_by_side(rows * stride, -1234.0f);
    std::vector<float> third(rows * 17);
    const kernels::Projection projections[] = {
        {.weight = q4.view, .bias = nullptr, .out = side_by_side.data(), .out_stride = stride},
        {.weight = f32.view,
         .bias = bias.data(),
         .out = side_by_side.data() + 40,
         .out_stride = stride},
        {.weight = q6.view, .bias = nullptr, .out = third.data(), .out_stride = 17},
    };
    kernels::Project(ctx, {.x = x.data(), .projections = projections, .rows = rows});

    std::vector<float> want(rows * 40);
    kernels::MatMul(
        ctx, {.x = x.data(), .weight = q4.view, .bias = nullptr, .rows = rows, .out = want.data()});
    std::vector<float> want_f32(rows * 33);
    kernels::MatMul(ctx, {.x = x.data(),
                          .weight = f32.view,
                          .bias = bias.data(),
                          .rows = rows,
                          .out = want_f32.data()});
    std::vector<float> want_third(rows * 17);
    kernels::MatMul(ctx, {.x = x.data(),
                          .weight = q6.view,
                          .bias = nullptr,
                          .rows = rows,
                          .out = want_third.data()});
    EXPECT_EQ(third, want_third);
    for (int r = 0; r < rows; ++r) {
      for (int o = 0; o < 40; ++o) ASSERT_EQ(side_by_side[r * stride + o], want[r * 40 + o]);
      for (int o = 0; o < 33; ++o) {
        ASSERT_EQ(side_by_side[r * stride + 40 + o], want_f32[r * 33 + o]);
      }
      for (int o = 73; o < stride; ++o) ASSERT_EQ(side_by_side[r * stride + o], -1234.0f);
    }
  }
}

// Quantising activations to int8 must not turn a NaN into a number.
TEST_P(MatMulTest, NonFiniteActivationsReachTheResult) {
  const Context ctx = MakeContext(2);
  std::mt19937 rng(17);
  for (DType dtype : testing::kAllDTypes) {
    const RandomMatrix weight(dtype, 20, 512, rng);
    for (int rows : {1, 12}) {
      for (float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        SCOPED_TRACE(std::string(Info(dtype).name) + " rows " + std::to_string(rows));
        std::vector<float> x = RandomFloats(rows * 512, rng);
        x[(rows - 1) * 512 + 77] = bad;
        std::vector<float> out(rows * 20);
        kernels::MatMul(ctx, {.x = x.data(),
                              .weight = weight.view,
                              .bias = nullptr,
                              .rows = rows,
                              .out = out.data()});
        for (int o = 0; o < 20; ++o) {
          if (weight.values[o * 512 + 77] == 0 && std::isinf(bad)) continue;
          EXPECT_FALSE(std::isfinite(out[(rows - 1) * 20 + o])) << o;
        }
        for (int i = 0; i < (rows - 1) * 20; ++i) ASSERT_TRUE(std::isfinite(out[i]));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, MatMulTest,
                         ::testing::Combine(::testing::ValuesIn(testing::IsasOfThisMachine()),
                                            ::testing::Values(CpuPrecision::kF32,
                                                              CpuPrecision::kAuto)),
                         [](const auto& param) {
                           return std::string(CpuIsaName(std::get<0>(param.param))) +
                                  (std::get<1>(param.param) == CpuPrecision::kF32 ? "_f32"
                                                                                  : "_auto");
                         });

}  // namespace
}  // namespace espalier
