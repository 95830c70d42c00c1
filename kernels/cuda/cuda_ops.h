// The CUDA backend's implementation of kernels/ops.h. A CPU-only build links unavailable.cc.
#pragma once

#include "kernels/ops.h"

namespace espalier::kernels::cuda {

void Embedding(const Context& ctx, const EmbeddingParams& p);
void RmsNorm(const Context& ctx, const RmsNormParams& p);
void Project(const Context& ctx, const ProjectParams& p);
void RopeStoreKv(const Context& ctx, const RopeStoreKvParams& p);
void TreeAttention(const Context& ctx, const TreeAttentionParams& p);
void SwiGlu(const Context& ctx, const SwiGluParams& p);
void GatherRows(const Context& ctx, const GatherRowsParams& p);
void CopySlots(const Context& ctx, const CopySlotsParams& p);
void FlagNonFinite(const Context& ctx, const FlagNonFiniteParams& p);

}  // namespace espalier::kernels::cuda
