// The CUDA ops of a build without CUDA. No context names the device then, so a call is a bug.
#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"

namespace espalier::kernels::cuda {
namespace {

[[noreturn]] void Unavailable() {
  internal::CheckFailed("this build has a CUDA backend", __FILE__, __LINE__);
}

}  // namespace

void Embedding(const Context&, const EmbeddingParams&) { Unavailable(); }
void RmsNorm(const Context&, const RmsNormParams&) { Unavailable(); }
void Project(const Context&, const ProjectParams&) { Unavailable(); }
void RopeStoreKv(const Context&, const RopeStoreKvParams&) { Unavailable(); }
void TreeAttention(const Context&, const TreeAttentionParams&) { Unavailable(); }
void SwiGlu(const Context&, const SwiGluParams&) { Unavailable(); }
void GatherRows(const Context&, const GatherRowsParams&) { Unavailable(); }
void CopySlots(const Context&, const CopySlotsParams&) { Unavailable(); }
void FlagNonFinite(const Context&, const FlagNonFiniteParams&) { Unavailable(); }

}  // namespace espalier::kernels::cuda
