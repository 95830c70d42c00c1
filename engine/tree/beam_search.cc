#include "engine/tree/beam_search.h"

#include <algorithm>
#include <cmath>

namespace espalier {

double BeamSearchPolicy::Score(double logprob, int tokens) const {
  return logprob / std::pow(tokens, params_.length_penalty);
}

std::vector<BeamSearchPolicy::Group> BeamSearchPolicy::Groups(const SearchView& view) const {
  std::vector<Group> groups(params_.groups);
  for (const BranchView& branch : view.branches) {
    Group& group = groups[static_cast<size_t>(branch.sample) / group_width_];
    if (branch.ended) {
      group.ended.push_back({branch.branch, Score(branch.logprob, branch.tokens)});
    } else {
      group.running.push_back(branch);
    }
  }
  for (Group& group : groups) {
    std::ranges::stable_sort(group.ended, std::ranges::greater(), &SearchDecision::Kept::score);
  }
  return groups;
}

SearchDecision BeamSearchPolicy::Decide(const SearchView& view) const {
  if (view.unstarted > 0) return {};
  const std::vector<Group> groups = Groups(view);
  const auto over = [&](const Group& group) { return Over(view, group); };
  if (std::ranges::all_of(groups, over)) return Finish(groups);

  SearchDecision decision;
  bool complete = true;
  for (const Group& group : groups) {
    if (over(group)) {
      // The others go on without it.
      for (const BranchView& branch : group.running) {
        decision.pruned.push_back(
            {branch.branch, Score(branch.logprob, branch.tokens), group.ended.back().score});
      }
      continue;
    }
    complete &= std::ranges::none_of(
        group.running, [](const BranchView& branch) { return branch.candidates.empty(); });
  }
  if (!complete) return decision;
  Taken taken;
  for (const Group& group : groups) {
    if (!over(group)) Advance(view, group, &taken, &decision);
  }
  return decision;
}

// Every group is over.
SearchDecision BeamSearchPolicy::Finish(const std::vector<Group>& groups) const {
  SearchDecision decision;
  std::vector<SearchDecision::Kept> ended;
  for (const Group& group : groups) {
    ended.insert(ended.end(), group.ended.begin(), group.ended.end());
  }
  std::ranges::stable_sort(ended, std::ranges::greater(), &SearchDecision::Kept::score);
  const size_t kept = std::min<size_t>(ended.size(), params_.num_return);
  const double threshold = ended[kept - 1].score;
  for (size_t i = kept; i < ended.size(); ++i) {
    decision.pruned.push_back({ended[i].branch, ended[i].score, threshold});
  }
  for (const Group& group : groups) {
    for (const BranchView& branch : group.running) {
      decision.pruned.push_back({branch.branch, Score(branch.logprob, branch.tokens), threshold});
    }
  }
  ended.resize(kept);
  decision.kept = std::move(ended);
  return decision;
}

bool BeamSearchPolicy::Over(const SearchView& view, const Group& group) const {
  const auto& [running, ended] = group;
  if (running.empty()) return true;
  if (ended.size() < group_width_) return false;
  // A single hypothesis ends with its first stop token: greedy search.
  if (params_.width == 1) return true;
  int length = running.front().tokens;
  switch (params_.early_stopping) {
    case EarlyStopping::kAlways:
      return true;
    case EarlyStopping::kHeuristic:
      break;
    case EarlyStopping::kNever:
      // A penalty above 0 favours long hypotheses: the longest is the most that can be hoped for.
      if (params_.length_penalty > 0) length = view.max_tokens;
      break;
  }
  const double best = std::ranges::max(running, {}, &BranchView::logprob).logprob;
  return Score(best, length) <= ended.back().score;
}

// Most likely first; of equal ones the earlier hypothesis, then its more likely token.
std::vector<BeamSearchPolicy::Continuation> BeamSearchPolicy::Continuations(
    const SearchView& view, const Group& group, const Taken& taken) const {
  std::vector<Continuation> all;
  const std::vector<BranchView>& running = group.running;
  const int tokens = running.front().tokens;
  // At the prompt all hypotheses are one.
  const size_t sources = tokens == 0 ? 1 : running.size();
  for (size_t i = 0; i < sources; ++i) {
    for (const auto& [token, logprob] : running[i].candidates) {
      if (std::ranges::find(view.banned, token) != view.banned.end()) continue;
      const bool stops = std::ranges::find(view.stop_tokens, token) != view.stop_tokens.end();
      const auto lost = taken.find(token);
      const double penalty =
          lost == taken.end() ? 0 : static_cast<double>(params_.diversity_penalty) * lost->second;
      all.push_back({.source = static_cast<int>(i),
                     .logprob = running[i].logprob + logprob,
                     .value = running[i].logprob + logprob - penalty,
                     .step = {running[i].branch, token, logprob, stops, /*fork=*/false},
                     .ends = stops || tokens + 1 >= view.max_tokens});
    }
  }
  std::ranges::stable_sort(all, std::ranges::greater(), &Continuation::value);
  return all;
}

void BeamSearchPolicy::Advance(const SearchView& view, const Group& group, Taken* taken,
                               SearchDecision* decision) const {
  const auto& [running, ended] = group;
  const size_t width = group_width_;
  const int tokens = running.front().tokens;
  const std::vector<Continuation> all = Continuations(view, group, *taken);
  std::vector<const Continuation*> growing;
  std::vector<const Continuation*> ending;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].ends && growing.size() < width) growing.push_back(&all[i]);
    if (all[i].ends && i < width) ending.push_back(&all[i]);
  }

  // Of old and new ended hypotheses the best `width` stay; of equal ones the older.
  std::vector<double> scores;
  for (const SearchDecision::Kept& old : ended) scores.push_back(old.score);
  for (const Continuation* c : ending) scores.push_back(Score(c->logprob, tokens + 1));
  if (scores.size() > width) {
    std::ranges::nth_element(scores, scores.begin() + static_cast<ptrdiff_t>(width) - 1,
                             std::ranges::greater());
    const double threshold = scores[width - 1];
    size_t room = width;
    for (const SearchDecision::Kept& old : ended) {
      if (old.score >= threshold) {
        --room;
      } else {
        decision->pruned.push_back({old.branch, old.score, threshold});
      }
    }
    std::erase_if(ending,
                  [&](const Continuation* c) { return Score(c->logprob, tokens + 1) < threshold; });
    if (ending.size() > room) ending.resize(room);
  }

  // The best continuation of a hypothesis stays in its branch.
  std::vector<bool> moved(running.size(), false);
  const auto take = [&](const Continuation& c, size_t source) {
    SearchDecision::Step step = c.step;
    step.branch = running[source].branch;
    step.fork = moved[source];
    moved[source] = true;
    decision->steps.push_back(step);
  };
  for (size_t i = 0; i < growing.size(); ++i) {
    take(*growing[i], tokens == 0 ? i : static_cast<size_t>(growing[i]->source));
    ++(*taken)[growing[i]->step.token];
  }
  for (const Continuation* c : ending) take(*c, static_cast<size_t>(c->source));

  const double threshold =
      growing.empty() ? all[std::min(width, all.size()) - 1].logprob : growing.back()->logprob;
  for (size_t i = 0; i < running.size(); ++i) {
    if (moved[i]) continue;
    const double best = running[i].logprob + running[i].candidates.front().second;
    decision->pruned.push_back({running[i].branch, best, threshold});
  }
}

}  // namespace espalier
