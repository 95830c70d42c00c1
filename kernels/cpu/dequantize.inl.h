// Blocks to fp32. Products and sums are rounded one by one (the including file's flags forbid
// contraction to fused multiply-adds), so that the bits are those of the format's definition.
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
    // Four 6-bit numbers a word; the last four of each kind keep their high bits elsewhere.
    uint32_t word[3];
    std::memcpy(word, block.scales, sizeof(word));
    const uint32_t low6 = 0x3f3f3f3f;
    const uint32_t low4 = 0x0f0f0f0f;
    const uint32_t low2 = 0x03030303;
    const uint32_t packed[4] = {word[0] & low6, (word[2] & low4) | (word[0] >> 6 & low2) << 4,
                                word[1] & low6, (word[2] >> 4 & low4) | (word[1] >> 6 & low2) << 4};
    uint8_t integers[16];
    std::memcpy(integers, packed, sizeof(integers));
    const float d = HalfToFloat(block.d);
    const float dmin = HalfToFloat(block.dmin);
    for (int s = 0; s < 8; ++s) {
      scale[s] = d * static_cast<float>(integers[s]);
      min[s] = -(dmin * static_cast<float>(integers[8 + s]));
    }
  }
  float scale[8];
  float min[8];
};

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

inline Bytes16 LoadBytes16(const uint8_t* p) {
  Bytes16 bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return bytes;
}

// out[j] = scale * q[j] + min for n integers, a multiple of 16.
inline void ScaleIntegers(const uint8_t* q, float scale, float min, int n, float* out) {
  const Simd::F scales = Simd::Set1(scale);
  const Simd::F mins = Simd::Set1(min);
  for (int j = 0; j < n; j += Simd::kLanes) {
    Simd::Store(out + j, Simd::Add(Simd::Mul(scales, Simd::LoadU8(q + j)), mins));
  }
}

// As above without a minimum.
inline void ScaleIntegers(const int8_t* q, float scale, int n, float* out) {
  const Simd::F scales = Simd::Set1(scale);
  for (int j = 0; j < n; j += Simd::kLanes) {
    Simd::Store(out + j, Simd::Mul(scales, Simd::LoadS8(q + j)));
  }
}

inline void DequantizeBlock(const BlockQ8_0& block, float* out) {
  ScaleIntegers(block.qs, HalfToFloat(block.d), 32, out);
}

inline void DequantizeBlock(const BlockQ4_0& block, float* out) {
  const Bytes16 packed = LoadBytes16(block.qs);
  const Bytes16 q[2] = {(packed & 15) - 8, (packed >> 4) - 8};
  ScaleIntegers(reinterpret_cast<const int8_t*>(q), HalfToFloat(block.d), 32, out);
}

inline void DequantizeBlock(const BlockQ4_1& block, float* out) {
  const Bytes16 packed = LoadBytes16(block.qs);
  const Bytes16 q[2] = {packed & 15, packed >> 4};
  ScaleIntegers(reinterpret_cast<const uint8_t*>(q), HalfToFloat(block.d), HalfToFloat(block.m), 32,
                out);
}

inline void DequantizeBlock(const BlockQ4_K& block, float* out) {
  const Q4KScales scales(block);
  for (int pair = 0; pair < 4; ++pair) {
    const Bytes16 first = LoadBytes16(block.qs + 32 * pair);
    const Bytes16 second = LoadBytes16(block.qs + 32 * pair + 16);
    const Bytes16 q[4] = {first & 15, second & 15, first >> 4, second >> 4};
    for (int half = 0; half < 2; ++half) {
      const int s = 2 * pair + half;
      ScaleIntegers(reinterpret_cast<const uint8_t*>(q + 2 * half), scales.scale[s], scales.min[s],
                    32, out + 32 * s);
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
    ScaleIntegers(q + 16 * s, d * static_cast<float>(block.scales[s]), 16, out + 16 * s);
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
    case DType::kE4M3:
      break;
  }
  internal::CheckFailed("not a type of weights", __FILE__, __LINE__);
}

}  // namespace
}  // namespace espalier::kernels::cpu
