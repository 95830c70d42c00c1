// Plans the next step while the device works on this one, on the guess that every branch grows by
// one token, that those whose last page is full begin the pages that the pool gives out next, and
// that nothing else changes. Engine thread only.
#pragma once

#include <span>
#include <vector>

#include "kernels/attention/tree_plan.h"

namespace espalier {

class PlanAhead {
 public:
  explicit PlanAhead(const PlanOptions& options) : options_(options) {}

  // The plan of `shape`, exactly as TreePlanner gives it: the guess's when it came true. Valid
  // until the next call.
  const TreePlan& Plan(const TreeShape& shape);
  // Whether that was the plan that the last Prepare gave.
  bool came_true() const { return came_true_; }

  // Plans what follows `shape`. Null, and nothing is planned, unless each query is the last token
  // of a node of its own, as branches that decode are, or where `next_pages` are too few.
  const TreePlan* Prepare(const TreeShape& shape, std::span<const int32_t> next_pages);

 private:
  bool Guess(const TreeShape& shape, std::span<const int32_t> next_pages);

  const PlanOptions options_;
  TreePlanner planner_;
  TreeShape guess_;
  const TreePlan* plan_ = nullptr;  // of the guess; null: none
  bool came_true_ = false;
  std::vector<int32_t> new_page_;  // by node, or why there is none
  std::vector<int32_t> pages_;     // of the node that is being added
};

}  // namespace espalier
