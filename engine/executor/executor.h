// Runs a step: plans the attention, runs the model, draws and scores tokens. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/executor/device_step.h"
#include "engine/executor/plan_ahead.h"
#include "engine/kvcache/kv_cache.h"
#include "engine/sampler/sampler.h"
#include "engine/scheduler/step_batch.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/runtime/context.h"
#include "kernels/runtime/device_memory.h"
#include "model/llama.h"

namespace espalier {

struct ExecutorOptions {
  AttentionVariant attention = AttentionVariant::kDefault;
  bool cuda_graphs = true;
  // CUDA: plans the likely next step, and uploads the plan, while the device works.
  bool plan_ahead = true;
  int max_rows = 0;
  int max_logits_rows = 0;
};

// Sums of wall time, in ms.
struct ExecutorTimes {
  double plan_ms = 0;     // on CUDA without what is planned while the device works
  double forward_ms = 0;  // on CUDA with the sampling
  double sample_ms = 0;
};

class Executor {
 public:
  // Borrows all three. RESOURCE_EXHAUSTED when the device lacks memory.
  static absl::StatusOr<std::unique_ptr<Executor>> Create(Context* ctx, Llama* model, KvCache* kv,
                                                          const ExecutorOptions& options);

  struct Result {
    std::span<const Sample> samples;   // one a task of the batch
    std::span<const uint8_t> row_bad;  // one a row
  };
  // Valid until the next call. An error is the device's: no step can follow it. `meanwhile` is what
  // the caller has to do that needs no result: while a device works.
  absl::StatusOr<Result> Run(
      const StepBatch& batch, absl::FunctionRef<void()> meanwhile = [] {});

  // Copies KV from slot to slot before the next Run, in order; no entry reads what an earlier one
  // writes. At most max_logits_rows entries.
  void MoveKv(std::span<const int64_t> from, std::span<const int64_t> to);

  const ExecutorTimes& times() const { return times_; }

 private:
  Executor(Context* ctx, Llama* model, KvCache* kv, const ExecutorOptions& options);

  absl::StatusOr<Result> RunOnCpu(const StepBatch& batch, const TreePlan& plan);
  absl::StatusOr<Result> RunOnDevice(const StepBatch& batch, const TreePlan& plan,
                                     absl::FunctionRef<void()> meanwhile);
  void PlanNext(const StepBatch& batch);
  void DrawSamples(const StepBatch& batch, std::span<const float> logits);

  Context* const ctx_;
  Llama* const model_;
  std::vector<KvLayerView> layers_;
  TreePlanner planner_;  // CPU
  PlanOptions plan_options_;
  std::vector<Sampler> samplers_;  // CPU: one a pool worker
  std::vector<Sample> samples_;
  std::unique_ptr<DeviceStep> device_step_;  // CUDA
  std::unique_ptr<PlanAhead> plan_ahead_;    // CUDA
  bool plan_uploaded_ = false;               // the one that was made ahead
  DeviceBuffer move_slots_;                  // CUDA
  StagingBuffer move_staging_;               // CUDA
  ExecutorTimes times_;
};

}  // namespace espalier
