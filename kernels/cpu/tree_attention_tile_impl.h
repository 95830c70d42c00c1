// The body of AttendTile..., included once by each file that compiles it for an instruction set.
// Those files define ESPALIER_TILE_LANES, the floats of a register.
//
// Everything is in an unnamed namespace, and no inline function of another header is called: the
// linker must never hand a function that was compiled for a wide instruction set to other code.
//
// Flash attention over blocks of 16 keys of one page. Few rows (decode of a leaf, where reading KV
// is the work): dot products straight on the stored keys. Many rows: keys are transposed and values
// widened once, then two register-blocked products run over all rows that see the block.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "kernels/cpu/tree_attention_tile.h"

namespace espalier::kernels::cpu {
namespace {

constexpr int kLanes = ESPALIER_TILE_LANES;
constexpr int kVecs = kKeyBlock / kLanes;  // registers that hold a row's scores of a block
// Rows of a register block: with kVecs (scores) or two (values) registers each, as many as fit.
constexpr int kRowBlock = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;
constexpr int kFewRows = 4;
// A score that no key has. Finite, so that differences of two of them are no NaN.
constexpr float kNoScore = -1e30f;

template <int kWidth>
struct VecTypes {
  typedef float Float __attribute__((vector_size(kWidth * 4)));
  typedef int32_t Int __attribute__((vector_size(kWidth * 4)));
  typedef uint16_t Half __attribute__((vector_size(kWidth * 2)));
  typedef uint8_t Byte __attribute__((vector_size(kWidth)));
};
template <int kWidth>
using VecOf = typename VecTypes<kWidth>::Float;
template <int kWidth>
using IntVecOf = typename VecTypes<kWidth>::Int;
using Vec = VecOf<kLanes>;
using IntVec = IntVecOf<kLanes>;

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};
struct E4M3 {
  uint8_t bits;
};

int Min(int a, int b) { return a < b ? a : b; }

template <int kWidth>
VecOf<kWidth> Load(const float* p) {
  VecOf<kWidth> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <int kWidth>
VecOf<kWidth> Load(const BF16* p) {
  typename VecTypes<kWidth>::Half half;
  __builtin_memcpy(&half, p, sizeof(half));
  return (VecOf<kWidth>)(__builtin_convertvector(half, IntVecOf<kWidth>) << 16);
}

template <int kWidth>
VecOf<kWidth> Load(const F16* p) {
#if defined(__AVX512F__)
  if constexpr (kWidth == 16) {
    return (VecOf<kWidth>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
  }
#endif
#if defined(__F16C__)
  if constexpr (kWidth == 8) {
    return (VecOf<kWidth>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
#endif
  typename VecTypes<kWidth>::Half half;
  __builtin_memcpy(&half, p, sizeof(half));
  const auto bits = __builtin_convertvector(half, IntVecOf<kWidth>);
  // The exponent is rebiased by a product, which makes subnormals right; infinities and NaNs by
  // setting it.
  const VecOf<kWidth> finite = (VecOf<kWidth>)((bits & 0x7fff) << 13) * 0x1p112f;
  const auto special = (bits & 0x7c00) == 0x7c00;
  const auto magnitude = (IntVecOf<kWidth>)finite | (special & (IntVecOf<kWidth>{} + 0x7f800000));
  return (VecOf<kWidth>)(magnitude | (bits & 0x8000) << 16);
}

// The cache holds no NaN, and none comes out.
template <int kWidth>
VecOf<kWidth> Load(const E4M3* p) {
  typename VecTypes<kWidth>::Byte bytes;
  __builtin_memcpy(&bytes, p, sizeof(bytes));
  const auto bits = __builtin_convertvector(bytes, IntVecOf<kWidth>);
  // As fp32 the exponent is 120 too low, which a product repairs, of subnormals, too.
  const VecOf<kWidth> magnitude = (VecOf<kWidth>)((bits & 0x7f) << 20) * 0x1p120f;
  return (VecOf<kWidth>)((IntVecOf<kWidth>)magnitude | (bits & 0x80) << 24);
}

template <int kWidth>
void Store(float* p, VecOf<kWidth> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <int kWidth>
VecOf<kWidth> Broadcast(float x) {
  return VecOf<kWidth>{} + x;
}

template <typename V>
V Max(V a, V b) {
  return a > b ? a : b;
}

template <int kWidth>
VecOf<kWidth / 2> LowHalf(VecOf<kWidth> v) {
  if constexpr (kWidth == 16) {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    return __builtin_shufflevector(v, v, 0, 1, 2, 3);
  }
}
template <int kWidth>
VecOf<kWidth / 2> HighHalf(VecOf<kWidth> v) {
  if constexpr (kWidth == 16) {
    return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  } else {
    return __builtin_shufflevector(v, v, 4, 5, 6, 7);
  }
}

template <int kWidth>
float Sum(VecOf<kWidth> v) {
  if constexpr (kWidth > 4) {
    return Sum<kWidth / 2>(LowHalf<kWidth>(v) + HighHalf<kWidth>(v));
  } else {
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1);
    return v[0] + v[1];
  }
}

template <int kWidth>
float Highest(VecOf<kWidth> v) {
  if constexpr (kWidth > 4) {
    return Highest<kWidth / 2>(Max(LowHalf<kWidth>(v), HighHalf<kWidth>(v)));
  } else {
    v = Max<VecOf<4>>(v, __builtin_shufflevector(v, v, 2, 3, 0, 1));
    return v[0] > v[1] ? v[0] : v[1];
  }
}

// 2^x for x <= 0, relative error below 2e-7; below -126 as at -126. NaN stays NaN.
Vec Exp2(Vec x) {
  x = x < -126.0f ? Broadcast<kLanes>(-126.0f) : x;
  const Vec shifted = x + 0x1.8p23f;  // the integer nearest to x sits in the low mantissa bits
  const Vec f = x - (shifted - 0x1.8p23f);
  // Taylor series of 2^f on [-1/2, 1/2]: coefficients ln(2)^k / k!.
  Vec y = Broadcast<kLanes>(1.54035304e-4f);
  y = y * f + 1.33335581e-3f;
  y = y * f + 9.61812911e-3f;
  y = y * f + 5.55041087e-2f;
  y = y * f + 2.40226507e-1f;
  y = y * f + 6.93147181e-1f;
  y = y * f + 1.0f;
  return (Vec)((IntVec)y + ((IntVec)shifted << 23));
}

// A block of keys and who sees them. Key s is seen by the rows [begin[s], end[s]).
struct KeyBlock {
  int count;
  int32_t begin[kKeyBlock];
  int32_t end[kKeyBlock];
};

// scores[r, s] = q[r] . k[s], from keys transposed to [head_dim, kKeyBlock].
template <int kRows>
void ScoresTransposed(const float* q, const float* keys, int head_dim, float* scores) {
  Vec acc[kRows][kVecs] = {};
  for (int d = 0; d < head_dim; ++d) {
    Vec key[kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) key[i] = Load<kLanes>(keys + d * kKeyBlock + i * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = Broadcast<kLanes>(q[r * head_dim + d]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) acc[r][i] += x * key[i];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) Store<kLanes>(scores + r * kKeyBlock + i * kLanes, acc[r][i]);
  }
}

// As above for kKeys stored keys from key `first`.
template <int kRows, int kWidth, int kKeys, typename T>
void ScoresStored(const float* q, const T* keys, int head_dim, int first, float* scores) {
  VecOf<kWidth> acc[kRows][kKeys] = {};
  for (int d = 0; d < head_dim; d += kWidth) {
    VecOf<kWidth> key[kKeys];
#pragma GCC unroll 4
    for (int s = 0; s < kKeys; ++s) {
      key[s] = Load<kWidth>(keys + static_cast<ptrdiff_t>(first + s) * head_dim + d);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const VecOf<kWidth> x = Load<kWidth>(q + r * head_dim + d);
#pragma GCC unroll 4
      for (int s = 0; s < kKeys; ++s) acc[r][s] += x * key[s];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < kKeys; ++s) scores[r * kKeyBlock + first + s] = Sum<kWidth>(acc[r][s]);
  }
}

// Turns kRows rows of scores into 2^(score - max), 0 where a key is not seen, and folds them into
// max and sum. alpha is what the rows' accumulators must be multiplied by.
template <int kRows>
void Softmax(const KeyBlock& block, const int32_t* row_of, float* scores, float* max, float* sum,
             float* alpha) {
  for (int r = 0; r < kRows; ++r) {
    Vec score[kVecs];
    IntVec seen[kVecs];
    Vec highest = Broadcast<kLanes>(kNoScore);
    const IntVec row = IntVec{} + row_of[r];
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      IntVec begin, end;
      __builtin_memcpy(&begin, block.begin + i * kLanes, sizeof(begin));
      __builtin_memcpy(&end, block.end + i * kLanes, sizeof(end));
      seen[i] = (begin <= row) & (row < end);
      score[i] = Load<kLanes>(scores + r * kKeyBlock + i * kLanes);
      score[i] = seen[i] ? score[i] : Broadcast<kLanes>(kNoScore);
      highest = Max(score[i], highest);
    }
    const float block_max = Highest<kLanes>(highest);
    alpha[r] = 1.0f;
    if (block_max > max[r]) {
      alpha[r] = Exp2(Broadcast<kLanes>(max[r] - block_max))[0];
      max[r] = block_max;
    }
    float* row_sum = sum + r * kKeyBlock;
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) {
      const Vec weight = seen[i] ? Exp2(score[i] - max[r]) : Vec{};
      Store<kLanes>(scores + r * kKeyBlock + i * kLanes, weight);
      Store<kLanes>(row_sum + i * kLanes, Load<kLanes>(row_sum + i * kLanes) * alpha[r] + weight);
    }
  }
}

// acc[r, 0 .. kWidth * kCols) = acc * alpha[r] + sum over keys of weights[r, s] * v[s].
template <int kRows, int kWidth, int kCols, typename T>
void AddValueColumns(const float* weights, const float* alpha, const T* values, int num_keys,
                     int head_dim, float* acc) {
  VecOf<kWidth> sum[kRows][kCols];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c) {
      sum[r][c] = Load<kWidth>(acc + r * head_dim + c * kWidth) * alpha[r];
    }
  }
  for (int s = 0; s < num_keys; ++s) {
    VecOf<kWidth> value[kCols];
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c) {
      value[c] = Load<kWidth>(values + static_cast<ptrdiff_t>(s) * head_dim + c * kWidth);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const VecOf<kWidth> weight = Broadcast<kWidth>(weights[r * kKeyBlock + s]);
#pragma GCC unroll 2
      for (int c = 0; c < kCols; ++c) sum[r][c] += weight * value[c];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < kCols; ++c) Store<kWidth>(acc + r * head_dim + c * kWidth, sum[r][c]);
  }
}

template <int kRows, typename T>
void AddValues(const float* weights, const float* alpha, const T* values, int num_keys,
               int head_dim, float* acc) {
  int d = 0;
  for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
    AddValueColumns<kRows, kLanes, 2>(weights, alpha, values + d, num_keys, head_dim, acc + d);
  }
  if (d + kLanes <= head_dim) {
    AddValueColumns<kRows, kLanes, 1>(weights, alpha, values + d, num_keys, head_dim, acc + d);
    d += kLanes;
  }
  if constexpr (kLanes > 8) {
    if (d < head_dim) {
      AddValueColumns<kRows, 8, 1>(weights, alpha, values + d, num_keys, head_dim, acc + d);
    }
  }
}

// Rows [first, first + kRows) of the tile against a block, with the keys transposed and the values
// as floats.
template <int kRows>
void AttendMany(const AttentionTile& tile, const KeyBlock& block, const float* keys,
                const float* values, int first) {
  alignas(64) float scores[kRows * kKeyBlock];
  float alpha[kRows];
  const ptrdiff_t offset = static_cast<ptrdiff_t>(first) * tile.head_dim;
  ScoresTransposed<kRows>(tile.q + offset, keys, tile.head_dim, scores);
  Softmax<kRows>(block, tile.row_of + first, scores, tile.max + first, tile.sum + first * kKeyBlock,
                 alpha);
  AddValues<kRows>(scores, alpha, values, block.count, tile.head_dim, tile.acc + offset);
}

template <int kRows, int kWidth, typename T>
void ScoresFew(const float* q, const T* keys, int num_keys, int head_dim, float* scores) {
  constexpr int kKeys = kRows == 4 ? 2 : 4;
  int s = 0;
  for (; s + kKeys <= num_keys; s += kKeys) {
    ScoresStored<kRows, kWidth, kKeys>(q, keys, head_dim, s, scores);
  }
  for (; s < num_keys; ++s) ScoresStored<kRows, kWidth, 1>(q, keys, head_dim, s, scores);
}

// As AttendMany, on the stored keys and values.
template <int kRows, typename T>
void AttendFew(const AttentionTile& tile, const KeyBlock& block, const T* keys, const T* values,
               int first) {
  alignas(64) float scores[kRows * kKeyBlock] = {};
  float alpha[kRows];
  const ptrdiff_t offset = static_cast<ptrdiff_t>(first) * tile.head_dim;
  if (tile.head_dim % kLanes == 0) {
    ScoresFew<kRows, kLanes>(tile.q + offset, keys, block.count, tile.head_dim, scores);
  } else {
    ScoresFew<kRows, 8>(tile.q + offset, keys, block.count, tile.head_dim, scores);
  }
  Softmax<kRows>(block, tile.row_of + first, scores, tile.max + first, tile.sum + first * kKeyBlock,
                 alpha);
  AddValues<kRows>(scores, alpha, values, block.count, tile.head_dim, tile.acc + offset);
}

void Transpose8x8(VecOf<8> r[8]) {
  VecOf<8> a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    a[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    b[i + 2] = __builtin_shufflevector(a[i + 1], a[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 3] = __builtin_shufflevector(a[i + 1], a[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// out[d, s] = keys[s, d]; 0 for s beyond num_keys, which are not read.
template <typename T>
void TransposeKeys(const T* keys, int num_keys, int head_dim, float* out) {
  for (int s = 0; s < kKeyBlock; s += 8) {
    for (int d = 0; d < head_dim; d += 8) {
      VecOf<8> r[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        r[i] = s + i < num_keys ? Load<8>(keys + static_cast<ptrdiff_t>(s + i) * head_dim + d)
                                : VecOf<8>{};
      }
      Transpose8x8(r);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) Store<8>(out + (d + i) * kKeyBlock + s, r[i]);
    }
  }
}

// The values as floats: as stored, or widened into `scratch`.
const float* WidenValues(const float* values, int, int, float*) { return values; }
template <typename T>
const float* WidenValues(const T* values, int num_keys, int head_dim, float* scratch) {
  for (int i = 0; i < num_keys * head_dim; i += 8) Store<8>(scratch + i, Load<8>(values + i));
  return scratch;
}

template <int kRows>
void AttendRest(const AttentionTile& tile, const KeyBlock& block, const float* keys,
                const float* values, int first, int rows) {
  if (rows == kRows) return AttendMany<kRows>(tile, block, keys, values, first);
  if constexpr (kRows > 1) AttendRest<kRows - 1>(tile, block, keys, values, first, rows);
}

template <typename T>
void AttendBlock(const AttentionTile& tile, const KeyBlock& block, const T* keys, const T* values,
                 int first, int rows) {
  static_assert(kFewRows == 4);
  switch (rows) {
    case 1:
      return AttendFew<1>(tile, block, keys, values, first);
    case 2:
      return AttendFew<2>(tile, block, keys, values, first);
    case 3:
      return AttendFew<3>(tile, block, keys, values, first);
    case 4:
      return AttendFew<4>(tile, block, keys, values, first);
    default:
      break;
  }
  float* const wide_keys = tile.key_block;
  TransposeKeys(keys, block.count, tile.head_dim, wide_keys);
  const float* const wide_values =
      WidenValues(values, block.count, tile.head_dim, tile.key_block + kKeyBlock * tile.head_dim);
  const int last = first + rows;
  for (; first + kRowBlock <= last; first += kRowBlock) {
    AttendMany<kRowBlock>(tile, block, wide_keys, wide_values, first);
  }
  if (first < last) {
    AttendRest<kRowBlock - 1>(tile, block, wide_keys, wide_values, first, last - first);
  }
}

template <typename T>
void AttendEntries(const AttentionTile& tile) {
  KeyBlock block;
  for (int e = 0; e < tile.num_entries; ++e) {
    const PlanEntry& entry = tile.entries[e];
    const int first = (entry.rows.begin - tile.row_begin) * tile.group;
    const int rows = (entry.rows.end - entry.rows.begin) * tile.group;
    const int64_t slab = static_cast<int64_t>(entry.page) * tile.num_kv_heads + tile.kv_head;
    for (int s = 0; s < entry.count; s += kKeyBlock) {
      block.count = Min(kKeyBlock, entry.count - s);
      for (int i = 0; i < kKeyBlock; ++i) {
        RowInterval seen{0, 0};
        if (i < block.count) {
          seen = entry.slot_rows < 0 ? entry.rows : tile.slot_rows[entry.slot_rows + s + i];
        }
        block.begin[i] = seen.begin;
        block.end[i] = seen.end;
      }
      const int64_t offset = (slab * tile.page_size + entry.first_slot + s) * tile.head_dim;
      AttendBlock(tile, block, static_cast<const T*>(tile.k) + offset,
                  static_cast<const T*>(tile.v) + offset, first, rows);
    }
  }
}

void AttendTile(const AttentionTile& tile) {
  const int packed_rows = tile.num_rows * tile.group;
  for (int r = 0; r < packed_rows; ++r) {
    tile.row_of[r] = tile.row_begin + r / tile.group;
    tile.max[r] = kNoScore;
  }
  for (int i = 0; i < packed_rows * kKeyBlock; ++i) tile.sum[i] = 0.0f;
  for (int i = 0; i < packed_rows * tile.head_dim; ++i) tile.acc[i] = 0.0f;
  if (tile.kv_dtype == DType::kF32) return AttendEntries<float>(tile);
  if (tile.kv_dtype == DType::kF16) return AttendEntries<F16>(tile);
  if (tile.kv_dtype == DType::kE4M3) return AttendEntries<E4M3>(tile);
  AttendEntries<BF16>(tile);
}

}  // namespace
}  // namespace espalier::kernels::cpu
