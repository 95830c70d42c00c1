// E4M3 to fp16, exactly: products of 8-bit KV are made in fp16, whatever activations are.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace espalier::cuda {

// Of a word's elements the first two, or the others.
template <int kHalf>
__device__ uint32_t WidenTwo(uint32_t word) {
  uint32_t wide;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(static_cast<uint16_t>(word >> 16 * kHalf)));
#else
  // Exponent and mantissa move to their places; the exponent's bias is that of E4M3, 7 instead of
  // 15, until the product, which makes subnormals right, too.
  const uint32_t spread = __byte_perm(word, 0, kHalf == 0 ? 0x1404 : 0x3424);
  const uint32_t bits = (spread >> 1 & 0x3f803f80u) | (spread & 0x80008000u);
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(wide) : "r"(bits), "r"(0x5c005c00u));  // 2^8
#endif
  return wide;
}

// 16 neighbours to two 16-byte chunks.
__device__ inline void WidenSixteen(const uint4& from, uint4 (&to)[2]) {
  to[0] = make_uint4(WidenTwo<0>(from.x), WidenTwo<1>(from.x), WidenTwo<0>(from.y),
                     WidenTwo<1>(from.y));
  to[1] = make_uint4(WidenTwo<0>(from.z), WidenTwo<1>(from.z), WidenTwo<0>(from.w),
                     WidenTwo<1>(from.w));
}

}  // namespace espalier::cuda
