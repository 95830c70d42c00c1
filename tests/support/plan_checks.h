// What every plan must hold, whatever the variant: each (query, key) pair is covered exactly once,
// each row's result goes to one place, and the counters count what they say.
#pragma once

#include "kernels/attention/tree_plan.h"
#include "kernels/attention/tree_shape.h"

namespace espalier::testing {

// Fails the test, fatally, on the first thing that `plan` gets wrong about `shape`.
void CheckPlan(const TreePlan& plan, const TreeShape& shape);

}  // namespace espalier::testing
