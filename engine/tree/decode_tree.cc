#include "engine/tree/decode_tree.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace espalier {

DecodeTree::DecodeTree(DecodeTreeInit init) : init_(std::move(init)), banned_(init_.nodes.size()) {
  eos_ = init_.tokenizer->eos();
  for (size_t i = 0; i < init_.nodes.size(); ++i) {
    const std::optional<Generation>& g = init_.nodes[i].generation;
    if (!g || g->min_tokens == 0) continue;
    banned_[i] = g->stop_token_ids;
    if (!g->ignore_eos) banned_[i].insert(banned_[i].end(), eos_.begin(), eos_.end());
  }
}

std::span<const int32_t> DecodeTree::tokens(int index) const {
  const Segment& s = segments_[index];
  if (s.kind == SegmentKind::kBranch) return s.generated;
  return node(s).tokens;
}

std::vector<int32_t> DecodeTree::PathTokens(int index) const {
  std::vector<int32_t> path(path_length(index));
  for (int i = index; i >= 0; i = segments_[i].parent) {
    std::ranges::copy(tokens(i), path.begin() + segments_[i].start);
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
  if (kind != SegmentKind::kBranch) {
    usage_.prompt_tokens += static_cast<int64_t>(init_.nodes[node].tokens.size());
  }
  return num_segments() - 1;
}

int DecodeTree::AddRoot() {
  ESPALIER_CHECK(segments_.empty());
  return AddSegment(SegmentKind::kPrompt, 0, -1);
}

std::vector<int> DecodeTree::AddChildren(int parent) {
  std::vector<int> added;
  for (int child : node(segments_[parent]).children) {
    const bool score = init_.nodes[child].score;
    added.push_back(AddSegment(score ? SegmentKind::kScore : SegmentKind::kPrompt, child, parent));
  }
  return added;
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
  s.sample = sample;
  s.seed = BranchSeed(parent_seed, node_index, sample);
  s.text = std::make_unique<TextStream>(init_.tokenizer, &g.stop, g.include_stop_str_in_output);
  if (HasPenalty(g.sampling)) {
    // Counted once a prompt; the copies share it.
    TokenHistory& of_prompt = segments_[prompt].history;
    if (sample == 0) of_prompt.AddPrompt(PathTokens(prompt));
    s.history = of_prompt;
  }
  return index;
}

DecodeTree::SampleRequest DecodeTree::NextSample(int branch) const {
  const Segment& s = segments_[branch];
  const Generation& g = *node(s).generation;
  const int count = static_cast<int>(s.generated.size());
  return {.params = &g.sampling,
          .history = HasPenalty(g.sampling) ? &s.history : nullptr,
          .banned = count < g.min_tokens ? std::span<const int32_t>(banned_[s.node])
                                         : std::span<const int32_t>(),
          .uniform = BranchUniform(s.seed, count),
          .top_logprobs = g.logprobs.value_or(-1)};
}

int DecodeTree::top_logprobs(int index) const {
  const std::optional<Generation>& g = node(segments_[index]).generation;
  return g ? g->logprobs.value_or(-1) : -1;
}

bool DecodeTree::IsStopToken(const Generation& g, int32_t token) const {
  if (!g.ignore_eos && std::ranges::find(eos_, token) != eos_.end()) return true;
  return std::ranges::find(g.stop_token_ids, token) != g.stop_token_ids.end();
}

DecodeTree::Accepted DecodeTree::Accept(int branch, const Sample& sample, absl::Time now) {
  Segment& s = segments_[branch];
  const Generation& g = *node(s).generation;
  if (!s.started) {
    s.started = true;
    int ancestor = segments_[s.parent].parent;
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
  const bool may_stop = static_cast<int>(s.generated.size()) >= g.min_tokens;
  if (may_stop && IsStopToken(g, sample.token)) {
    const TextStream::Output rest = s.text->Finish();
    Release(s, rest.text, static_cast<int>(s.generated.size()));
    EndBranch(s, FinishReason::kStop, absl::StrCat(sample.token));
    return {.finished = true};
  }
  s.generated.push_back(sample.token);
  s.logprobs.push_back({sample.token, sample.logprob, sample.top});
  if (HasPenalty(g.sampling)) s.history.AddGenerated(sample.token);

  const int count = static_cast<int>(s.generated.size());
  const TextStream::Output out = s.text->Push(sample.token, count >= g.min_tokens);
  if (out.stop_index >= 0) {
    s.generated.resize(out.kept_tokens);
    s.logprobs.resize(out.kept_tokens);
    Release(s, out.text, out.kept_tokens);
    EndBranch(s, FinishReason::kStop, g.stop[out.stop_index]);
    return {.finished = true};
  }
  if (count >= node(s).max_tokens) {
    const TextStream::Output rest = s.text->Finish();
    Release(s, out.text + rest.text, count);
    EndBranch(s, FinishReason::kLength, "");
    return {.finished = true};
  }
  Release(s, out.text, out.tokens_released);
  return {.finished = false};
}

bool DecodeTree::AcceptScore(int score, const Sample& sample) {
  Segment& s = segments_[score];
  s.scores.push_back({sample.token, sample.logprob, sample.top});
  if (s.scores.size() < node(s).tokens.size()) return false;
  int ancestor = s.parent;
  while (ancestor >= 0 && segments_[ancestor].kind != SegmentKind::kBranch) {
    ancestor = segments_[ancestor].parent;
  }
  pending_ends_.push_back(
      NodeScored{.node = s.node,
                 .parent_branch_id = ancestor < 0 ? -1 : segments_[ancestor].branch_id,
                 .logprobs = s.scores});
  s.done = true;
  return true;
}

void DecodeTree::Release(Segment& s, const std::string& text, int released) {
  if (text.empty() && released <= s.sent) return;
  const Generation& g = *node(s).generation;
  BranchTokens& out = pending_tokens_.branches.emplace_back();
  out.branch_id = s.branch_id;
  out.text = text;
  for (; s.sent < released; ++s.sent) {
    out.token_ids.push_back(s.generated[s.sent]);
    if (g.logprobs) out.logprobs.push_back(s.logprobs[s.sent]);
  }
}

void DecodeTree::EndBranch(Segment& s, FinishReason reason, std::string stop_reason) {
  double cumulative = 0;
  for (const TokenLogprob& t : s.logprobs) cumulative += t.logprob;
  s.done = true;
  usage_.completion_tokens += static_cast<int64_t>(s.generated.size());
  pending_ends_.push_back(BranchFinished{.branch_id = s.branch_id,
                                         .reason = reason,
                                         .cumulative_logprob = cumulative,
                                         .completion_tokens = static_cast<int>(s.generated.size()),
                                         .stop_reason = std::move(stop_reason)});
}

void DecodeTree::Started() {
  init_.outbox->Push(TreeStarted{.tree_id = init_.tree_id, .seed = init_.seed});
}

void DecodeTree::Flush() {
  if (!pending_tokens_.branches.empty()) {
    init_.outbox->Push(std::exchange(pending_tokens_, {}));
  }
  for (TreeEvent& event : pending_ends_) init_.outbox->Push(std::move(event));
  pending_ends_.clear();
}

void DecodeTree::Finish(const absl::Status& status, FinishReason reason, absl::Time now) {
  ESPALIER_CHECK(!finished_);
  finished_ = true;
  for (Segment& s : segments_) {
    if (s.kind != SegmentKind::kBranch || !s.started || s.done) continue;
    const TextStream::Output rest = s.text->Finish();
    Release(s, rest.text, static_cast<int>(s.generated.size()));
    EndBranch(s, reason, "");
  }
  Flush();
  usage_.total_ms = absl::ToDoubleMilliseconds(now - init_.submitted);
  init_.outbox->Push(TreeFinished{.status = status, .usage = usage_});
}

}  // namespace espalier
