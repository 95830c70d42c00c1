// fp32 matrix products, generic over the vector width.
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

static_assert(kPanelColumns == 16);  // Simd::Transpose16

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

void RowDotsF32Kernel(const RowDotsF32& p) {
  // Through a buffer in the L1 cache: memory binds, so a second pass over it is nearly free.
  constexpr int kChunk = 512;
  float buffer[kChunk];
  const DTypeInfo& info = Info(p.dtype);
  const size_t row_bytes = p.depth / info.block_elements * info.block_bytes;
  for (int64_t column = 0; column < p.columns; ++column) {
    const std::byte* row = p.weight + column * row_bytes;
    const float bias = p.bias != nullptr ? p.bias[column] : 0.0f;
    for (int64_t k = 0; k < p.depth; k += kChunk) {
      const int64_t n = p.depth - k < kChunk ? p.depth - k : kChunk;
      Dequantize(p.dtype, row + k / info.block_elements * info.block_bytes, n, buffer);
      for (int r = 0; r < p.rows; ++r) {
        float& out = p.out[r * p.out_stride + column];
        out = (k == 0 ? bias : out) + DotF32(buffer, p.x + r * p.depth + k, n);
      }
    }
  }
}

// values[k * 16 + c] = rows[c * depth + k].
void PackF32(const float* rows, int depth, float* values) {
  int k = 0;
  for (; k + Simd::kLanes <= depth; k += Simd::kLanes) {
    Simd::Transpose16(rows + k, depth, values + k * kPanelColumns);
  }
  for (; k < depth; ++k) {
    for (int c = 0; c < kPanelColumns; ++c) values[k * kPanelColumns + c] = rows[c * depth + k];
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

template <int kRows, typename Tile>
void RunLastTile(int rows, int row, const Tile& tile) {
  if constexpr (kRows > 0) {
    if (rows != kRows) return RunLastTile<kRows - 1>(rows, row, tile);
    tile.template operator()<kRows>(row);
  }
}

// Calls tile<kTileRows>(row) for as many rows as it fits, then a smaller one for the rest.
template <int kTileRows, typename Tile>
void RunRowTiles(int rows, const Tile& tile) {
  int row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) tile.template operator()<kTileRows>(row);
  RunLastTile<kTileRows - 1>(rows - row, row, tile);
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
  RunRowTiles<Simd::kTileRows>(
      rows, [&]<int kRows>(int row) { GemmTile<kRows>(panel, x, x_stride, output, row); });
}

}  // namespace
}  // namespace espalier::kernels::cpu
