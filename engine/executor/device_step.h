// A step on the CUDA device: plan and inputs go up in one copy each, forward and sampling run
// without the host in between, tokens come back. Decode steps replay a captured graph of their
// shape. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampler/sampler.h"
#include "engine/scheduler/step_batch.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/cuda/device_sampler.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/plan_buffers.h"
#include "kernels/runtime/device_memory.h"
#include "model/llama.h"

namespace espalier {

struct DeviceStepOptions {
  bool graphs = true;  // false: every op is launched by itself
  int max_rows = 0;
  int max_logits_rows = 0;
};

class DeviceStep {
 public:
  // Borrows context and model.
  static absl::StatusOr<std::unique_ptr<DeviceStep>> Create(const Context& ctx, Llama* model,
                                                            std::vector<KvLayerView> layers,
                                                            const DeviceStepOptions& options);

  // Enqueues the step. RESOURCE_EXHAUSTED when the device lacks memory for the plan.
  // `uploaded`: the plan is what the last UploadPlanAhead took.
  absl::Status Launch(const StepBatch& batch, const TreePlan& plan, bool uploaded);
  // The plan that may be the next step's, while the device works on this one; false: not taken.
  [[nodiscard]] bool UploadPlanAhead(const TreePlan& plan);
  // Waits for it. INTERNAL names the op that failed: nothing on the device can be trusted then.
  absl::Status Wait(const StepBatch& batch, std::vector<Sample>* samples);
  std::span<const uint8_t> row_bad() const { return {row_bad_.As<uint8_t>(), rows_}; }

 private:
  DeviceStep(const Context& ctx, Llama* model, std::vector<KvLayerView> layers,
             const DeviceStepOptions& options);

  [[nodiscard]] bool UploadRequests(const StepBatch& batch);

  const Context& ctx_;
  Llama* const model_;
  const std::vector<KvLayerView> layers_;
  const DeviceStepOptions options_;
  PlanBuffers plan_buffers_;
  DeviceSampler sampler_;
  GraphCache graphs_;
  DeviceEvent done_;       // the last step, without the plan that was uploaded behind it
  StagingBuffer row_bad_;  // [max_rows]
  size_t rows_ = 0;        // of the last step
  std::vector<DeviceSampleRequest> requests_;
};

}  // namespace espalier
