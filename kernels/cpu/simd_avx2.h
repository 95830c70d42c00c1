// Vectors of AVX2 with FMA and F16C. Included by exactly one source file.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace espalier::kernels::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;
  using F = __m256;

  static F Zero() { return _mm256_setzero_ps(); }
  static F Set1(float value) { return _mm256_set1_ps(value); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F value) { _mm256_storeu_ps(p, value); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float Sum(F a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

  static F LoadHalf(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void StoreHalf(uint16_t* p, F value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }

  // Sums of four adjacent products of unsigned and signed bytes. The sum of two products must fit
  // 16 bits: u <= 128 does.
  static __m256i DotU8S8(__m256i u, __m256i s) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1));
  }
};

}  // namespace
}  // namespace espalier::kernels::cpu
