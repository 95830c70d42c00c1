// Block kernels of row_math.h: plain C++, and AVX2 chosen at run time.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/sampler/row_math.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace espalier::internal {
namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();
// exp of less is subnormal: taken as 0.
constexpr float kMinExponent = -86.0f;

BlockMax MaxPortable(std::span<const float> block) {
  BlockMax result{kNegInf, false};
  for (float x : block) {
    result.max = x > result.max ? x : result.max;
    result.nan |= std::isnan(x);
  }
  return result;
}

float ExpOrZero(float x) { return x < kMinExponent ? 0.0f : std::exp(x); }

double SumExpPortable(std::span<const float> block, float max) {
  double sum = 0;
  for (float x : block) sum += ExpOrZero(x - max);
  return sum;
}

double ExpWeightsPortable(std::span<const float> block, float max, float scale, float* weights) {
  double sum = 0;
  for (size_t i = 0; i < block.size(); ++i) {
    weights[i] = ExpOrZero((block[i] - max) * scale);
    sum += weights[i];
  }
  return sum;
}

#if defined(__x86_64__)
#define ESPALIER_AVX2 __attribute__((target("avx2,fma")))

// exp(x) for x <= 0: x = n ln 2 + r, |r| <= ln 2 / 2, then a polynomial in r (the coefficients of
// Cephes' expf, S. Moshier) times 2^n. Error about 1 ulp; exp(0) is exactly 1.
ESPALIER_AVX2 inline __m256 Exp(__m256 x) {
  const __m256 in_range = _mm256_cmp_ps(x, _mm256_set1_ps(kMinExponent), _CMP_GE_OQ);
  x = _mm256_max_ps(x, _mm256_set1_ps(kMinExponent));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts, the first of few bits, so that n times it is exact.
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(in_range, _mm256_mul_ps(p, _mm256_castsi256_ps(exponent)));
}

ESPALIER_AVX2 inline double Sum(__m256 v) {
  const __m256d both = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                                     _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

ESPALIER_AVX2 BlockMax MaxAvx2(std::span<const float> block) {
  __m256 max = _mm256_set1_ps(kNegInf);
  __m256 nan = _mm256_setzero_ps();
  size_t i = 0;
  for (; i + 8 <= block.size(); i += 8) {
    const __m256 x = _mm256_loadu_ps(&block[i]);
    max = _mm256_max_ps(max, x);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  BlockMax result = MaxPortable(block.subspan(i));
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, max);
  for (float lane : lanes) result.max = lane > result.max ? lane : result.max;
  result.nan |= _mm256_movemask_ps(nan) != 0;
  return result;
}

// The last, partial vector of a block, filled up with -inf. It takes the same path as the others:
// equal logits must get equal weights wherever they are.
ESPALIER_AVX2 inline __m256 LoadTail(std::span<const float> tail) {
  alignas(32) float lanes[8];
  std::fill(std::ranges::copy(tail, lanes).out, lanes + 8, kNegInf);
  return _mm256_load_ps(lanes);
}

ESPALIER_AVX2 double SumExpAvx2(std::span<const float> block, float max) {
  const __m256 m = _mm256_set1_ps(max);
  __m256 even = _mm256_setzero_ps();
  __m256 odd = _mm256_setzero_ps();
  size_t i = 0;
  for (; i + 16 <= block.size(); i += 16) {
    even = _mm256_add_ps(even, Exp(_mm256_sub_ps(_mm256_loadu_ps(&block[i]), m)));
    odd = _mm256_add_ps(odd, Exp(_mm256_sub_ps(_mm256_loadu_ps(&block[i + 8]), m)));
  }
  for (; i < block.size(); i += 8) {
    const __m256 x = LoadTail(block.subspan(i, std::min<size_t>(8, block.size() - i)));
    even = _mm256_add_ps(even, Exp(_mm256_sub_ps(x, m)));
  }
  return Sum(even) + Sum(odd);
}

ESPALIER_AVX2 double ExpWeightsAvx2(std::span<const float> block, float max, float scale,
                                    float* weights) {
  const __m256 m = _mm256_set1_ps(max);
  const __m256 s = _mm256_set1_ps(scale);
  __m256 sum = _mm256_setzero_ps();
  size_t i = 0;
  for (; i + 8 <= block.size(); i += 8) {
    const __m256 x = _mm256_loadu_ps(&block[i]);
    const __m256 w = Exp(_mm256_mul_ps(_mm256_sub_ps(x, m), s));
    _mm256_storeu_ps(weights + i, w);
    sum = _mm256_add_ps(sum, w);
  }
  if (i < block.size()) {
    const __m256 x = LoadTail(block.subspan(i));
    const __m256 w = Exp(_mm256_mul_ps(_mm256_sub_ps(x, m), s));
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, w);
    std::copy_n(lanes, block.size() - i, weights + i);
    sum = _mm256_add_ps(sum, w);
  }
  return Sum(sum);
}

#undef ESPALIER_AVX2
#endif

RowKernels Choose() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {.max = MaxAvx2, .sum_exp = SumExpAvx2, .exp_weights = ExpWeightsAvx2};
  }
#endif
  return PortableRowKernels();
}

}  // namespace

const RowKernels& PortableRowKernels() {
  static constexpr RowKernels kernels = {
      .max = MaxPortable, .sum_exp = SumExpPortable, .exp_weights = ExpWeightsPortable};
  return kernels;
}

const RowKernels& NativeRowKernels() {
  static const RowKernels kernels = Choose();
  return kernels;
}

}  // namespace espalier::internal
