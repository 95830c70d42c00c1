#include <numbers>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/tree_attention/attention_kernels.h"

namespace espalier::kernels::cuda {

void TreeAttention(const Context& ctx, const TreeAttentionParams& p) {
  ESPALIER_CHECK(p.device_plan != nullptr);
  const DevicePlan& plan = *p.device_plan;
  ESPALIER_CHECK(p.scale > 0);
  ESPALIER_CHECK(p.num_heads == plan.num_heads);
  ESPALIER_CHECK(p.kv.num_kv_heads == plan.num_kv_heads);
  ESPALIER_CHECK(p.kv.head_dim == plan.head_dim);
  ESPALIER_CHECK(p.kv.head_dim == 64 || p.kv.head_dim == 128);
  ESPALIER_CHECK(p.kv.page_size == plan.page_size);
  ESPALIER_CHECK(p.kv.num_pages >= plan.num_pages);
  ESPALIER_CHECK((p.kv.k_scale != nullptr) == (p.kv.dtype == DType::kE4M3));
  ESPALIER_CHECK((p.kv.v_scale != nullptr) == (p.kv.dtype == DType::kE4M3));
  // A row that stands for padding lies beyond.
  ESPALIER_CHECK(int64_t{p.kv.num_pages} * p.kv.num_kv_heads * p.kv.page_size <= kKvRowMask);

  const CudaState& state = ctx.cuda();
  const espalier::cuda::AttentionDevice device = {.num_sms = state.num_sms,
                                                  .max_shared_bytes = state.max_shared_bytes,
                                                  .overlaps = state.overlaps()};
  const espalier::cuda::AttentionArguments arguments = {
      .q = p.q,
      .k = p.kv.k,
      .v = p.kv.v,
      .k_scale = p.kv.k_scale,
      .v_scale = p.kv.v_scale,
      .num_kv_rows = int64_t{p.kv.num_pages} * p.kv.num_kv_heads * p.kv.page_size,
      .out = p.out,
      .plan = plan,
      .scale_log2 = p.scale * std::numbers::log2e_v<float>};
  using espalier::cuda::Check;
  const auto launch = plan.runs_on_hopper ? espalier::cuda::LaunchHopperAttention
                                          : espalier::cuda::LaunchPortableAttention;
  const DType dtype = ctx.activation_dtype();
  Check(ctx, "TreeAttention", launch(arguments, dtype, p.kv.dtype, device, state.stream));
  if (!plan.has_partials) return;
  Check(ctx, "TreeAttention", LaunchMerge(arguments, dtype, device, state.stream));
}

}  // namespace espalier::kernels::cuda
