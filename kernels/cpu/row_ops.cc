// The CPU ops that work on each row by itself.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/check.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/kernel_table.h"

namespace espalier::kernels::cpu {
namespace {

// Elements a thread must get for a fork to pay: about 2 us of work.
constexpr int64_t kGrainElements = 8192;

int64_t GrainRows(int64_t elements_a_row) {
  return std::max<int64_t>(kGrainElements / std::max<int64_t>(elements_a_row, 1), 1);
}

}  // namespace

void Embedding(const Context& ctx, const EmbeddingParams& p) {
  const CpuKernels& cpu = KernelsFor(ctx.cpu_isa());
  const size_t row_bytes = BytesOf(p.table.dtype, p.table.cols);
  const auto* table = static_cast<const std::byte*>(p.table.data);
  ctx.pool().ParallelFor(p.rows, GrainRows(p.table.cols),
                         [&](int64_t begin, int64_t end, int /*worker*/) {
                           for (int64_t r = begin; r < end; ++r) {
                             const int32_t token = p.token_ids[r];
                             ESPALIER_CHECK(token >= 0 && token < p.table.rows);
                             cpu.dequantize(p.table.dtype, table + token * row_bytes, p.table.cols,
                                            p.out + r * p.table.cols);
                           }
                         });
}

void RmsNorm(const Context& ctx, const RmsNormParams& p) {
  const CpuKernels& cpu = KernelsFor(ctx.cpu_isa());
  ctx.pool().ParallelFor(
      p.rows, GrainRows(p.hidden), [&](int64_t begin, int64_t end, int /*worker*/) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t at = r * p.hidden;
          const float* residual = p.residual != nullptr ? Floats(p.residual) + at : nullptr;
          cpu.rms_norm(p.x + at, residual, p.weight, p.eps, p.hidden, Floats(p.out) + at);
        }
      });
}

void RopeStoreKv(const Context& ctx, const RopeStoreKvParams& p) {
  const CpuKernels& cpu = KernelsFor(ctx.cpu_isa());
  const int head_dim = p.kv.head_dim;
  const int half = head_dim / 2;
  ESPALIER_CHECK(head_dim % 2 == 0);
  const int64_t q_width = int64_t{p.num_heads} * head_dim;
  const int64_t kv_width = int64_t{p.kv.num_kv_heads} * head_dim;

  ctx.pool().ParallelFor(
      p.rows, GrainRows(q_width + 2 * kv_width), [&](int64_t begin, int64_t end, int worker) {
        float* cos = ctx.worker_scratch(worker).Get<float>(2 * head_dim);
        float* sin = cos + half;
        float* rotated_k = sin + half;
        for (int64_t r = begin; r < end; ++r) {
          const float* qkv = Floats(p.qkv) + r * (q_width + 2 * kv_width);
          // In fp32 as Hugging Face computes it, so that long positions round alike.
          const float position = static_cast<float>(p.positions[r]);
          for (int i = 0; i < half; ++i) {
            const float angle = position * p.inv_freq[i];
            cos[i] = std::cos(angle) * p.rope_magnitude;
            sin[i] = std::sin(angle) * p.rope_magnitude;
          }
          for (int h = 0; h < p.num_heads; ++h) {
            const float* from = qkv + h * head_dim;
            float* to = Floats(p.q) + r * q_width + h * head_dim;
            cpu.rotate(from, from + half, cos, sin, half, to, to + half);
          }
          const int64_t slot = p.kv_slots[r];
          if (slot < 0) continue;
          ESPALIER_CHECK(slot / p.kv.page_size < p.kv.num_pages);
          for (int h = 0; h < p.kv.num_kv_heads; ++h) {
            const float* k = qkv + q_width + h * head_dim;
            const float* v = k + kv_width;
            cpu.rotate(k, k + half, cos, sin, half, rotated_k, rotated_k + half);
            const size_t at = BytesOf(p.kv.dtype, p.kv.Offset(slot, h));
            const bool bad_k = cpu.store_kv(rotated_k, head_dim, p.kv.dtype, p.kv.KeyScale(h),
                                            static_cast<std::byte*>(p.kv.k) + at);
            const bool bad_v = cpu.store_kv(v, head_dim, p.kv.dtype, p.kv.ValueScale(h),
                                            static_cast<std::byte*>(p.kv.v) + at);
            if (bad_k || bad_v) p.row_bad[r] = 1;
          }
        }
      });
}

void SwiGlu(const Context& ctx, const SwiGluParams& p) {
  const CpuKernels& cpu = KernelsFor(ctx.cpu_isa());
  ctx.pool().ParallelFor(p.rows, GrainRows(2 * int64_t{p.intermediate}),
                         [&](int64_t begin, int64_t end, int /*worker*/) {
                           for (int64_t r = begin; r < end; ++r) {
                             const float* gate = Floats(p.gate_up) + r * 2 * p.intermediate;
                             cpu.swiglu(gate, gate + p.intermediate, p.intermediate,
                                        Floats(p.out) + r * p.intermediate);
                           }
                         });
}

void GatherRows(const Context& /*ctx*/, const GatherRowsParams& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    std::memcpy(Floats(p.out) + r * p.cols, Floats(p.x) + int64_t{p.indices[r]} * p.cols,
                p.cols * sizeof(float));
  }
}

void CopySlots(const Context& /*ctx*/, const CopySlotsParams& p) {
  const size_t bytes = BytesOf(p.kv.dtype, p.kv.head_dim);
  for (int layer = 0; layer < p.num_layers; ++layer) {
    for (int i = 0; i < p.count; ++i) {
      for (int h = 0; h < p.kv.num_kv_heads; ++h) {
        const size_t from = BytesOf(p.kv.dtype, p.kv.Offset(p.from[i], h));
        const size_t to = BytesOf(p.kv.dtype, p.kv.Offset(p.to[i], h));
        for (void* side : {p.kv.k, p.kv.v}) {
          auto* base = static_cast<std::byte*>(side) + layer * p.layer_bytes;
          std::memcpy(base + to, base + from, bytes);
        }
      }
    }
  }
}

void FlagNonFinite(const Context& ctx, const FlagNonFiniteParams& p) {
  const CpuKernels& cpu = KernelsFor(ctx.cpu_isa());
  for (int64_t r = 0; r < p.rows; ++r) {
    if (!cpu.all_finite(Floats(p.x) + r * p.cols, p.cols)) p.row_bad[r] = 1;
  }
}

}  // namespace espalier::kernels::cpu
