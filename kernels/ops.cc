#include "kernels/ops.h"

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/tree_attention.h"
#include "kernels/cuda/cuda_ops.h"

namespace espalier::kernels {

void Embedding(const Context& ctx, const EmbeddingParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::Embedding(ctx, p);
    case Device::kCuda:
      return cuda::Embedding(ctx, p);
  }
}

void RmsNorm(const Context& ctx, const RmsNormParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::RmsNorm(ctx, p);
    case Device::kCuda:
      return cuda::RmsNorm(ctx, p);
  }
}

void Project(const Context& ctx, const ProjectParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::Project(ctx, p);
    case Device::kCuda:
      return cuda::Project(ctx, p);
  }
}

void RopeStoreKv(const Context& ctx, const RopeStoreKvParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::RopeStoreKv(ctx, p);
    case Device::kCuda:
      return cuda::RopeStoreKv(ctx, p);
  }
}

void TreeAttention(const Context& ctx, const TreeAttentionParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::TreeAttention(ctx, p);
    case Device::kCuda:
      return cuda::TreeAttention(ctx, p);
  }
}

void SwiGlu(const Context& ctx, const SwiGluParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::SwiGlu(ctx, p);
    case Device::kCuda:
      return cuda::SwiGlu(ctx, p);
  }
}

void GatherRows(const Context& ctx, const GatherRowsParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::GatherRows(ctx, p);
    case Device::kCuda:
      return cuda::GatherRows(ctx, p);
  }
}

void CopySlots(const Context& ctx, const CopySlotsParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::CopySlots(ctx, p);
    case Device::kCuda:
      return cuda::CopySlots(ctx, p);
  }
}

void FlagNonFinite(const Context& ctx, const FlagNonFiniteParams& p) {
  switch (ctx.device()) {
    case Device::kCpu:
      return cpu::FlagNonFinite(ctx, p);
    case Device::kCuda:
      return cuda::FlagNonFinite(ctx, p);
  }
}

void MatMul(const Context& ctx, const MatMulParams& p) {
  const Projection projection = {.weight = p.weight,
                                 .bias = p.bias,
                                 .out = p.out,
                                 .out_stride = p.weight.rows,
                                 .out_f32 = p.out_f32};
  Project(ctx, {.x = p.x, .projections = {&projection, 1}, .rows = p.rows});
}

}  // namespace espalier::kernels
