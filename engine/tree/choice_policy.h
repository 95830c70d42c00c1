// Keeps the most likely of given texts. Each is a branch whose tokens are given, so that what its
// text scores is known exactly once it has ended.
#pragma once

#include "engine/tree/branch_policy.h"

namespace espalier {

class ChoicePolicy : public BranchPolicy {
 public:
  ChoicePolicy(BranchScore score, int num_choices) : score_(score), num_choices_(num_choices) {}

  int fanout() const override { return num_choices_; }
  int num_candidates() const override { return 0; }
  SearchDecision Decide(const SearchView& view) const override;

 private:
  const BranchScore score_;
  const int num_choices_;
};

}  // namespace espalier
