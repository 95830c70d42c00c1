// int8 products for processors without AVX2: one block at a time, in plain loops.
#include <cstddef>

#include "kernels/core/check.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

inline int32_t DotInt8(const int8_t* a, const int8_t* b, int n) {
  int32_t sum = 0;
  for (int j = 0; j < n; ++j) sum += int32_t{a[j]} * b[j];
  return sum;
}

// Product of one weight block with the activations q under their scales.
inline float DotBlock(const BlockQ8_0& block, const int8_t* q, const ActivationScale* scales) {
  const float sum = static_cast<float>(DotInt8(block.qs, q, 32));
  return HalfToFloat(block.d) * scales->scale * sum;
}

inline float DotNibbles(const uint8_t* qs, float d, float m, const int8_t* q,
                        const ActivationScale* scales) {
  int8_t w[32];
  for (int j = 0; j < 16; ++j) {
    w[j] = static_cast<int8_t>(qs[j] & 15);
    w[j + 16] = static_cast<int8_t>(qs[j] >> 4);
  }
  return d * scales->scale * static_cast<float>(DotInt8(w, q, 32)) + m * scales->sum;
}

inline float DotBlock(const BlockQ4_0& block, const int8_t* q, const ActivationScale* scales) {
  const float d = HalfToFloat(block.d);
  return DotNibbles(block.qs, d, -8.0f * d, q, scales);
}

inline float DotBlock(const BlockQ4_1& block, const int8_t* q, const ActivationScale* scales) {
  return DotNibbles(block.qs, HalfToFloat(block.d), HalfToFloat(block.m), q, scales);
}

inline float DotBlock(const BlockQ4_K& block, const int8_t* q, const ActivationScale* scales) {
  const Q4KScales weight_scales(block);
  float sum = 0;
  for (int s = 0; s < 8; ++s) {
    int8_t w[32];
    const int shift = s % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      w[j] = static_cast<int8_t>(block.qs[s / 2 * 32 + j] >> shift & 15);
    }
    const float products = static_cast<float>(DotInt8(w, q + 32 * s, 32));
    sum +=
        weight_scales.scale[s] * scales[s].scale * products + weight_scales.min[s] * scales[s].sum;
  }
  return sum;
}

inline float DotBlock(const BlockQ6_K& block, const int8_t* q, const ActivationScale* scales) {
  int8_t w[256];
  UnpackQ6K(block, w);
  float sum = 0;
  for (int s = 0; s < 16; ++s) {
    const int32_t products = DotInt8(w + 16 * s, q + 16 * s, 16) * block.scales[s];
    sum += scales[s / 2].scale * static_cast<float>(products);
  }
  return HalfToFloat(block.d) * sum;
}

template <typename Block>
void RowDotsOf(const RowDotsInt8& p) {
  const int64_t blocks = p.depth / Block::kElements;
  const Block* weight = reinterpret_cast<const Block*>(p.weight);
  for (int64_t c = 0; c < p.columns; ++c) {
    for (int r = 0; r < p.rows; ++r) {
      float sum = p.bias != nullptr ? p.bias[c] : 0.0f;
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t k = r * p.depth + i * Block::kElements;
        sum += DotBlock(weight[c * blocks + i], p.q + k, p.scales + k / kQuantBlock);
      }
      p.out[r * p.out_stride + c] = sum;
    }
  }
}

void RowDotsInt8Kernel(const RowDotsInt8& p) {
  switch (p.dtype) {
    case DType::kQ8_0:
      return RowDotsOf<BlockQ8_0>(p);
    case DType::kQ4_0:
      return RowDotsOf<BlockQ4_0>(p);
    case DType::kQ4_1:
      return RowDotsOf<BlockQ4_1>(p);
    case DType::kQ4_K:
      return RowDotsOf<BlockQ4_K>(p);
    case DType::kQ6_K:
      return RowDotsOf<BlockQ6_K>(p);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kE4M3:
      break;
  }
  internal::CheckFailed("not a quantised dtype", __FILE__, __LINE__);
}

bool HasInt8Panel(DType) { return false; }

void PackInt8(DType, const std::byte* const*, const Int8Panel&) {
  internal::CheckFailed("no int8 panel on this instruction set", __FILE__, __LINE__);
}

void GemmInt8(const Int8Panel&, const int8_t*, int64_t, const ActivationScale*, int64_t, int,
              const PanelOutput&) {
  internal::CheckFailed("no int8 panel on this instruction set", __FILE__, __LINE__);
}

}  // namespace
}  // namespace espalier::kernels::cpu
