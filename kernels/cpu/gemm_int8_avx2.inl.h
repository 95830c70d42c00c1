// The int8 panel product on AVX2. Products of 4-bit weights fit 16 bits summed over a block: eight
// steps of at most 2 * 15 * 127, so one widening and one scaling serve 32 input features.
#include <immintrin.h>

#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

bool HasInt8Panel(DType dtype) {
  return dtype == DType::kQ4_0 || dtype == DType::kQ4_1 || dtype == DType::kQ4_K;
}

static_assert(kQuantBlock / 4 * 2 * 15 * 127 <= 32767);

template <int kRows>
void GemmInt8Tile(const Int8Panel& panel, const int8_t* q, int64_t q_stride,
                  const ActivationScale* scales, int64_t scale_stride, const PanelOutput& output,
                  int64_t row) {
  alignas(32) float sums[kRows][kPanelColumns] = {};
  const int8_t* x = q + row * q_stride;
  const ActivationScale* x_scales = scales + row * scale_stride;
  for (int block = 0; block < panel.depth / kQuantBlock; ++block) {
    const uint8_t* w = panel.quants + block * kQuantBlock * kPanelColumns;
    __m256i products[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      products[r][0] = _mm256_setzero_si256();
      products[r][1] = _mm256_setzero_si256();
    }
#pragma GCC unroll 8
    for (int group = 0; group < kQuantBlock / 4; ++group) {
      const auto* pair = reinterpret_cast<const __m256i*>(w + group * 4 * kPanelColumns);
      const __m256i w0 = _mm256_load_si256(pair);
      const __m256i w1 = _mm256_load_si256(pair + 1);
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x + r * q_stride + block * kQuantBlock + group * 4, sizeof(four));
        const __m256i a = _mm256_set1_epi32(four);
        products[r][0] = _mm256_add_epi16(products[r][0], _mm256_maddubs_epi16(w0, a));
        products[r][1] = _mm256_add_epi16(products[r][1], _mm256_maddubs_epi16(w1, a));
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < kRows; ++r) {
      const ActivationScale x_scale = x_scales[r * scale_stride + block];
      const __m256 scale = _mm256_set1_ps(x_scale.scale);
      const __m256 sum = _mm256_set1_ps(x_scale.sum);
      for (int side = 0; side < 2; ++side) {
        const float* w_scales = panel.scales + block * kPanelColumns + side * 8;
        const float* w_mins = panel.mins + block * kPanelColumns + side * 8;
        const __m256 dots = _mm256_cvtepi32_ps(_mm256_madd_epi16(products[r][side], ones));
        __m256 total = _mm256_load_ps(sums[r] + side * 8);
        total = _mm256_fmadd_ps(dots, _mm256_mul_ps(scale, _mm256_load_ps(w_scales)), total);
        total = _mm256_fmadd_ps(sum, _mm256_load_ps(w_mins), total);
        _mm256_store_ps(sums[r] + side * 8, total);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) WritePanelRow(sums[r], output, row + r);
}

void GemmInt8(const Int8Panel& panel, const int8_t* q, int64_t q_stride,
              const ActivationScale* scales, int64_t scale_stride, int rows,
              const PanelOutput& output) {
  RunRowTiles<4>(rows, [&]<int kRows>(int row) {
    GemmInt8Tile<kRows>(panel, q, q_stride, scales, scale_stride, output, row);
  });
}

}  // namespace
}  // namespace espalier::kernels::cpu
