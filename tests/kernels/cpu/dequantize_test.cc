#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/core/half.h"
#include "kernels/cpu/kernel_table.h"
#include "tests/support/random_weights.h"
#include "tests/support/tensor_file.h"

namespace espalier {
namespace {

using kernels::cpu::KernelsFor;
using testing::GoldenTensor;

class DequantizeTest : public ::testing::TestWithParam<DType> {};

// Bit for bit: the 1e-4 proofs of the forward stand on this.
TEST_P(DequantizeTest, EqualsThePythonReaderOnEveryInstructionSet) {
  std::string name(Info(GetParam()).name);
  std::transform(name.begin(), name.end(), name.begin(), ::tolower);
  const auto golden = testing::ReadGoldenTensors("quant/" + name + ".safetensors");
  const GoldenTensor& blocks = golden.at("blocks");
  const auto want = golden.at("values").As<float>();
  ASSERT_EQ(blocks.bytes.size(), BytesOf(GetParam(), static_cast<int64_t>(want.size())));
  for (CpuIsa isa : testing::IsasOfThisMachine()) {
    SCOPED_TRACE(CpuIsaName(isa));
    std::vector<float> got(want.size());
    KernelsFor(isa).dequantize(GetParam(), blocks.bytes.data(), static_cast<int64_t>(want.size()),
                               got.data());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(got[i], want[i]) << "element " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, DequantizeTest,
                         ::testing::Values(DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                                           DType::kQ4_1, DType::kQ4_K, DType::kQ6_K),
                         [](const auto& param) { return std::string(Info(param.param).name); });

// By the format's definition: sign, five bits of exponent, ten of fraction.
double HalfByDefinition(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(HalfTest, EveryHalfReadsByDefinitionAndSurvivesARoundTrip) {
  for (int bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const double want = HalfByDefinition(half);
    const float got = HalfToFloat(half);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << bits;
      ASSERT_TRUE(std::isnan(HalfToFloat(FloatToHalf(got)))) << bits;
      continue;
    }
    ASSERT_EQ(static_cast<double>(got), want) << bits;
    ASSERT_EQ(FloatToHalf(got), half) << bits;
  }
}

TEST(HalfTest, RoundsToTheNearestTiesToEven) {
  for (uint16_t half = 0; half < 0x7bff; ++half) {  // neighbours half and half + 1 are finite
    const float low = HalfToFloat(half);
    const float high = HalfToFloat(half + 1);
    const float middle = low + (high - low) / 2;  // exact in fp32
    const uint16_t even = half % 2 == 0 ? half : half + 1;
    ASSERT_EQ(FloatToHalf(middle), even) << half;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, -1.0f)), half) << half;
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), half + 1) << half;
  }
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
}

TEST(BFloat16Test, RoundsToTheNearestTiesToEven) {
  for (uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const float low = BFloat16ToFloat(static_cast<uint16_t>(bits));
    const float middle = std::bit_cast<float>(bits << 16 | 0x8000);
    ASSERT_EQ(FloatToBFloat16(low), bits);
    ASSERT_EQ(FloatToBFloat16(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(FloatToBFloat16(std::bit_cast<float>(bits << 16 | 0x8001)), bits + 1);
    ASSERT_EQ(FloatToBFloat16(-low), bits | 0x8000);
  }
  EXPECT_TRUE(std::isnan(BFloat16ToFloat(FloatToBFloat16(std::nanf("")))));
}

}  // namespace
}  // namespace espalier
