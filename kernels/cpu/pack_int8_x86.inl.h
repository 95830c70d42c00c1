// Fills int8 panels: 16 weight rows, transposed in groups of four input features.
#include <immintrin.h>

#include "kernels/core/check.h"
#include "kernels/core/quant_blocks.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

// Four groups of four bytes of 16 rows: group[g][h] holds bytes [4g, 4g + 4) of rows 8h .. 8h + 7.
struct ByteGroups {
  __m256i group[4][2];
};

inline ByteGroups TransposeGroups(const uint8_t* const rows[kPanelColumns]) {
  ByteGroups result;
  for (int half = 0; half < 2; ++half) {
    __m256i row[4];
    for (int i = 0; i < 4; ++i) {
      const auto* low = reinterpret_cast<const __m128i*>(rows[8 * half + i]);
      const auto* high = reinterpret_cast<const __m128i*>(rows[8 * half + i + 4]);
      row[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)),
                                       _mm_loadu_si128(high), 1);
    }
    const __m256i low01 = _mm256_unpacklo_epi32(row[0], row[1]);
    const __m256i low23 = _mm256_unpacklo_epi32(row[2], row[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(row[0], row[1]);
    const __m256i high23 = _mm256_unpackhi_epi32(row[2], row[3]);
    result.group[0][half] = _mm256_unpacklo_epi64(low01, low23);
    result.group[1][half] = _mm256_unpackhi_epi64(low01, low23);
    result.group[2][half] = _mm256_unpacklo_epi64(high01, high23);
    result.group[3][half] = _mm256_unpackhi_epi64(high01, high23);
  }
  return result;
}

constexpr int kGroupBytes = 4 * kPanelColumns;
constexpr int kBlockBytes = kQuantBlock * kPanelColumns;

// Stores the low nibbles of the groups from `low` on and the high ones from `high` on.
inline void StoreNibbles(const ByteGroups& bytes, uint8_t* low, uint8_t* high) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int g = 0; g < 4; ++g) {
    for (int half = 0; half < 2; ++half) {
      const __m256i both = bytes.group[g][half];
      const int at = g * kGroupBytes + half * 32;
      _mm256_store_si256(reinterpret_cast<__m256i*>(low + at), _mm256_and_si256(both, mask));
      _mm256_store_si256(reinterpret_cast<__m256i*>(high + at),
                         _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
    }
  }
}

inline void StoreHalvesAsFloats(const uint16_t* halves, float* out) {
  for (int c = 0; c < kPanelColumns; c += 8) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + c));
    _mm256_store_ps(out + c, _mm256_cvtph_ps(eight));
  }
}

// Rows of one format at a block: pointers to each row's packed bytes, and the scales and minimums.
template <typename Block>
struct BlockRows {
  BlockRows(const std::byte* const rows[kPanelColumns], int block) {
    for (int c = 0; c < kPanelColumns; ++c) {
      blocks[c] = reinterpret_cast<const Block*>(rows[c]) + block;
    }
  }
  // The packed bytes from `offset` on; Bytes is Block's member that holds them.
  template <typename Member>
  ByteGroups Groups(Member member, int offset) const {
    const uint8_t* bytes[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) {
      bytes[c] = reinterpret_cast<const uint8_t*>(blocks[c]->*member) + offset;
    }
    return TransposeGroups(bytes);
  }
  const Block* blocks[kPanelColumns];
};

void PackQ4_0(const std::byte* const rows[kPanelColumns], const Int8Panel& panel) {
  for (int b = 0; b < panel.depth / kQuantBlock; ++b) {
    const BlockRows<BlockQ4_0> at(rows, b);
    uint8_t* quants = panel.quants + b * kBlockBytes;
    StoreNibbles(at.Groups(&BlockQ4_0::qs, 0), quants, quants + 4 * kGroupBytes);
    alignas(32) uint16_t d[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) d[c] = at.blocks[c]->d;
    float* scales = panel.scales + b * kPanelColumns;
    StoreHalvesAsFloats(d, scales);
    for (int c = 0; c < kPanelColumns; ++c) panel.mins[b * kPanelColumns + c] = -8.0f * scales[c];
  }
}

void PackQ4_1(const std::byte* const rows[kPanelColumns], const Int8Panel& panel) {
  for (int b = 0; b < panel.depth / kQuantBlock; ++b) {
    const BlockRows<BlockQ4_1> at(rows, b);
    uint8_t* quants = panel.quants + b * kBlockBytes;
    StoreNibbles(at.Groups(&BlockQ4_1::qs, 0), quants, quants + 4 * kGroupBytes);
    alignas(32) uint16_t d[kPanelColumns];
    alignas(32) uint16_t m[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) {
      d[c] = at.blocks[c]->d;
      m[c] = at.blocks[c]->m;
    }
    StoreHalvesAsFloats(d, panel.scales + b * kPanelColumns);
    StoreHalvesAsFloats(m, panel.mins + b * kPanelColumns);
  }
}

void PackQ4_K(const std::byte* const rows[kPanelColumns], const Int8Panel& panel) {
  for (int b = 0; b < panel.depth / BlockQ4_K::kElements; ++b) {
    const BlockRows<BlockQ4_K> at(rows, b);
    uint8_t* quants = panel.quants + b * 8 * kBlockBytes;
    for (int pair = 0; pair < 4; ++pair) {
      for (int half = 0; half < 2; ++half) {
        uint8_t* low = quants + 2 * pair * kBlockBytes + half * 4 * kGroupBytes;
        StoreNibbles(at.Groups(&BlockQ4_K::qs, 32 * pair + 16 * half), low, low + kBlockBytes);
      }
    }
    for (int c = 0; c < kPanelColumns; ++c) {
      const Q4KScales scales(*at.blocks[c]);
      for (int s = 0; s < 8; ++s) {
        panel.scales[(8 * b + s) * kPanelColumns + c] = scales.scale[s];
        panel.mins[(8 * b + s) * kPanelColumns + c] = scales.min[s];
      }
    }
  }
}

// As unsigned bytes, 128 higher; the minimum takes it back.
void PackQ8_0(const std::byte* const rows[kPanelColumns], const Int8Panel& panel) {
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(0x80));
  for (int b = 0; b < panel.depth / kQuantBlock; ++b) {
    const BlockRows<BlockQ8_0> at(rows, b);
    for (int half = 0; half < 2; ++half) {
      const ByteGroups bytes = at.Groups(&BlockQ8_0::qs, 16 * half);
      uint8_t* quants = panel.quants + b * kBlockBytes + half * 4 * kGroupBytes;
      for (int g = 0; g < 4; ++g) {
        for (int side = 0; side < 2; ++side) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(quants + g * kGroupBytes + side * 32),
                             _mm256_xor_si256(bytes.group[g][side], offset));
        }
      }
    }
    alignas(32) uint16_t d[kPanelColumns];
    for (int c = 0; c < kPanelColumns; ++c) d[c] = at.blocks[c]->d;
    float* scales = panel.scales + b * kPanelColumns;
    StoreHalvesAsFloats(d, scales);
    for (int c = 0; c < kPanelColumns; ++c) {
      panel.mins[b * kPanelColumns + c] = -128.0f * scales[c];
    }
  }
}

void PackInt8(DType dtype, const std::byte* const rows[kPanelColumns], const Int8Panel& panel) {
  ESPALIER_CHECK(HasInt8Panel(dtype));
  switch (dtype) {
    case DType::kQ8_0:
      return PackQ8_0(rows, panel);
    case DType::kQ4_0:
      return PackQ4_0(rows, panel);
    case DType::kQ4_1:
      return PackQ4_1(rows, panel);
    case DType::kQ4_K:
      return PackQ4_K(rows, panel);
    case DType::kQ6_K:
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kE4M3:
      break;
  }
  internal::CheckFailed("no int8 panel for this dtype", __FILE__, __LINE__);
}

}  // namespace
}  // namespace espalier::kernels::cpu
