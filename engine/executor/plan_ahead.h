// Plans the next step while the device works on this one, on the guess that every branch grows by
// one token and nothing else changes. A page that a branch will begin is not known yet: the guess
// has a stand-in, and the plan is patched when the page is there. Engine thread only.
#pragma once

#include <vector>

#include "kernels/attention/tree_plan.h"

namespace espalier {

class PlanAhead {
 public:
  explicit PlanAhead(const PlanOptions& options) : options_(options) {}

  // The plan of `shape`, exactly as TreePlanner gives it: the guess's when it came true. Valid
  // until the next call.
  const TreePlan& Plan(const TreeShape& shape);
  // Plans what follows `shape`. Does nothing unless each query is the last token of a node of its
  // own, as branches that decode are.
  void Prepare(const TreeShape& shape);

  int64_t hits() const { return hits_; }  // guesses that came true

 private:
  bool Guess(const TreeShape& shape);
  // Whether `shape` is the guess with pages for the stand-ins; those are then in `stand_ins_`.
  bool CameTrue(const TreeShape& shape);
  void PutPages();

  const PlanOptions options_;
  TreePlanner planner_;
  TreeShape guess_;
  TreePlan plan_;  // of the guess
  bool guessed_ = false;
  std::vector<char> grows_;         // by node
  std::vector<int32_t> pages_;      // of the node that is being added
  std::vector<int32_t> stand_ins_;  // the page for each stand-in, in order
  int64_t hits_ = 0;
};

}  // namespace espalier
