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
  static F Fma(F a, F b, F c) { return a * b + c; }
  static float Sum(F a) { return (a[0] + a[2]) + (a[1] + a[3]); }

  static F LoadHalf(const uint16_t* p) {
    return F{HalfToFloat(p[0]), HalfToFloat(p[1]), HalfToFloat(p[2]), HalfToFloat(p[3])};
  }
  static void StoreHalf(uint16_t* p, F value) {
    for (int i = 0; i < kLanes; ++i) p[i] = FloatToHalf(value[i]);
  }
};

}  // namespace
}  // namespace espalier::kernels::cpu
