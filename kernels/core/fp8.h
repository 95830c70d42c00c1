// Conversions between fp32 and the 8-bit floating-point format E4M3: four bits of exponent, bias 7,
// three of mantissa; no infinities, NaN is S.1111.111 (source: OCP 8-bit Floating Point
// Specification). Plain integer arithmetic, and the same bits as CUDA's satfinite conversions.
#pragma once

#include <bit>
#include <cstdint>

namespace espalier {

inline constexpr float kLargestE4M3 = 448.0f;

inline float E4M3ToFloat(uint8_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x80) << 24;
  const uint32_t magnitude = static_cast<uint32_t>(value & 0x7f) << 20;
  // Read as fp32 the exponent is 120 too low: a multiplication repairs it, subnormals included.
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p120f;
  const uint32_t bits = (value & 0x7f) == 0x7f ? 0x7fc00000 : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | bits);
}

// To nearest, ties to even; what lies beyond the largest value, infinities too, becomes that.
inline uint8_t FloatToE4M3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7f;  // NaN
  if (magnitude >= std::bit_cast<uint32_t>(kLargestE4M3)) return static_cast<uint8_t>(sign | 0x7e);
  if (magnitude < std::bit_cast<uint32_t>(0x1p-6f)) {
    // Subnormal: adding 2^14 leaves the rounded multiple of 2^-9 in the low bits.
    const float sum = std::bit_cast<float>(magnitude) + 0x1p14f;
    return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(sum) & 0xff));
  }
  const uint32_t rebiased = magnitude - (120u << 23);
  const uint32_t rounded = rebiased + 0x7ffff + (rebiased >> 20 & 1);
  return static_cast<uint8_t>(sign | rounded >> 20);
}

}  // namespace espalier
