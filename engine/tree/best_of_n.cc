#include "engine/tree/best_of_n.h"

#include <algorithm>

#include "kernels/core/check.h"

namespace espalier {

double BestOfNPolicy::Score(const BranchView& branch, int max_tokens) const {
  switch (params_.score) {
    case BranchScore::kCumulativeLogprob:
      return branch.logprob;
    case BranchScore::kMeanLogprob:
      return branch.logprob / std::max(branch.ended ? branch.tokens : max_tokens, 1);
  }
  ESPALIER_CHECK(false && "no such score");
}

// A judgement may be anything: nothing is decided before the last.
SearchDecision BestOfNPolicy::DecideJudged(const SearchView& view) const {
  if (view.unstarted > 0) return {};
  SearchDecision decision;
  std::vector<SearchDecision::Kept>& kept = decision.kept;
  for (const BranchView& branch : view.branches) {
    if (!branch.judgement) return {};
    kept.push_back({branch.branch, *branch.judgement});
  }
  // Of equal ones the earlier sample.
  std::ranges::stable_sort(kept, std::ranges::greater(), &SearchDecision::Kept::score);
  const auto keep = std::min(kept.size(), static_cast<size_t>(params_.keep));
  for (size_t i = keep; i < kept.size(); ++i) {
    decision.pruned.push_back({kept[i].branch, kept[i].score, kept[keep - 1].score});
  }
  kept.resize(keep);
  return decision;
}

SearchDecision BestOfNPolicy::Decide(const SearchView& view) const {
  if (params_.judge) return DecideJudged(view);
  std::vector<SearchDecision::Kept> ended;
  for (const BranchView& branch : view.branches) {
    if (branch.ended) ended.push_back({branch.branch, Score(branch, view.max_tokens)});
  }
  SearchDecision decision;
  const auto keep = static_cast<size_t>(params_.keep);
  if (ended.size() < keep) return decision;
  // Of equal ones the earlier sample.
  std::ranges::stable_sort(ended, std::ranges::greater(), &SearchDecision::Kept::score);
  const double threshold = ended[keep - 1].score;
  size_t growing = static_cast<size_t>(view.unstarted);
  for (const BranchView& branch : view.branches) {
    if (branch.ended) continue;
    const double bound = Score(branch, view.max_tokens);
    if (bound < threshold) {
      decision.pruned.push_back({branch.branch, bound, threshold});
    } else {
      ++growing;
    }
  }
  for (size_t i = keep; i < ended.size(); ++i) {
    decision.pruned.push_back({ended[i].branch, ended[i].score, threshold});
  }
  ended.resize(keep);
  if (growing == 0) decision.kept = std::move(ended);
  return decision;
}

}  // namespace espalier
