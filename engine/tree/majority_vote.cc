#include "engine/tree/majority_vote.h"

#include <algorithm>
#include <map>

namespace espalier {
namespace {

// Of the branches with one answer.
struct Votes {
  int count = 0;
  const BranchView* best = nullptr;  // by mean log-probability; of equal ones the earlier
};

double MeanLogprob(const BranchView& branch) { return branch.logprob / std::max(branch.tokens, 1); }

}  // namespace

SearchDecision MajorityVotePolicy::Decide(const SearchView& view) const {
  if (view.unstarted > 0) return {};
  std::map<std::string_view, Votes> votes;
  const BranchView* best_without_answer = nullptr;
  const auto better = [](const BranchView& branch, const BranchView* than) {
    return than == nullptr || MeanLogprob(branch) > MeanLogprob(*than);
  };
  int growing = 0;
  for (const BranchView& branch : view.branches) {
    if (!branch.ended) {
      ++growing;
    } else if (branch.answer == nullptr) {
      if (better(branch, best_without_answer)) best_without_answer = &branch;
    } else {
      Votes& of_answer = votes[*branch.answer];
      ++of_answer.count;
      if (better(branch, of_answer.best)) of_answer.best = &branch;
    }
  }
  Votes first;
  int second = 0;
  for (const auto& [answer, of_answer] : votes) {
    const bool leads = of_answer.count > first.count ||
                       (of_answer.count == first.count && better(*of_answer.best, first.best));
    second = std::max(second, leads ? first.count : of_answer.count);
    if (leads) first = of_answer;
  }
  if (growing > 0 && first.count <= second + growing) return {};
  if (first.best == nullptr) first.best = best_without_answer;

  SearchDecision decision;
  decision.kept.push_back({first.best->branch, static_cast<double>(first.count)});
  for (const BranchView& branch : view.branches) {
    if (branch.branch == first.best->branch) continue;
    const int count = branch.answer == nullptr ? 0 : votes[*branch.answer].count;
    decision.pruned.push_back(
        {branch.branch, static_cast<double>(count), static_cast<double>(first.count)});
  }
  return decision;
}

}  // namespace espalier
