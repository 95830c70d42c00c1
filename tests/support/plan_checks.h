// What every plan must hold, whatever the variant: each (query, key) pair is covered exactly once,
// each row's result goes to one place, and the counters count what they say.
#pragma once

#include "kernels/attention/tree_plan.h"
#include "kernels/attention/tree_shape.h"

namespace espalier::testing {

// As on an H100 with 8 kv heads.
inline PlanOptions ManyWorkers(int group_size) {
  return {.group_size = group_size,
          .num_kv_heads = 8,
          .num_workers = 132,
          .cost = {.token = 4000, .min_piece = 128 * 4000, .merge = 278 * 4000}};
}

// Fails the test, fatally, on the first thing that `plan` gets wrong about `shape`.
void CheckPlan(const TreePlan& plan, const TreeShape& shape);

}  // namespace espalier::testing
