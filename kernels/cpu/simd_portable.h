// Vectors of the build's baseline instruction set, left to the compiler.
// Included by exactly one source file.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/core/half.h"

namespace espalier::kernels::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 4;
  // Rows of the fp32 panel product's register tile.
  static constexpr int kTileRows = 2;
  typedef float F __attribute__((vector_size(16)));

  static F Zero() { return F{}; }
  static F Set1(float value) { return F{value, value, value, value}; }
  static F Load(const float* p) {
    F value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  static void Store(float* p, F value) { std::memcpy(p, &value, sizeof(value)); }
  static F Add(F a, F b) { return a + b; }
  static F Mul(F a, F b) { return a * b; }
  static F Fma(F a, F b, F c) { return a * b + c; }
  static float Sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }

  static F LoadU8(const uint8_t* p) {
    return F{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
  }
  static F LoadS8(const int8_t* p) {
    return F{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
             static_cast<float>(p[3])};
  }
  static F LoadHalf(const uint16_t* p) {
    return F{HalfToFloat(p[0]), HalfToFloat(p[1]), HalfToFloat(p[2]), HalfToFloat(p[3])};
  }
  static void StoreHalf(uint16_t* p, F value) {
    for (int i = 0; i < kLanes; ++i) p[i] = FloatToHalf(value[i]);
  }
  // out[16 * k + c] = row c's value k, for k < kLanes; rows are `stride` values apart.
  static void Transpose16(const float* rows, int stride, float* out) {
    for (int k = 0; k < kLanes; ++k) {
      for (int c = 0; c < 16; ++c) out[16 * k + c] = rows[c * stride + k];
    }
  }
};

}  // namespace
}  // namespace espalier::kernels::cpu
