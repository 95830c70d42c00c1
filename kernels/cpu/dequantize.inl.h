// Blocks to fp32. Plain loops: the including file's flags vectorise them, and forbid contraction to
// fused multiply-adds, so that the bits are those of the format's definition.
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/core/half.h"
#include "kernels/core/quant_blocks.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

// Scale and minimum of the eight sub-blocks of a Q4_K block: weight = scale * q + min.
struct Q4KScales {
  explicit Q4KScales(const BlockQ4_K& block) {
    const float d = HalfToFloat(block.d);
    const float dmin = HalfToFloat(block.dmin);
    const uint8_t* packed = block.scales;
    for (int s = 0; s < 4; ++s) {
      scale[s] = d * static_cast<float>(packed[s] & 63);
      min[s] = -(dmin * static_cast<float>(packed[s + 4] & 63));
      scale[s + 4] = d * static_cast<float>((packed[s + 8] & 15) | (packed[s] >> 6) << 4);
      min[s + 4] = -(dmin * static_cast<float>(packed[s + 8] >> 4 | (packed[s + 4] >> 6) << 4));
    }
  }
  float scale[8];
  float min[8];
};

inline void DequantizeBlock(const BlockQ8_0& block, float* out) {
  const float d = HalfToFloat(block.d);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(block.qs[j]);
}

inline void DequantizeBlock(const BlockQ4_0& block, float* out) {
  const float d = HalfToFloat(block.d);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((block.qs[j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((block.qs[j] >> 4) - 8);
  }
}

inline void DequantizeBlock(const BlockQ4_1& block, float* out) {
  const float d = HalfToFloat(block.d);
  const float m = HalfToFloat(block.m);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(block.qs[j] & 15) + m;
    out[j + 16] = d * static_cast<float>(block.qs[j] >> 4) + m;
  }
}

inline void DequantizeBlock(const BlockQ4_K& block, float* out) {
  const Q4KScales scales(block);
  for (int pair = 0; pair < 4; ++pair) {
    const uint8_t* qs = block.qs + 32 * pair;
    float* low = out + 64 * pair;
    float* high = low + 32;
    for (int j = 0; j < 32; ++j) {
      low[j] = scales.scale[2 * pair] * static_cast<float>(qs[j] & 15) + scales.min[2 * pair];
      high[j] =
          scales.scale[2 * pair + 1] * static_cast<float>(qs[j] >> 4) + scales.min[2 * pair + 1];
    }
  }
}

// The 256 weights of a block before scaling, in order.
inline void UnpackQ6K(const BlockQ6_K& block, int8_t* out) {
  for (int half = 0; half < 2; ++half) {
    const uint8_t* ql = block.ql + 64 * half;
    const uint8_t* qh = block.qh + 32 * half;
    int8_t* q = out + 128 * half;
    for (int l = 0; l < 32; ++l) {
      q[l] = static_cast<int8_t>(((ql[l] & 15) | (qh[l] & 3) << 4) - 32);
      q[l + 32] = static_cast<int8_t>(((ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4) - 32);
      q[l + 64] = static_cast<int8_t>(((ql[l] >> 4) | (qh[l] >> 4 & 3) << 4) - 32);
      q[l + 96] = static_cast<int8_t>(((ql[l + 32] >> 4) | (qh[l] >> 6) << 4) - 32);
    }
  }
}

inline void DequantizeBlock(const BlockQ6_K& block, float* out) {
  const float d = HalfToFloat(block.d);
  int8_t q[256];
  UnpackQ6K(block, q);
  for (int s = 0; s < 16; ++s) {
    const float scale = d * static_cast<float>(block.scales[s]);
    for (int j = 0; j < 16; ++j) out[16 * s + j] = scale * static_cast<float>(q[16 * s + j]);
  }
}

template <typename Block>
void DequantizeBlocks(const std::byte* data, int64_t elements, float* out) {
  const Block* blocks = reinterpret_cast<const Block*>(data);
  for (int64_t i = 0; i < elements / Block::kElements; ++i) {
    DequantizeBlock(blocks[i], out + i * Block::kElements);
  }
}

void DequantizeHalf(const std::byte* data, int64_t elements, float* out) {
  const uint16_t* half = reinterpret_cast<const uint16_t*>(data);
  int64_t i = 0;
  for (; i + Simd::kLanes <= elements; i += Simd::kLanes) {
    Simd::Store(out + i, Simd::LoadHalf(half + i));
  }
  for (; i < elements; ++i) out[i] = HalfToFloat(half[i]);
}

void DequantizeBFloat16(const std::byte* data, int64_t elements, float* out) {
  const uint16_t* values = reinterpret_cast<const uint16_t*>(data);
  for (int64_t i = 0; i < elements; ++i) out[i] = BFloat16ToFloat(values[i]);
}

void Dequantize(DType dtype, const std::byte* data, int64_t elements, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, data, elements * sizeof(float));
      return;
    case DType::kF16:
      return DequantizeHalf(data, elements, out);
    case DType::kBF16:
      return DequantizeBFloat16(data, elements, out);
    case DType::kQ8_0:
      return DequantizeBlocks<BlockQ8_0>(data, elements, out);
    case DType::kQ4_0:
      return DequantizeBlocks<BlockQ4_0>(data, elements, out);
    case DType::kQ4_1:
      return DequantizeBlocks<BlockQ4_1>(data, elements, out);
    case DType::kQ4_K:
      return DequantizeBlocks<BlockQ4_K>(data, elements, out);
    case DType::kQ6_K:
      return DequantizeBlocks<BlockQ6_K>(data, elements, out);
  }
  internal::CheckFailed("unknown dtype", __FILE__, __LINE__);
}

}  // namespace
}  // namespace espalier::kernels::cpu
