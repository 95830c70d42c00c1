// Vectors of AVX-512 with VNNI. Included by exactly one source file.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace espalier::kernels::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 12;
  using F = __m512;

  static F Zero() { return _mm512_setzero_ps(); }
  static F Set1(float value) { return _mm512_set1_ps(value); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F value) { _mm512_storeu_ps(p, value); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float Sum(F a) { return _mm512_reduce_add_ps(a); }

  static F LoadU8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F LoadS8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F LoadHalf(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void StoreHalf(uint16_t* p, F value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }

  static __m256i DotU8S8(__m256i u, __m256i s) {
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, s);
  }
  // out[16 * k + c] = row c's value k, for k < 16; rows are `stride` values apart.
  static void Transpose16(const float* rows, int stride, float* out) {
    const __m512i offsets =
        _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                           _mm512_set1_epi32(stride));
    for (int k = 0; k < kLanes; ++k) {
      _mm512_storeu_ps(out + 16 * k, _mm512_i32gather_ps(offsets, rows + k, 4));
    }
  }
};

}  // namespace
}  // namespace espalier::kernels::cpu
