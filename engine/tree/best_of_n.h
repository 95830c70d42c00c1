// Keeps the best m of n independent samples. A branch that can no longer become one of them is
// pruned while it grows: log-probabilities are never positive, so what it has bounds what it gets.
// With a judge the best are those that the model itself thinks best.
#pragma once

#include "engine/tree/branch_policy.h"

namespace espalier {

class BestOfNPolicy : public BranchPolicy {
 public:
  BestOfNPolicy(const BestOfN& params, int n) : params_(params), n_(n) {}

  int fanout() const override { return n_; }
  int num_candidates() const override { return 0; }
  SearchDecision Decide(const SearchView& view) const override;

 private:
  SearchDecision DecideJudged(const SearchView& view) const;
  // Of an ended branch its score; of one that grows the most that it can reach.
  double Score(const BranchView& branch, int max_tokens) const;

  const BestOfN params_;
  const int n_;
};

}  // namespace espalier
