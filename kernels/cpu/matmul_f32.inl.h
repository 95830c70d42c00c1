// fp32 matrix products, generic over the vector width.
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

float DotF32(const float* a, const float* b, int64_t n) {
  constexpr int kLanes = Simd::kLanes;
  Simd::F sums[4] = {Simd::Zero(), Simd::Zero(), Simd::Zero(), Simd::Zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      sums[j] = Simd::Fma(Simd::Load(a + i + j * kLanes), Simd::Load(b + i + j * kLanes), sums[j]);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    sums[0] = Simd::Fma(Simd::Load(a + i), Simd::Load(b + i), sums[0]);
  }
  float sum = Simd::Sum(Simd::Add(Simd::Add(sums[0], sums[1]), Simd::Add(sums[2], sums[3])));
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void FewRowsDotF32(const FewRowsF32& p) {
  // Through a buffer in the L1 cache: memory binds, so the second pass over it is free.
  constexpr int kChunk = 512;
  float buffer[kChunk];
  const DTypeInfo info = Info(p.dtype);
  const size_t row_bytes = p.depth / info.block_elements * info.block_bytes;
  for (int64_t c = 0; c < p.columns; ++c) {
    const std::byte* row = p.weight + c * row_bytes;
    float sums[kMaxFewRows] = {};
    for (int64_t k = 0; k < p.depth; k += kChunk) {
      const int64_t n = p.depth - k < kChunk ? p.depth - k : kChunk;
      Dequantize(p.dtype, row + k / info.block_elements * info.block_bytes, n, buffer);
      for (int r = 0; r < p.rows; ++r) sums[r] += DotF32(buffer, p.x + r * p.depth + k, n);
    }
    const float bias = p.bias != nullptr ? p.bias[c] : 0.0f;
    for (int r = 0; r < p.rows; ++r) p.out[r * p.out_stride + c] = sums[r] + bias;
  }
}

void PackF32(const float* rows, int depth, float* values) {
  // A tile of the transposition is read and written within a few cache lines.
  constexpr int kTile = 16;
  for (int k0 = 0; k0 < depth; k0 += kTile) {
    const int k1 = k0 + kTile < depth ? k0 + kTile : depth;
    for (int k = k0; k < k1; ++k) {
      for (int c = 0; c < kPanelColumns; ++c) values[k * kPanelColumns + c] = rows[c * depth + k];
    }
  }
}

// Adds a row of 16 sums to its place, or stores it with the bias.
inline void WritePanelRow(const float* sums, const PanelOutput& output, int64_t row) {
  float* out = output.out + row * output.stride;
  if (output.add) {
    for (int c = 0; c < output.columns; ++c) out[c] += sums[c];
  } else if (output.bias != nullptr) {
    for (int c = 0; c < output.columns; ++c) out[c] = sums[c] + output.bias[c];
  } else {
    for (int c = 0; c < output.columns; ++c) out[c] = sums[c];
  }
}

constexpr int kVectors = kPanelColumns / Simd::kLanes;

// Each output is one chain of fused multiply-adds in the order of k, whatever the number of rows:
// a row's result does not depend on its batch.
template <int kRows>
void GemmTile(const F32Panel& panel, const float* x, int64_t x_stride, const PanelOutput& output,
              int64_t row) {
  Simd::F sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Simd::Zero();
  }
  for (int k = 0; k < panel.depth; ++k) {
    Simd::F w[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      w[v] = Simd::Load(panel.values + k * kPanelColumns + v * Simd::kLanes);
    }
    for (int r = 0; r < kRows; ++r) {
      const Simd::F a = Simd::Set1(x[(row + r) * x_stride + k]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Simd::Fma(a, w[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float line[kPanelColumns];
    for (int v = 0; v < kVectors; ++v) Simd::Store(line + v * Simd::kLanes, sums[r][v]);
    WritePanelRow(line, output, row + r);
  }
}

void GemmF32(const F32Panel& panel, const float* x, int64_t x_stride, int rows,
             const PanelOutput& output) {
  int row = 0;
  for (; row + Simd::kTileRows <= rows; row += Simd::kTileRows) {
    GemmTile<Simd::kTileRows>(panel, x, x_stride, output, row);
  }
  for (; row + 4 <= rows; row += 4) GemmTile<4>(panel, x, x_stride, output, row);
  for (; row < rows; ++row) GemmTile<1>(panel, x, x_stride, output, row);
}

}  // namespace
}  // namespace espalier::kernels::cpu
