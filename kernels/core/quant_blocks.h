// Memory layout of quantised blocks, as GGUF files hold them. Source: ggml's block formats
// (ggml-common.h, ggml-quants.c). `uint16_t` scales are IEEE half precision, little endian.
// A block has no alignment beyond 2 bytes inside a file's tensor.
#pragma once

#include <cstdint>

namespace espalier {

// 32 elements: x[j] = d * qs[j].
struct BlockQ8_0 {
  static constexpr int kElements = 32;
  uint16_t d;
  int8_t qs[32];
};

// 32 elements: x[j] = d * (low nibble of qs[j] - 8), x[j + 16] = d * (high nibble - 8).
struct BlockQ4_0 {
  static constexpr int kElements = 32;
  uint16_t d;
  uint8_t qs[16];
};

// 32 elements: x[j] = d * low nibble of qs[j] + m, x[j + 16] = d * high nibble + m.
struct BlockQ4_1 {
  static constexpr int kElements = 32;
  uint16_t d;
  uint16_t m;
  uint8_t qs[16];
};

// 256 elements in 8 sub-blocks of 32: x = d * scale[s] * q - dmin * min[s].
// Sub-blocks 2p and 2p + 1 are the low and the high nibbles of qs[32p .. 32p + 31].
// `scales` packs eight 6-bit scales and eight 6-bit mins:
//   s < 4:  scale = scales[s] & 63,                               min = scales[s + 4] & 63
//   s >= 4: scale = scales[s + 4] & 15 | (scales[s - 4] >> 6) << 4,
//           min   = scales[s + 4] >> 4 | (scales[s] >> 6) << 4
struct BlockQ4_K {
  static constexpr int kElements = 256;
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};

// 256 elements in 16 sub-blocks of 16: x = d * scales[s] * (q - 32), q of 6 bits.
// Each half h of 128 elements, l in [0, 32), with ql = ql + 64h, qh = qh + 32h:
//   element l:      ql[l] & 15       | (qh[l] & 3) << 4
//   element l + 32: ql[l + 32] & 15  | (qh[l] >> 2 & 3) << 4
//   element l + 64: ql[l] >> 4       | (qh[l] >> 4 & 3) << 4
//   element l + 96: ql[l + 32] >> 4  | (qh[l] >> 6) << 4
struct BlockQ6_K {
  static constexpr int kElements = 256;
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};

static_assert(sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ4_0) == 18);
static_assert(sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ6_K) == 210);

}  // namespace espalier
