// The inner loops of the CPU ops, compiled once for each instruction set and picked at run time.
// A kernel works on one thread and allocates nothing.
//
// Matrix products come in two shapes. *Row dots*: a weight row as it is stored is multiplied with
// every activation row; best for few rows, where memory binds. *Panels*: 16 weight rows are
// unpacked and transposed, so that a vector holds 16 output features, and all activation rows run
// over them; unpacking is paid once a batch.
//
// Either shape comes in fp32 (weights dequantised exactly) and, for quantised weights, in int8:
// activations are quantised in blocks of 32, products are summed in integers within a block, and
// each block's sum is scaled in fp32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/runtime/cpu_isa.h"

namespace espalier::kernels::cpu {

// Weight rows of a panel: output features that one task computes together.
constexpr int kPanelColumns = 16;
// Input features that share a scale once quantised.
constexpr int kQuantBlock = 32;
// Input features a panel holds at most, so that it stays in the L1 cache. Multiples of every weight
// block, so that each chunk of a weight row starts on a block.
constexpr int kF32PanelDepth = 256;
constexpr int kInt8PanelDepth = 1024;

// x[j] = scale * q[j] in a block; sum = scale * (q[0] + ... + q[31]) meets the weights' minimum.
// A block with a non-finite element has a non-finite scale, so that the element is not lost.
struct ActivationScale {
  float scale;
  float sum;
};

// 16 weight rows by `depth` input features; element (k, c) at values[k * 16 + c].
struct F32Panel {
  const float* values;
  int depth;
};

// 16 weight rows by `depth` input features in blocks of 32: weight = scale * q + min, where
// q of (k, c) is at quants[(k / 4 * 16 + c) * 4 + k % 4], scale of (block, c) at
// scales[block * 16 + c], min likewise.
struct Int8Panel {
  uint8_t* quants;
  float* scales;
  float* mins;
  int depth;
};

// Where the outputs of a panel go: out[r * stride + c], for c < columns <= 16. The first panel of
// a dot product stores its sum plus the bias, the later ones add to it.
struct PanelOutput {
  float* out;
  int64_t stride;
  int columns;
  bool add;
  const float* bias;  // [columns] or null; only without `add`
};

// Row dots: out[r * out_stride + c] = x[r] . weight[c] + bias[c], c < columns.
struct RowDotsF32 {
  DType dtype;
  const std::byte* weight;  // [columns, depth] blocks
  int64_t columns;
  int64_t depth;
  const float* x;  // [rows, depth]
  int rows;
  const float* bias;
  float* out;
  int64_t out_stride;
};
struct RowDotsInt8 {
  DType dtype;
  const std::byte* weight;
  int64_t columns;
  int64_t depth;
  const int8_t* q;                // [rows, depth]
  const ActivationScale* scales;  // [rows, depth / 32]
  int rows;
  const float* bias;
  float* out;
  int64_t out_stride;
};

struct CpuKernels {
  // out[i] = element i of the blocks at `data`, the same bits on every instruction set.
  void (*dequantize)(DType dtype, const std::byte* data, int64_t elements, float* out);
  // Quantises `elements` activations, a multiple of 32.
  void (*quantize)(const float* x, int64_t elements, int8_t* q, ActivationScale* scales);

  void (*row_dots_f32)(const RowDotsF32& p);
  void (*row_dots_int8)(const RowDotsInt8& p);

  // values[k * 16 + c] = rows[c * depth + k].
  void (*pack_f32)(const float* rows, int depth, float* values);
  void (*gemm_f32)(const F32Panel& panel, const float* x, int64_t x_stride, int rows,
                   const PanelOutput& output);

  // Weight types for which there is an int8 panel.
  bool (*has_int8_panel)(DType dtype);
  // Fills the panel from panel.depth elements of each of 16 weight rows.
  void (*pack_int8)(DType dtype, const std::byte* const rows[kPanelColumns],
                    const Int8Panel& panel);
  // q: [rows, depth] of the panel, with row strides in elements and in blocks.
  void (*gemm_int8)(const Int8Panel& panel, const int8_t* q, int64_t q_stride,
                    const ActivationScale* scales, int64_t scale_stride, int rows,
                    const PanelOutput& output);

  // x += residual when given; out = x / rms(x) * weight.
  void (*rms_norm)(float* x, const float* residual, const float* weight, float eps, int64_t n,
                   float* out);
  // out = silu(gate) * up.
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  // (a, b) = (a * cos - b * sin, b * cos + a * sin).
  void (*rotate)(const float* a, const float* b, const float* cos, const float* sin, int64_t n,
                 float* out_a, float* out_b);
  // Stores values to a KV element type (kF32, kF16, kBF16, or kE4M3 divided by `scale`). Values
  // beyond the type's largest become that; non-finite ones become 0, and the result is true.
  bool (*store_kv)(const float* values, int64_t n, DType dtype, float scale, std::byte* out);
  bool (*all_finite)(const float* values, int64_t n);
};

const CpuKernels& KernelsFor(CpuIsa isa);

}  // namespace espalier::kernels::cpu
