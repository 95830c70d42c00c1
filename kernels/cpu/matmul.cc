// Matrix products on the CPU: which kernel, and how the work is cut.
//
// Decode reads every weight once a step, so memory binds: 20 bytes for 32 Q4_1 weights, whatever
// the number of rows up to a few. Beyond that, arithmetic binds and weights are unpacked once a
// panel. A task is a run of output features; nothing is summed across tasks, so the result does not
// depend on the number of threads.
//
// A library's sgemm is no alternative: on 4-bit weights the int8 panels run at 1.5 times the speed
// of oneDNN's (130 against 86 GFLOP/s on one core of a Zen 3), and the fp32 panels, unpacking
// included, at 0.9 times.
#include <algorithm>

#include "kernels/core/check.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

// Rows up to which row dots beat panels, measured on AVX2; fp32 panels cost more to fill.
constexpr int kRowDotsInt8 = 6;
constexpr int kRowDotsF32 = 4;

constexpr int kTasksPerThread = 8;
// Activations below this many elements are quantised by the caller alone.
constexpr int64_t kQuantizeGrain = 8192;

bool IsQuantised(DType dtype) { return Info(dtype).block_elements > 1; }

int64_t NumTiles(const Projection& projection) {
  return (projection.weight.rows + kPanelColumns - 1) / kPanelColumns;
}

struct QuantisedRows {
  const int8_t* q = nullptr;                // [rows, depth]
  const ActivationScale* scales = nullptr;  // [rows, depth / 32]
};

QuantisedRows QuantiseRows(const Context& ctx, const CpuKernels& cpu, const float* x, int rows,
                           int64_t depth) {
  const int64_t blocks = rows * (depth / kQuantBlock);
  auto* scales = reinterpret_cast<ActivationScale*>(
      ctx.shared_scratch().Get<std::byte>(blocks * (sizeof(ActivationScale) + kQuantBlock)));
  auto* q = reinterpret_cast<int8_t*>(scales + blocks);
  ctx.pool().ParallelFor(blocks, kQuantizeGrain / kQuantBlock,
                         [&](int64_t begin, int64_t end, int) {
                           cpu.quantize(x + begin * kQuantBlock, (end - begin) * kQuantBlock,
                                        q + begin * kQuantBlock, scales + begin);
                         });
  return {q, scales};
}

// One projection's output features [begin, end).
class ProjectionTask {
 public:
  ProjectionTask(const CpuKernels& cpu, Scratch& scratch, const ProjectParams& p,
                 const QuantisedRows& quantised, const Projection& projection)
      : cpu_(cpu), scratch_(scratch), p_(p), quantised_(quantised), projection_(projection) {}

  void Run(int64_t begin, int64_t end) const {
    const DType dtype = projection_.weight.dtype;
    if (quantised_.q != nullptr && IsQuantised(dtype)) {
      const bool panels = p_.rows > kRowDotsInt8 && cpu_.has_int8_panel(dtype);
      return panels ? PanelsInt8(begin, end) : DotsInt8(begin, end);
    }
    return p_.rows > kRowDotsF32 ? PanelsF32(begin, end) : DotsF32(begin, end);
  }

 private:
  const std::byte* WeightRow(int64_t row) const {
    const ConstMatrix& weight = projection_.weight;
    return static_cast<const std::byte*>(weight.data) + row * RowBytes();
  }
  size_t RowBytes() const { return BytesOf(projection_.weight.dtype, projection_.weight.cols); }
  const float* BiasAt(int64_t column) const {
    return projection_.bias != nullptr ? projection_.bias + column : nullptr;
  }

  void DotsInt8(int64_t begin, int64_t end) const {
    cpu_.row_dots_int8({.dtype = projection_.weight.dtype,
                        .weight = WeightRow(begin),
                        .columns = end - begin,
                        .depth = projection_.weight.cols,
                        .q = quantised_.q,
                        .scales = quantised_.scales,
                        .rows = p_.rows,
                        .bias = BiasAt(begin),
                        .out = Floats(projection_.out) + begin,
                        .out_stride = projection_.out_stride});
  }

  void DotsF32(int64_t begin, int64_t end) const {
    cpu_.row_dots_f32({.dtype = projection_.weight.dtype,
                       .weight = WeightRow(begin),
                       .columns = end - begin,
                       .depth = projection_.weight.cols,
                       .x = Floats(p_.x),
                       .rows = p_.rows,
                       .bias = BiasAt(begin),
                       .out = Floats(projection_.out) + begin,
                       .out_stride = projection_.out_stride});
  }

  PanelOutput OutputAt(int64_t column, int columns, bool add) const {
    return {.out = Floats(projection_.out) + column,
            .stride = projection_.out_stride,
            .columns = columns,
            .add = add,
            .bias = BiasAt(column)};
  }

  void PanelsInt8(int64_t begin, int64_t end) const {
    constexpr int kMaxBlocks = kInt8PanelDepth / kQuantBlock;
    constexpr int kFactors = kMaxBlocks * kPanelColumns;
    auto* quants =
        scratch_.Get<uint8_t>(kInt8PanelDepth * kPanelColumns + 2 * kFactors * sizeof(float));
    auto* scales = reinterpret_cast<float*>(quants + kInt8PanelDepth * kPanelColumns);
    const int64_t depth = projection_.weight.cols;
    const DTypeInfo& info = Info(projection_.weight.dtype);
    for (int64_t column = begin; column < end; column += kPanelColumns) {
      const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, end - column));
      for (int64_t k = 0; k < depth; k += kInt8PanelDepth) {
        const Int8Panel panel = {
            .quants = quants,
            .scales = scales,
            .mins = scales + kFactors,
            .depth = static_cast<int>(std::min<int64_t>(kInt8PanelDepth, depth - k))};
        const std::byte* rows[kPanelColumns];
        for (int c = 0; c < kPanelColumns; ++c) {
          // Past the last weight row, that row again; its sums are not stored.
          rows[c] = WeightRow(column + std::min(c, columns - 1)) +
                    k / info.block_elements * info.block_bytes;
        }
        cpu_.pack_int8(projection_.weight.dtype, rows, panel);
        cpu_.gemm_int8(panel, quantised_.q + k, depth, quantised_.scales + k / kQuantBlock,
                       depth / kQuantBlock, p_.rows, OutputAt(column, columns, k > 0));
      }
    }
  }

  void PanelsF32(int64_t begin, int64_t end) const {
    constexpr int kPanelElements = kF32PanelDepth * kPanelColumns;
    auto* values = scratch_.Get<float>(2 * kPanelElements);
    float* rows = values + kPanelElements;
    const int64_t depth = projection_.weight.cols;
    const DTypeInfo& info = Info(projection_.weight.dtype);
    for (int64_t column = begin; column < end; column += kPanelColumns) {
      const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, end - column));
      for (int64_t k = 0; k < depth; k += kF32PanelDepth) {
        const int panel_depth = static_cast<int>(std::min<int64_t>(kF32PanelDepth, depth - k));
        for (int c = 0; c < kPanelColumns; ++c) {
          cpu_.dequantize(projection_.weight.dtype,
                          WeightRow(column + std::min(c, columns - 1)) +
                              k / info.block_elements * info.block_bytes,
                          panel_depth, rows + c * panel_depth);
        }
        cpu_.pack_f32(rows, panel_depth, values);
        cpu_.gemm_f32({.values = values, .depth = panel_depth}, Floats(p_.x) + k, depth, p_.rows,
                      OutputAt(column, columns, k > 0));
      }
    }
  }

  const CpuKernels& cpu_;
  Scratch& scratch_;
  const ProjectParams& p_;
  const QuantisedRows& quantised_;
  const Projection& projection_;
};

}  // namespace

void Project(const Context& ctx, const ProjectParams& p) {
  ESPALIER_CHECK(!p.projections.empty());
  if (p.rows == 0) return;
  const int64_t depth = p.projections[0].weight.cols;
  const CpuKernels& cpu = KernelsFor(ctx.cpu_isa());

  int64_t num_tiles = 0;
  bool quantise = false;
  for (const Projection& projection : p.projections) {
    ESPALIER_CHECK(projection.weight.cols == depth);
    num_tiles += NumTiles(projection);
    quantise |= IsQuantised(projection.weight.dtype);
  }
  quantise &= ctx.cpu_precision() == CpuPrecision::kAuto;
  const QuantisedRows quantised =
      quantise ? QuantiseRows(ctx, cpu, Floats(p.x), p.rows, depth) : QuantisedRows{};

  // Tasks are runs of tiles over the projections one after the other.
  const int tasks =
      static_cast<int>(std::min<int64_t>(num_tiles, ctx.pool().num_threads() * kTasksPerThread));
  ctx.pool().Run(tasks, [&](int task, int worker) {
    int64_t first_tile = num_tiles * task / tasks;
    int64_t last_tile = num_tiles * (task + 1) / tasks;
    for (const Projection& projection : p.projections) {
      const int64_t tiles = NumTiles(projection);
      const int64_t begin = std::min(first_tile, tiles);
      const int64_t end = std::min(last_tile, tiles);
      if (begin < end) {
        ProjectionTask(cpu, ctx.worker_scratch(worker), p, quantised, projection)
            .Run(begin * kPanelColumns, std::min(end * kPanelColumns, projection.weight.rows));
      }
      first_tile = std::max<int64_t>(first_tile - tiles, 0);
      last_tile = std::max<int64_t>(last_tile - tiles, 0);
    }
  });
}

}  // namespace espalier::kernels::cpu
