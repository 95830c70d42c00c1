// Runs a step: plans the attention, runs the model, draws and scores tokens. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/kvcache/kv_cache.h"
#include "engine/sampler/sampler.h"
#include "engine/scheduler/step_batch.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/runtime/context.h"
#include "model/llama.h"

namespace espalier {

// Sums of wall time, in ms.
struct ExecutorTimes {
  double plan_ms = 0;
  double forward_ms = 0;
  double sample_ms = 0;
};

class Executor {
 public:
  // Borrows all three.
  Executor(Context* ctx, Llama* model, KvCache* kv);

  struct Result {
    std::span<const Sample> samples;   // one a task of the batch
    std::span<const uint8_t> row_bad;  // one a row
  };
  // Valid until the next call.
  Result Run(const StepBatch& batch);

  const ExecutorTimes& times() const { return times_; }

 private:
  void DrawSamples(const StepBatch& batch, std::span<const float> logits);

  Context* const ctx_;
  Llama* const model_;
  std::vector<KvLayerView> layers_;
  TreePlanner planner_;
  PlanOptions plan_options_;
  std::vector<Sampler> samplers_;  // one a pool worker
  std::vector<Sample> samples_;
  ExecutorTimes times_;
};

}  // namespace espalier
