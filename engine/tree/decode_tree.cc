#include "engine/tree/decode_tree.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace espalier {

DecodeTree::DecodeTree(DecodeTreeInit init)
    : init_(std::move(init)),
      banned_(init_.nodes.size()),
      policies_(init_.nodes.size()),
      stop_tokens_(init_.nodes.size()),
      search_paths_(init_.nodes.size(), 1),
      search_home_(init_.nodes.size(), -1) {
  eos_ = init_.tokenizer->eos();
  for (size_t i = 0; i < init_.nodes.size(); ++i) {
    std::optional<Generation>& g = init_.nodes[i].generation;
    if (!g) continue;
    std::vector<int32_t> stops = g->stop_token_ids;
    if (!g->ignore_eos) stops.insert(stops.end(), eos_.begin(), eos_.end());
    std::ranges::sort(stops);
    stops.erase(std::ranges::unique(stops).begin(), stops.end());
    policies_[i] = MakePolicy(*g, static_cast<int>(stops.size()));
    // Nothing is drawn where the policy chooses.
    if (policies_[i] != nullptr && policies_[i]->num_candidates() > 0) g->sampling.temperature = 0;
    // Text holds no special token, but some tokenizers end with a plain one.
    if (!init_.nodes[i].choices.empty()) g->ignore_eos = true;
    if (g->min_tokens > 0) banned_[i] = stops;
    if (policies_[i] != nullptr) stop_tokens_[i] = std::move(stops);
    if (!IsAcrossPaths(*g)) continue;
    int above = init_.nodes[i].parent;
    while (above >= 0 && !init_.nodes[above].generation) above = init_.nodes[above].parent;
    // The validator saw to it that the one above is across paths as well.
    if (above >= 0) {
      search_paths_[i] = std::get<BestOfN>(init_.nodes[above].generation->search).keep;
    }
  }
}

std::span<const int32_t> DecodeTree::tokens(int index) const {
  const Segment& s = segments_[index];
  if (s.kind == SegmentKind::kBranch) return s.generated;
  return s.judge >= 0 ? node(s).judge[s.judge].tokens : node(s).tokens;
}

std::vector<int32_t> DecodeTree::PathTokens(int index) const {
  std::vector<int32_t> path(path_length(index));
  int end = path_length(index);
  for (int i = index; i >= 0; i = segments_[i].parent) {
    // A branch may have grown since the one below was forked off.
    const int start = segments_[i].start;
    std::ranges::copy(tokens(i).first(end - start), path.begin() + start);
    end = start;
  }
  return path;
}

int DecodeTree::path_length(int index) const {
  return segments_[index].start + static_cast<int>(tokens(index).size());
}

int DecodeTree::AddSegment(SegmentKind kind, int node, int parent) {
  const int start = parent < 0 ? 0 : path_length(parent);
  Segment& s = segments_.emplace_back();
  s.kind = kind;
  s.node = node;
  s.parent = parent;
  s.start = start;
  return num_segments() - 1;
}

void DecodeTree::CountPrompt(int segment) {
  usage_.prompt_tokens += static_cast<int64_t>(tokens(segment).size());
}

int DecodeTree::AddRoot() {
  ESPALIER_CHECK(segments_.empty());
  const int root = AddSegment(SegmentKind::kPrompt, 0, -1);
  CountPrompt(root);
  return root;
}

std::vector<int> DecodeTree::AddChildren(int parent) {
  std::vector<int> added;
  Segment& above = segments_[parent];
  if (NeedsJudgement(above)) {
    above.asked = true;
    above.verdict.assign(node(above).judge.size(), 0);
    for (size_t i = 0; i < node(above).judge.size(); ++i) {
      added.push_back(AddSegment(SegmentKind::kScore, above.node, parent));
      segments_.back().judge = static_cast<int>(i);
    }
  } else {
    for (int child : node(above).children) {
      const bool score = init_.nodes[child].score;
      added.push_back(
          AddSegment(score ? SegmentKind::kScore : SegmentKind::kPrompt, child, parent));
    }
  }
  for (int child : added) CountPrompt(child);
  return added;
}

// Of branches that ended by themselves.
bool DecodeTree::NeedsJudgement(const Segment& s) const {
  return s.kind == SegmentKind::kBranch && s.done && !s.asked && !node(s).judge.empty() &&
         s.end_reason != FinishReason::kPruned;
}

int DecodeTree::num_unscored(int score) const {
  const Segment& s = segments_[score];
  return s.judge >= 0 ? node(s).judge[s.judge].prompt_tokens : 0;
}

int DecodeTree::fanout(int prompt) const {
  const BranchPolicy* policy = PolicyOf(segments_[prompt]);
  return policy != nullptr ? policy->fanout() : node(segments_[prompt]).generation->n;
}

int DecodeTree::AddBranch(int prompt, int sample) {
  const int node_index = segments_[prompt].node;
  const Generation& g = *init_.nodes[node_index].generation;
  uint64_t parent_seed = init_.seed;
  for (int i = prompt; i >= 0; i = segments_[i].parent) {
    if (segments_[i].kind != SegmentKind::kBranch) continue;
    parent_seed = segments_[i].seed;
    break;
  }
  const int index = AddSegment(SegmentKind::kBranch, node_index, prompt);
  Segment& s = segments_[index];
  s.branch_id = num_branches_++;
  s.sample = s.root_sample = sample;
  s.seed = BranchSeed(parent_seed, node_index, sample);
  s.text = std::make_unique<TextStream>(init_.tokenizer, &g.stop, g.include_stop_str_in_output);
  if (HasPenalty(g.sampling)) {
    // Counted once a prompt; the copies share it.
    TokenHistory& of_prompt = segments_[prompt].history;
    if (sample == 0) of_prompt.AddPrompt(PathTokens(prompt));
    s.history = of_prompt;
  }
  if (const TokenConstraint* constraint = init_.nodes[node_index].constraint.get()) {
    s.constraint_state = constraint->initial();
    s.allowed = constraint->Mask(s.constraint_state);
  }
  if (PolicyOf(s) != nullptr) {
    s.search = prompt;
    if (IsAcrossPaths(g)) {
      int& home = search_home_[node_index];
      if (home < 0) home = prompt;
      s.search = home;
    }
    segments_[s.search].undecided.push_back(index);
    ++segments_[s.search].num_started;
  }
  return index;
}

DecodeTree::SampleRequest DecodeTree::NextSample(int branch, int ahead) const {
  const Segment& s = segments_[branch];
  const Generation& g = *node(s).generation;
  const int count = s.search_tokens + ahead;
  const BranchPolicy* policy = PolicyOf(s);
  const int candidates = policy != nullptr ? policy->num_candidates() : 0;
  const std::vector<std::vector<int32_t>>& choices = node(s).choices;
  return {.params = &g.sampling,
          .history = HasPenalty(g.sampling) ? &s.history : nullptr,
          // Where the policy chooses, it is told what it may not.
          .banned = count < g.min_tokens && candidates == 0
                        ? std::span<const int32_t>(banned_[s.node])
                        : std::span<const int32_t>(),
          .allowed = s.allowed != nullptr ? std::span<const uint64_t>(*s.allowed)
                                          : std::span<const uint64_t>(),
          .forced = choices.empty() ? std::nullopt : std::optional(choices[s.sample][count]),
          .uniform = BranchUniform(s.seed, count),
          .top_logprobs = std::max(g.logprobs.value_or(-1), candidates > 0 ? candidates : -1)};
}

int DecodeTree::MaxDraft(int branch) const {
  const Segment& s = segments_[branch];
  const Generation& g = *node(s).generation;
  if (!g.speculative || s.search >= 0 || s.allowed != nullptr || HasPenalty(g.sampling)) return 0;
  return node(s).max_tokens - s.search_tokens - 1;
}

std::vector<std::span<const int32_t>> DecodeTree::OtherTexts(int branch, int count) const {
  std::vector<std::span<const int32_t>> texts;
  for (int i = num_segments() - 1; i >= 0 && static_cast<int>(texts.size()) < count; --i) {
    if (i != branch && segments_[i].kind == SegmentKind::kBranch) {
      texts.push_back(segments_[i].generated);
    }
  }
  return texts;
}

int DecodeTree::top_logprobs(int index) const {
  if (segments_[index].judge >= 0) return -1;
  const std::optional<Generation>& g = node(segments_[index]).generation;
  return g ? g->logprobs.value_or(-1) : -1;
}

bool DecodeTree::IsStopToken(const Generation& g, int32_t token) const {
  if (!g.ignore_eos && std::ranges::find(eos_, token) != eos_.end()) return true;
  return std::ranges::find(g.stop_token_ids, token) != g.stop_token_ids.end();
}

// Tells the client of the branch, the first time.
void DecodeTree::Announce(Segment& s, absl::Time now) {
  if (s.started) return;
  s.started = true;
  int ancestor = s.parent;
  while (ancestor >= 0 && segments_[ancestor].kind != SegmentKind::kBranch) {
    ancestor = segments_[ancestor].parent;
  }
  init_.outbox->Push(
      BranchStarted{.branch_id = s.branch_id,
                    .parent_branch_id = ancestor < 0 ? -1 : segments_[ancestor].branch_id,
                    .node = s.node,
                    .sample = s.sample,
                    .fork_token_index = s.start});
  if (usage_.first_token_ms == 0) {
    usage_.first_token_ms = absl::ToDoubleMilliseconds(now - init_.submitted);
  }
}

DecodeTree::Accepted DecodeTree::Accept(int branch, const Sample& sample, absl::Time now) {
  Segment& s = segments_[branch];
  Announce(s, now);
  if (s.search < 0) return {.finished = TakeToken(s, {sample.token, sample.logprob, sample.top})};
  MarkMoved(s.search);
  if (PolicyOf(s)->num_candidates() > 0) {
    s.candidates = sample.top;
    return {.held = true};
  }
  const bool finished = TakeToken(s, {sample.token, sample.logprob, sample.top});
  // Its judge needs its path first.
  return {.finished = finished, .held = finished && !NeedsJudgement(s)};
}

void DecodeTree::MarkMoved(int search) {
  if (std::ranges::find(moved_searches_, search) == moved_searches_.end()) {
    moved_searches_.push_back(search);
  }
}

// True: the branch has ended.
bool DecodeTree::TakeToken(Segment& s, TokenLogprob token) {
  const Generation& g = *node(s).generation;
  const bool may_stop = s.search_tokens >= g.min_tokens;
  if (may_stop && IsStopToken(g, token.token)) {
    if (TextMayWait(s)) {
      news_.push_back({.branch = &s, .has_end = true});
    } else {
      ReleaseRest(s);
    }
    EndBranch(s, FinishReason::kStop, absl::StrCat(token.token));
    return true;
  }
  s.generated.push_back(token.token);
  if (HasPenalty(g.sampling)) s.history.AddGenerated(token.token);
  s.search_logprob += token.logprob;
  const int count = ++s.search_tokens;
  const bool text_waits = TextMayWait(s);
  TextStream::Output out;
  if (!text_waits) out = s.text->Push(token.token, count >= g.min_tokens);
  s.logprobs.push_back(std::move(token));
  const Outlook outlook = AdvanceConstraint(s);
  if (out.stop_index >= 0) {
    for (size_t i = out.kept_tokens; i < s.logprobs.size(); ++i) {
      s.search_logprob -= s.logprobs[i].logprob;
      --s.search_tokens;
    }
    s.generated.resize(out.kept_tokens);
    s.logprobs.resize(out.kept_tokens);
    Release(s, out.text, out.kept_tokens);
    EndBranch(s, FinishReason::kStop, g.stop[out.stop_index]);
    return true;
  }
  const bool ends = outlook != Outlook::kOpen || count >= node(s).max_tokens;
  if (text_waits) {
    news_.push_back({.branch = &s, .token = s.generated.back(), .has_end = ends});
  } else if (ends) {
    ReleaseRest(s, out.text);
  } else {
    Release(s, out.text, out.tokens_released);
  }
  if (ends) {
    EndBranch(s,
              outlook == Outlook::kComplete ? FinishReason::kStop
              : outlook == Outlook::kStuck  ? FinishReason::kError
                                            : FinishReason::kLength,
              "");
  }
  return ends;
}

// Whether nothing but what the client is told depends on the text.
bool DecodeTree::TextMayWait(const Segment& s) const {
  return s.search < 0 && node(s).generation->stop.empty();
}

DecodeTree::Outlook DecodeTree::AdvanceConstraint(Segment& s) {
  const TreeNode& n = node(s);
  if (!n.choices.empty()) {
    return s.generated.size() < n.choices[s.sample].size() ? Outlook::kOpen : Outlook::kComplete;
  }
  if (n.constraint == nullptr) return Outlook::kOpen;
  s.constraint_state = n.constraint->Advance(s.constraint_state, s.generated.back());
  if (n.constraint->complete(s.constraint_state)) return Outlook::kComplete;
  s.allowed = n.constraint->Mask(s.constraint_state);
  return n.constraint->stuck(s.constraint_state) ? Outlook::kStuck : Outlook::kOpen;
}

bool DecodeTree::AcceptScore(int score, const Sample& sample) {
  Segment& s = segments_[score];
  s.scores.push_back({sample.token, sample.logprob, sample.top});
  if (s.scores.size() + num_unscored(score) < tokens(score).size()) return false;
  s.done = true;
  if (s.judge >= 0) {
    TakeVerdict(s);
    return true;
  }
  int ancestor = s.parent;
  while (ancestor >= 0 && segments_[ancestor].kind != SegmentKind::kBranch) {
    ancestor = segments_[ancestor].parent;
  }
  pending_ends_.push_back(
      NodeScored{.node = s.node,
                 .parent_branch_id = ancestor < 0 ? -1 : segments_[ancestor].branch_id,
                 .logprobs = s.scores});
  return true;
}

// One more of the answers that judge a branch. The last gives the mean of their values.
void DecodeTree::TakeVerdict(const Segment& score) {
  Segment& branch = segments_[score.parent];
  const std::vector<JudgeAnswer>& answers = node(branch).judge;
  for (const TokenLogprob& token : score.scores) branch.verdict[score.judge] += token.logprob;
  if (++branch.num_verdicts < static_cast<int>(answers.size())) return;
  const double best = std::ranges::max(branch.verdict);
  double sum = 0;
  double weight = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const double probability = std::exp(branch.verdict[i] - best);
    sum += probability * answers[i].value;
    weight += probability;
  }
  branch.judgement = sum / weight;
  MarkMoved(branch.search);
}

void DecodeTree::Release(Segment& s, std::string text, int released) {
  if (s.search >= 0) s.sent_text += text;
  news_.push_back({.branch = &s, .text = std::move(text), .released = released});
}

// After `text` what is held back.
void DecodeTree::ReleaseRest(Segment& s, std::string text) {
  text += s.text->Finish().text;
  Release(s, std::move(text), static_cast<int>(s.generated.size()));
}

void DecodeTree::MakeText(News& news) {
  Segment& s = *news.branch;
  if (news.token) {
    TextStream::Output out = s.text->Push(*news.token, /*may_stop=*/true);
    news.text = std::move(out.text);
    news.released = out.tokens_released;
  }
  if (news.has_end) {
    news.text += s.text->Finish().text;
    news.released = static_cast<int>(s.generated.size());
  }
}

// The branch's tokens are final. Its client hears of it at once, or when its search has decided.
void DecodeTree::EndBranch(Segment& s, FinishReason reason, std::string stop_reason) {
  s.done = true;
  s.end_reason = reason;
  s.stop_reason = std::move(stop_reason);
  usage_.completion_tokens += static_cast<int64_t>(s.generated.size());
  if (s.search < 0) return Report(s, reason, std::nullopt, std::nullopt, std::nullopt);
  // Who was cut short has no vote.
  if (reason == FinishReason::kStop || reason == FinishReason::kLength) {
    s.answer = PolicyOf(s)->Answer(s.sent_text);
  }
}

void DecodeTree::Report(const Segment& s, FinishReason reason, std::optional<double> score,
                        std::optional<double> threshold, std::optional<int> rank) {
  double cumulative = 0;
  for (const TokenLogprob& t : s.logprobs) cumulative += t.logprob;
  pending_ends_.push_back(BranchFinished{.branch_id = s.branch_id,
                                         .reason = reason,
                                         .cumulative_logprob = cumulative,
                                         .completion_tokens = static_cast<int>(s.generated.size()),
                                         .stop_reason = s.stop_reason,
                                         .score = score,
                                         .threshold = threshold,
                                         .rank = rank,
                                         .answer = s.answer});
}

void DecodeTree::Started() {
  init_.outbox->Push(TreeStarted{.tree_id = init_.tree_id, .seed = init_.seed});
}

void DecodeTree::Flush() {
  StepTokens step;
  step.branches.reserve(news_.size());
  for (News& news : news_) {
    MakeText(news);
    Segment& s = *news.branch;
    if (news.text.empty() && news.released <= s.sent) continue;
    const Generation& g = *node(s).generation;
    BranchTokens& out = step.branches.emplace_back();
    out.branch_id = s.branch_id;
    out.text = std::move(news.text);
    for (; s.sent < news.released; ++s.sent) {
      out.token_ids.push_back(s.generated[s.sent]);
      if (g.logprobs) out.logprobs.push_back(s.logprobs[s.sent]);
    }
  }
  news_.clear();
  if (!step.branches.empty()) init_.outbox->Push(std::move(step));
  for (TreeEvent& event : pending_ends_) init_.outbox->Push(std::move(event));
  pending_ends_.clear();
}

bool DecodeTree::outbox_full() const {
  return init_.outbox->full(pending_ends_.size() + (news_.empty() ? 0 : 1));
}

void DecodeTree::Finish(const absl::Status& status, FinishReason reason, absl::Time now) {
  ESPALIER_CHECK(!finished_);
  finished_ = true;
  Flush();  // of the step before
  for (Segment& s : segments_) {
    if (s.kind != SegmentKind::kBranch || !s.started || s.done) continue;
    ReleaseRest(s);
    EndBranch(s, reason, "");
  }
  for (const Segment& prompt : segments_) {
    for (int branch : prompt.undecided) {
      const Segment& s = segments_[branch];
      if (s.started) Report(s, reason, std::nullopt, std::nullopt, std::nullopt);
    }
  }
  Flush();
  usage_.total_ms = absl::ToDoubleMilliseconds(now - init_.submitted);
  init_.outbox->Push(TreeFinished{.status = status, .usage = usage_});
}

}  // namespace espalier
