// The int8 panel product on AVX-512 VNNI: one instruction multiplies four input features of all 16
// output features and adds them in 32 bits, so 8-bit weights fit as well.
#include <immintrin.h>

#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

bool HasInt8Panel(DType dtype) {
  return dtype == DType::kQ4_0 || dtype == DType::kQ4_1 || dtype == DType::kQ4_K ||
         dtype == DType::kQ8_0;
}

template <int kRows>
void GemmInt8Tile(const Int8Panel& panel, const int8_t* q, int64_t q_stride,
                  const ActivationScale* scales, int64_t scale_stride, const PanelOutput& output,
                  int64_t row) {
  __m512 sums[kRows];
  for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
  const int8_t* x = q + row * q_stride;
  const ActivationScale* x_scales = scales + row * scale_stride;
  for (int block = 0; block < panel.depth / kQuantBlock; ++block) {
    const uint8_t* w = panel.quants + block * kQuantBlock * kPanelColumns;
    __m512i products[kRows];
    for (int r = 0; r < kRows; ++r) products[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int group = 0; group < kQuantBlock / 4; ++group) {
      const __m512i weights = _mm512_load_si512(w + group * 4 * kPanelColumns);
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x + r * q_stride + block * kQuantBlock + group * 4, sizeof(four));
        products[r] = _mm512_dpbusd_epi32(products[r], weights, _mm512_set1_epi32(four));
      }
    }
    const __m512 w_scales = _mm512_load_ps(panel.scales + block * kPanelColumns);
    const __m512 w_mins = _mm512_load_ps(panel.mins + block * kPanelColumns);
    for (int r = 0; r < kRows; ++r) {
      const ActivationScale x_scale = x_scales[r * scale_stride + block];
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(x_scale.scale), w_scales);
      sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r]), scale, sums[r]);
      sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(x_scale.sum), w_mins, sums[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float line[kPanelColumns];
    _mm512_store_ps(line, sums[r]);
    WritePanelRow(line, output, row + r);
  }
}

void GemmInt8(const Int8Panel& panel, const int8_t* q, int64_t q_stride,
              const ActivationScale* scales, int64_t scale_stride, int rows,
              const PanelOutput& output) {
  RunRowTiles<8>(rows, [&]<int kRows>(int row) {
    GemmInt8Tile<kRows>(panel, q, q_stride, scales, scale_stride, output, row);
  });
}

}  // namespace
}  // namespace espalier::kernels::cpu
