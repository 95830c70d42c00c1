// int8 dot products of activation rows with weight rows as they are stored, on 256-bit vectors.
#include <immintrin.h>

#include "kernels/core/check.h"
#include "kernels/core/quant_blocks.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

// What a block of 32 products is scaled by: weight scale times activation scale in `scale`, and the
// weights' minimum times the activations' sum in lane 1 of `offset` (lane 0 is not used).
struct BlockFactors {
  __m256 scale;
  __m128 offset;
};

inline BlockFactors Factors(__m128 scale_and_min, __m128 activation) {
  const __m128 product = _mm_mul_ps(scale_and_min, activation);
  return {_mm256_broadcastss_ps(product), product};
}

// The 32 nibbles of 16 bytes, the low ones first.
inline __m256i Nibbles(const uint8_t* bytes) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// How each format's blocks are read: the 32 integers of a sub-block, and its factors.
struct ReadQ4_0 {
  using Block = BlockQ4_0;
  static constexpr bool kSigned = false;
  explicit ReadQ4_0(const Block& b)
      : block(b),
        scales(_mm_mul_ps(_mm_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(b.d))),
                          _mm_setr_ps(1, -8, 0, 0))) {}
  __m256i Quants(int) const { return Nibbles(block.qs); }
  BlockFactors Scale(int, __m128 activation) const { return Factors(scales, activation); }
  const Block& block;
  __m128 scales;
};

struct ReadQ4_1 {
  using Block = BlockQ4_1;
  static constexpr bool kSigned = false;
  explicit ReadQ4_1(const Block& b) : block(b), scales(_mm_cvtph_ps(_mm_loadu_si32(&b.d))) {}
  __m256i Quants(int) const { return Nibbles(block.qs); }
  BlockFactors Scale(int, __m128 activation) const { return Factors(scales, activation); }
  const Block& block;
  __m128 scales;
};

struct ReadQ8_0 {
  using Block = BlockQ8_0;
  static constexpr bool kSigned = true;
  explicit ReadQ8_0(const Block& b) : block(b), scales(_mm_cvtph_ps(_mm_cvtsi32_si128(b.d))) {}
  __m256i Quants(int) const {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs));
  }
  BlockFactors Scale(int, __m128 activation) const { return Factors(scales, activation); }
  const Block& block;
  __m128 scales;
};

struct ReadQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kSigned = false;
  explicit ReadQ4_K(const Block& b) : block(b), scales(b) {}
  __m256i Quants(int sub) const {
    const __m256i packed =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qs + sub / 2 * 32));
    return _mm256_and_si256(_mm256_srli_epi16(packed, sub % 2 * 4), _mm256_set1_epi8(15));
  }
  BlockFactors Scale(int sub, __m128 activation) const {
    return Factors(_mm_setr_ps(scales.scale[sub], scales.min[sub], 0, 0), activation);
  }
  const Block& block;
  Q4KScales scales;
};

struct ReadQ6_K {
  using Block = BlockQ6_K;
  static constexpr bool kSigned = true;
  explicit ReadQ6_K(const Block& b) : block(b), d(HalfToFloat(b.d)) {}
  __m256i Quants(int sub) const {
    const int half = sub / 4;
    const int quarter = sub % 4;
    const __m256i low = _mm256_srli_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                                              block.ql + 64 * half + quarter % 2 * 32)),
                                          quarter / 2 * 4);
    const __m256i high = _mm256_srli_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.qh + 32 * half)), quarter * 2);
    const __m256i q =
        _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)),
                        _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4));
    return _mm256_sub_epi8(q, _mm256_set1_epi8(32));
  }
  // A scale for each half of the 32, which are the two halves of the vector of sums.
  BlockFactors Scale(int sub, __m128 activation) const {
    const __m256 scales =
        _mm256_set_m128(_mm_set1_ps(d * static_cast<float>(block.scales[2 * sub + 1])),
                        _mm_set1_ps(d * static_cast<float>(block.scales[2 * sub])));
    return {_mm256_mul_ps(scales, _mm256_broadcastss_ps(activation)), _mm_setzero_ps()};
  }
  const Block& block;
  float d;
};

inline float SumLanes(__m256 a) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// Far enough ahead to hide the memory's latency, near enough to still be in the L1 cache.
constexpr int kPrefetchBytes = 1024;

// One weight row by kRows activation rows from `row` on. One weight row at a time: memory is
// fastest read as one stream.
template <typename Read, int kRows>
void DotRows(const RowDotsInt8& p, int64_t column, int row) {
  using Block = typename Read::Block;
  constexpr int kSubBlocks = Block::kElements / kQuantBlock;
  const int64_t blocks = p.depth / Block::kElements;
  const int64_t scales_stride = p.depth / kQuantBlock;
  const Block* weight = reinterpret_cast<const Block*>(p.weight) + column * blocks;
  const int8_t* q = p.q + row * p.depth;
  const ActivationScale* x_scales = p.scales + row * scales_stride;

  __m256 sums[kRows];
  __m128 offsets[kRows];
  for (int r = 0; r < kRows; ++r) {
    sums[r] = _mm256_setzero_ps();
    offsets[r] = _mm_setzero_ps();
  }
  for (int64_t i = 0; i < blocks; ++i) {
    _mm_prefetch(reinterpret_cast<const char*>(weight + i) + kPrefetchBytes, _MM_HINT_T0);
    const Read read(weight[i]);
#pragma GCC unroll 8
    for (int sub = 0; sub < kSubBlocks; ++sub) {
      const int64_t quant_block = i * kSubBlocks + sub;
      const __m256i w = read.Quants(sub);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(q + r * p.depth + quant_block * kQuantBlock));
        const __m128 x_scale = _mm_castsi128_ps(_mm_loadl_epi64(
            reinterpret_cast<const __m128i*>(x_scales + r * scales_stride + quant_block)));
        const __m256i products = Read::kSigned
                                     ? Simd::DotU8S8(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                                     : Simd::DotU8S8(w, x);
        const BlockFactors factors = read.Scale(sub, x_scale);
        sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), factors.scale, sums[r]);
        if (!Read::kSigned) offsets[r] = _mm_add_ps(offsets[r], factors.offset);
      }
    }
  }

  const float bias = p.bias != nullptr ? p.bias[column] : 0.0f;
  for (int r = 0; r < kRows; ++r) {
    const float offset = _mm_cvtss_f32(_mm_movehdup_ps(offsets[r]));
    p.out[(row + r) * p.out_stride + column] = SumLanes(sums[r]) + offset + bias;
  }
}

template <typename Read>
void RowDotsOf(const RowDotsInt8& p) {
  for (int64_t column = 0; column < p.columns; ++column) {
    RunRowTiles<4>(p.rows, [&]<int kRows>(int row) { DotRows<Read, kRows>(p, column, row); });
  }
}

void RowDotsInt8Kernel(const RowDotsInt8& p) {
  switch (p.dtype) {
    case DType::kQ8_0:
      return RowDotsOf<ReadQ8_0>(p);
    case DType::kQ4_0:
      return RowDotsOf<ReadQ4_0>(p);
    case DType::kQ4_1:
      return RowDotsOf<ReadQ4_1>(p);
    case DType::kQ4_K:
      return RowDotsOf<ReadQ4_K>(p);
    case DType::kQ6_K:
      return RowDotsOf<ReadQ6_K>(p);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kE4M3:
      break;
  }
  internal::CheckFailed("not a quantised dtype", __FILE__, __LINE__);
}

}  // namespace
}  // namespace espalier::kernels::cpu
