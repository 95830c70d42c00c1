// A step's tree plan on the CUDA device: arrays that stay where they are from step to step, so that
// a captured graph reads the next step's plan, and the memory of partial states. No CUDA headers.
#pragma once

#include <memory>

#include "kernels/attention/tree_plan.h"
#include "kernels/core/dtype.h"
#include "kernels/runtime/context.h"

namespace espalier {

struct DevicePlan;  // kernels/cuda/tree_attention/device_plan.h

// Which kernel runs a plan. kBest: the fastest that the device can run. kPortable: the one that
// every device can. kPairs: as kBest, with pairs of blocks that share KV also where that does not
// pay.
enum class AttentionKernel { kBest, kPortable, kPairs };

class PlanBuffers {
 public:
  // The context must outlive it. `num_heads` and `head_dim` size the partial states; `kv_dtype` is
  // that of the KV which is attended to.
  PlanBuffers(const Context& ctx, int num_heads, int head_dim, DType kv_dtype,
              AttentionKernel kernel = AttentionKernel::kBest);
  ~PlanBuffers();

  // Copies what the kernels read of the plan; enqueued on the context's stream, behind steps that
  // read the plan before. The staging memory is the object's own: the caller may change the plan at
  // once. Memory grows when a plan is larger than all before; false when the device lacks it.
  [[nodiscard]] bool Upload(const TreePlan& plan);
  // As Upload, but where memory would have to grow, which waits for the device, it does nothing and
  // gives false. For the plan of a step that may come next.
  [[nodiscard]] bool UploadAhead(const TreePlan& plan);

  // Changes when memory has moved: graphs captured before must not be replayed.
  int generation() const;
  const DevicePlan& device_plan() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// How a plan for this device is cut: SMs as workers, tile rows (at most) and costs of its kernel.
PlanOptions CudaPlanOptions(const Context& ctx, AttentionVariant variant, int num_heads,
                            int num_kv_heads, DType kv_dtype,
                            AttentionKernel kernel = AttentionKernel::kBest);

}  // namespace espalier
