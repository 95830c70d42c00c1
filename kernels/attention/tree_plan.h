// Turns a forest and its queries into partitions, once a step for all layers and heads.
#pragma once

#include <memory>

#include "kernels/attention/tree_shape.h"

namespace espalier {

// The paper's variants (DeFT, ICLR 2025) and our default.
enum class AttentionVariant { kSequence, kNode, kNodeChunk, kFlatten, kDefault };

struct PlanOptions {
  AttentionVariant variant = AttentionVariant::kDefault;
  int group_size = 1;   // query heads a kv head
  int num_workers = 1;  // partitions are balanced over these
};

struct TreePlan;

// Builds plans; keeps its scratch and the plan's arrays between steps. Not thread-safe.
class TreePlanner {
 public:
  TreePlanner();
  ~TreePlanner();
  // The plan lives until the next call. `shape` must be well formed (checked).
  const TreePlan& Plan(const TreeShape& shape, const PlanOptions& options);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
