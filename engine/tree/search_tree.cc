// The part of decode_tree.h that asks search policies and does what they decide.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/tree/decode_tree.h"
#include "engine/utf8.h"
#include "kernels/core/check.h"

namespace espalier {

std::vector<SearchOutcome> DecodeTree::DecideSearches() {
  std::vector<SearchOutcome> outcomes;
  for (int prompt : std::exchange(moved_searches_, {})) {
    SearchOutcome& outcome = outcomes.emplace_back();
    // What a decision leaves may decide the search.
    while (!segments_[prompt].undecided.empty()) {
      const SearchDecision decision =
          PolicyOf(segments_[prompt])->Decide(ViewOf(segments_[prompt]));
      if (decision.steps.empty() && decision.pruned.empty() && decision.kept.empty()) break;
      Apply(prompt, decision, &outcome);
    }
    // A later decision may have pruned what an earlier one let grow.
    std::erase_if(outcome.grown, [&](int branch) { return segments_[branch].done; });
  }
  return outcomes;
}

SearchView DecodeTree::ViewOf(const Segment& prompt) const {
  const BranchPolicy& policy = *PolicyOf(prompt);
  SearchView view;
  view.unstarted = policy.fanout() * search_paths_[prompt.node] - prompt.num_started;
  view.max_tokens = node(prompt).max_tokens;
  view.stop_tokens = stop_tokens_[prompt.node];
  for (int branch : prompt.undecided) {
    const Segment& s = segments_[branch];
    const size_t candidates =
        std::min<size_t>(s.candidates.size(), static_cast<size_t>(policy.num_candidates()));
    view.branches.push_back({.branch = branch,
                             .sample = s.root_sample,
                             .ended = s.done,
                             .tokens = s.search_tokens,
                             .logprob = s.search_logprob,
                             .candidates = std::span(s.candidates).first(candidates),
                             .judgement = s.judgement,
                             .answer = s.answer ? &*s.answer : nullptr});
    // Branches whose tokens the policy chooses are of one length.
    if (!s.done && s.search_tokens < node(prompt).generation->min_tokens) {
      view.banned = banned_[prompt.node];
    }
  }
  return view;
}

void DecodeTree::Apply(int prompt, const SearchDecision& decision, SearchOutcome* outcome) {
  // Forks first: they start where their source is before it moves.
  for (const SearchDecision::Step& step : decision.steps) {
    if (step.fork) TakeStep(step, outcome);
  }
  for (const SearchDecision::Step& step : decision.steps) {
    if (!step.fork) TakeStep(step, outcome);
  }
  for (const SearchDecision::Pruned& pruned : decision.pruned) {
    Prune(pruned);
    outcome->dropped.push_back(pruned.branch);
  }
  for (size_t rank = 0; rank < decision.kept.size(); ++rank) {
    const SearchDecision::Kept& kept = decision.kept[rank];
    const Segment& s = segments_[kept.branch];
    Report(s, s.end_reason, kept.score, std::nullopt, static_cast<int>(rank));
    if (PolicyOf(s)->num_candidates() > 0) {
      auto& report = std::get<BranchFinished>(pending_ends_.back());
      report.hypothesis_token_ids = SearchTokens(kept.branch);
      std::string bytes;
      for (int32_t token : report.hypothesis_token_ids) {
        bytes += init_.tokenizer->TokenBytes(token, /*special=*/false);
      }
      AppendAsUtf8(bytes, &report.hypothesis_text);
    }
    std::erase(segments_[prompt].undecided, kept.branch);
    outcome->kept.push_back(kept.branch);
  }
  ESPALIER_CHECK(decision.kept.empty() || segments_[prompt].undecided.empty());
}

// All tokens from the prompt that the search began at.
std::vector<int32_t> DecodeTree::SearchTokens(int branch) const {
  std::vector<int32_t> path = PathTokens(branch);
  path.erase(path.begin(), path.begin() + path_length(segments_[branch].search));
  return path;
}

void DecodeTree::TakeStep(const SearchDecision::Step& step, SearchOutcome* outcome) {
  Segment& source = segments_[step.branch];
  const int logprobs = node(source).generation->logprobs.value_or(0);
  const auto top_end =
      source.candidates.begin() + std::min<ptrdiff_t>(logprobs, std::ssize(source.candidates));
  TokenLogprob token{step.token, step.logprob, {source.candidates.begin(), top_end}};
  const int branch = step.fork ? AddFork(step.branch) : step.branch;
  Segment& s = segments_[branch];
  if (!step.fork) s.candidates.clear();
  if (step.stops) {
    // It counts in the score, as the policies have it, and is not part of the branch.
    s.search_logprob += step.logprob;
    ++s.search_tokens;
    ReleaseRest(s);
    EndBranch(s, FinishReason::kStop, absl::StrCat(step.token));
  } else {
    TakeToken(s, std::move(token));
  }
  if (s.done) {
    outcome->dropped.push_back(branch);
  } else if (!step.fork) {
    outcome->grown.push_back(branch);
  }
  if (step.fork) outcome->forks.push_back({branch, step.branch});
}

int DecodeTree::AddFork(int source_index) {
  Segment& source = segments_[source_index];
  const int index = AddSegment(SegmentKind::kBranch, source.node, source_index);
  Segment& s = segments_[index];
  s.branch_id = num_branches_++;
  s.sample = source.num_forks++;
  s.root_sample = source.root_sample;
  s.seed = BranchSeed(source.seed, source.node, s.sample);
  s.text = std::make_unique<TextStream>(source.text->Fork());
  s.search = source.search;
  s.search_tokens = source.search_tokens;
  s.search_logprob = source.search_logprob;
  segments_[s.search].undecided.push_back(index);
  Announce(s, init_.submitted);
  return index;
}

void DecodeTree::Prune(const SearchDecision::Pruned& pruned) {
  Segment& s = segments_[pruned.branch];
  if (!s.done && s.started) ReleaseRest(s);
  if (!s.done) EndBranch(s, FinishReason::kPruned, "");
  s.end_reason = FinishReason::kPruned;
  std::erase(segments_[s.search].undecided, pruned.branch);
  // Of one that has not started its client knows nothing.
  if (s.started) Report(s, FinishReason::kPruned, pruned.score, pruned.threshold, std::nullopt);
}

}  // namespace espalier
