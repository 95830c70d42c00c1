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
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static float Sum(F a) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

  static F LoadU8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static F LoadS8(const int8_t* p) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
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
  // out[16 * k + c] = row c's value k, for k < 8; rows are `stride` values apart.
  static void Transpose16(const float* rows, int stride, float* out) {
    for (int c = 0; c < 16; c += 8) Transpose8(rows + c * stride, stride, out + c);
  }

 private:
  static void Transpose8(const float* rows, int stride, float* out) {
    // Halves of two rows side by side, then 4 x 4 transpositions within the halves.
    __m256 row[8];
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half) {
        const float* at = rows + i * stride + 4 * half;
        row[4 * half + i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at)),
                                                 _mm_loadu_ps(at + 4 * stride), 1);
      }
    }
    for (int half = 0; half < 2; ++half) {
      const __m256* r = row + 4 * half;
      const __m256 low01 = _mm256_unpacklo_ps(r[0], r[1]);
      const __m256 low23 = _mm256_unpacklo_ps(r[2], r[3]);
      const __m256 high01 = _mm256_unpackhi_ps(r[0], r[1]);
      const __m256 high23 = _mm256_unpackhi_ps(r[2], r[3]);
      float* to = out + 16 * 4 * half;
      _mm256_storeu_ps(to, _mm256_shuffle_ps(low01, low23, 0x44));
      _mm256_storeu_ps(to + 16, _mm256_shuffle_ps(low01, low23, 0xee));
      _mm256_storeu_ps(to + 32, _mm256_shuffle_ps(high01, high23, 0x44));
      _mm256_storeu_ps(to + 48, _mm256_shuffle_ps(high01, high23, 0xee));
    }
  }
};

}  // namespace
}  // namespace espalier::kernels::cpu
