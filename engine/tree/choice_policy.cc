#include "engine/tree/choice_policy.h"

#include <algorithm>

namespace espalier {

SearchDecision ChoicePolicy::Decide(const SearchView& view) const {
  const auto grows = [](const BranchView& branch) { return !branch.ended; };
  if (view.unstarted > 0 || std::ranges::any_of(view.branches, grows)) return {};
  const auto score = [this](const BranchView& branch) {
    return score_ == BranchScore::kMeanLogprob ? branch.logprob / branch.tokens : branch.logprob;
  };
  // The first of equally likely ones.
  const auto best = std::ranges::max_element(view.branches, {}, score);
  SearchDecision decision;
  decision.kept.push_back({.branch = best->branch, .score = score(*best)});
  for (const BranchView& branch : view.branches) {
    if (branch.branch == best->branch) continue;
    decision.pruned.push_back(
        {.branch = branch.branch, .score = score(branch), .threshold = score(*best)});
  }
  return decision;
}

}  // namespace espalier
