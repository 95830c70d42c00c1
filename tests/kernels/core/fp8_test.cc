// E4M3 by its definition, in double precision.
#include "kernels/core/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace espalier {
namespace {

double Defined(int code) {
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

bool IsNaNCode(int code) { return (code & 0x7f) == 0x7f; }

TEST(E4M3, EveryCodeMeansWhatTheFormatSays) {
  for (int code = 0; code < 256; ++code) {
    const float value = E4M3ToFloat(static_cast<uint8_t>(code));
    if (IsNaNCode(code)) {
      EXPECT_TRUE(std::isnan(value)) << code;
      continue;
    }
    EXPECT_EQ(value, Defined(code)) << code;
    EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
    EXPECT_EQ(FloatToE4M3(value), code);
  }
}

// The nearest code; of two as near, the even one.
int Nearest(double value) {
  int best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const double distance = std::abs(Defined(code) - std::abs(value));
    const double least = std::abs(Defined(best) - std::abs(value));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

TEST(E4M3, RoundsToNearestEven) {
  std::mt19937 rng(5);
  for (int code = 0; code < 0x7e; ++code) {
    const auto middle = static_cast<float>((Defined(code) + Defined(code + 1)) / 2);
    for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      ASSERT_EQ(FloatToE4M3(value), Nearest(value)) << value;
      ASSERT_EQ(FloatToE4M3(-value), Nearest(-value)) << value;
    }
  }
  std::uniform_real_distribution<float> exponent(-14, 9);
  for (int i = 0; i < 20000; ++i) {
    const float value = std::exp2(exponent(rng)) * (i % 2 == 0 ? 1.0f : -1.0f);
    ASSERT_EQ(FloatToE4M3(value), Nearest(value)) << value;
  }
}

TEST(E4M3, WhatItCannotHoldBecomesTheLargest) {
  for (const float value :
       {448.0f, 448.1f, 480.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(E4M3ToFloat(FloatToE4M3(value)), kLargestE4M3);
    EXPECT_EQ(E4M3ToFloat(FloatToE4M3(-value)), -kLargestE4M3);
  }
  EXPECT_TRUE(std::isnan(E4M3ToFloat(FloatToE4M3(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace espalier
