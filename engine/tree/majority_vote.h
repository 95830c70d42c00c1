// Self-consistency: n independent samples, each of which votes for the answer that a pattern finds
// in its text. Kept is one branch that gives the most frequent answer; it is decided as soon as the
// branches that still grow cannot change the answer.
#pragma once

#include <utility>

#include "engine/tree/answer_pattern.h"
#include "engine/tree/branch_policy.h"

namespace espalier {

class MajorityVotePolicy : public BranchPolicy {
 public:
  MajorityVotePolicy(AnswerPattern pattern, int n) : pattern_(std::move(pattern)), n_(n) {}

  int fanout() const override { return n_; }
  int num_candidates() const override { return 0; }
  std::optional<std::string> Answer(std::string_view text) const override {
    return pattern_.Find(text);
  }
  SearchDecision Decide(const SearchView& view) const override;

 private:
  const AnswerPattern pattern_;
  const int n_;
};

}  // namespace espalier
