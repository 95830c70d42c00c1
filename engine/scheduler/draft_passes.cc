// Passes of the draft model before a step. Its KV lies in a cache of its own, in the slots that the
// target's has. The first pass computes what it lacks of the branches' paths, the next go on from
// the tokens that it guessed, a level of every branch's tree at once.
#include <algorithm>

#include "engine/scheduler/scheduler.h"
#include "kernels/core/check.h"

namespace espalier {

bool Scheduler::PassPays(double frontier) const {
  return config_.draft_shape.adaptive ? draft_budget_.PassPays(frontier) : frontier > 0;
}

double Scheduler::MinDraftProbability() const {
  return config_.draft_shape.adaptive ? draft_budget_.MinProbability() : 0;
}

void Scheduler::StartDraftPass() {
  draft_batch_.Clear();
  draft_batch_.step = step_;
  draft_batch_.shape.page_size = config_.page_size;
  draft_batch_.draft_pass = true;
  ++shape_builds_;
  pass_tasks_.clear();
}

// Null: no draft is possible in this step.
const StepBatch* Scheduler::FirstDraftPass() {
  StartDraftPass();
  for (BranchDraft& draft : drafts_) {
    // The last level's tokens are not computed by the draft model.
    const int path_length = draft.live->tree->path_length(draft.segment);
    if (path_length >= config_.draft_max_context) continue;
    draft.max_depth = std::min(draft.max_depth, config_.draft_max_context - path_length + 1);
    draft.growing = AddMissing(draft);
  }
  pass_frontier_ = static_cast<double>(pass_tasks_.size());
  small_pass_ = draft_batch_.num_rows() <= 2 * static_cast<int>(pass_tasks_.size());
  caught_up_ = !small_pass_;
  return draft_batch_.num_rows() > 0 ? &draft_batch_ : nullptr;
}

// Rows for the tokens of a branch's path whose KV the draft model lacks, its pending one the last.
// False: they are too many for one pass.
bool Scheduler::AddMissing(BranchDraft& draft) {
  Slot& slot = draft.live->slots[draft.segment];
  std::vector<NodeId> nodes;
  for (NodeId node = slot.tail; radix_->parent(node).valid(); node = radix_->parent(node)) {
    if (radix_->path_tokens(node) <= slot.draft_filled) break;
    nodes.push_back(node);
  }
  while (!nodes.empty()) {
    const NodeId node = nodes.back();
    nodes.pop_back();
    const std::span<const int32_t> tokens = radix_->tokens(node);
    const int start = NodeStart(node);
    for (int i = std::max(0, slot.draft_filled - start); i < static_cast<int>(tokens.size()); ++i) {
      const int64_t kv_slot = radix_->slot(node, i);
      if (!draft_kv_.Has(kv_slot)) {
        if (draft_batch_.num_rows() == config_.max_batch_tokens) return false;
        AddPassRow(tokens[i], start + i, kv_slot, ShapeNode(node, &draft_batch_), i);
      }
      slot.draft_filled = start + i + 1;
    }
  }
  AddPassTask(static_cast<int>(&draft - drafts_.data()), -1);
  return true;
}

void Scheduler::AddPassRow(int32_t token, int position, int64_t kv_slot, int node, int offset) {
  draft_batch_.shape.AddQuery(node, offset);
  draft_batch_.token_ids.push_back(token);
  draft_batch_.positions.push_back(position);
  draft_batch_.kv_slots.push_back(kv_slot);
  draft_kv_.Add(kv_slot);
}

// Of the last row: it offers what follows this token of a draft.
void Scheduler::AddPassTask(int draft, int token) {
  draft_batch_.tasks.push_back({.logits_row = static_cast<int>(draft_batch_.logits_rows.size()),
                                .num_candidates = drafts_[draft].tree.fanout()});
  draft_batch_.logits_rows.push_back(draft_batch_.num_rows() - 1);
  pass_tasks_.emplace_back(draft, token);
}

const StepBatch* Scheduler::TakeDraft(std::span<const Sample> samples) {
  ESPALIER_CHECK(step_open_);
  ESPALIER_CHECK(samples.size() == pass_tasks_.size());
  double offered = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    if (!samples[i].finite) continue;
    const auto& [draft, token] = pass_tasks_[i];
    candidates_.clear();
    for (const auto& candidate : samples[i].top) {
      // One vocabulary may be padded beyond the other.
      if (candidate.first < config_.draft_vocab_size) candidates_.push_back(candidate);
    }
    offered += drafts_[draft].tree.Offer(token, candidates_);
  }
  if (small_pass_) draft_budget_.ObservePass(draft_pass_ms_, pass_frontier_, offered);
  for (BranchDraft& draft : drafts_) {
    if (draft.growing) draft.num_computed = draft.tree.num_expanded();
  }
  if (const StepBatch* pass = NextDraftPass()) return pass;
  VerifyDrafts();
  return FinishSchedule();
}

// The level that was offered last, as far as another pass over it pays. Null: it does not.
const StepBatch* Scheduler::NextDraftPass() {
  StartDraftPass();
  pass_frontier_ = 0;
  small_pass_ = true;
  int rows = 0;
  const double min_probability = MinDraftProbability();
  for (BranchDraft& draft : drafts_) {
    if (!draft.growing) continue;
    const bool deeper = draft.tree.depth() + 2 <= draft.max_depth;
    const std::span<const int> frontier =
        deeper ? draft.tree.Expand(min_probability) : std::span<const int>();
    const int expanded = draft.tree.num_expanded();
    const int count = static_cast<int>(frontier.size());
    draft.growing = count > 0 && rows + count <= config_.speculative_rows &&
                    ReserveDraftSlots(draft, expanded) == expanded;
    if (!draft.growing) continue;
    rows += count;
    pass_frontier_ += draft.tree.frontier_probability();
  }
  if (rows == 0 || !PassPays(pass_frontier_)) return nullptr;
  for (size_t i = 0; i < drafts_.size(); ++i) {
    BranchDraft& draft = drafts_[i];
    if (!draft.growing) continue;
    draft.pass_nodes.assign(draft.tree.num_expanded(), -1);
    const int path_length = draft.live->tree->path_length(draft.segment);
    for (int token : draft.tree.frontier()) {
      const int position = path_length + draft.tree.depth(token) - 1;
      const int node = PassNode(draft, token);
      AddPassRow(draft.tree.token(token), position, DraftSlot(draft, draft.tree.expanded(token)),
                 node, 0);
      AddPassTask(static_cast<int>(i), token);
    }
  }
  return &draft_batch_;
}

// A drafted token's node in the pass, below those of the tokens before it.
int Scheduler::PassNode(BranchDraft& draft, int token) {
  int& node = draft.pass_nodes[draft.tree.expanded(token)];
  if (node >= 0) return node;
  const int parent = draft.tree.parent(token);
  const int above = parent < 0 ? ShapeNode(draft.live->slots[draft.segment].tail, &draft_batch_)
                               : PassNode(draft, parent);
  const int64_t slot = DraftSlot(draft, draft.tree.expanded(token));
  const auto page = static_cast<int32_t>(slot / config_.page_size);
  node = draft_batch_.shape.AddNode(above, 1, static_cast<int>(slot % config_.page_size),
                                    std::span(&page, 1));
  return node;
}

void Scheduler::VerifyDrafts() {
  const double min_probability = MinDraftProbability();
  const int most = config_.draft_shape.children.empty() ? config_.draft_shape.max_tokens
                                                        : config_.speculative_rows;
  for (size_t i = 0; i < drafts_.size() && draft_rows_left_ > 0; ++i) {
    BranchDraft& draft = drafts_[i];
    const int count = std::min({DraftShare(i), most, draft.tree.num_offered()});
    Verify(draft, draft.tree.Select(ReserveDraftSlots(draft, count), min_probability));
  }
}

void Scheduler::ObserveDraftPassTime(double ms) { draft_pass_ms_ = ms; }

void Scheduler::ObserveStepTime(double verify_ms, double total_ms) {
  // A step that fills prompts says nothing of drafts.
  const bool decodes = batch_.logits_rows.size() == rows_.size();
  if (config_.speculative == Speculative::kOff || !decodes || caught_up_) return;
  draft_step_.verify_ms = verify_ms;
  draft_step_.total_ms = total_ms;
  draft_budget_.ObserveStep(draft_step_);
}

}  // namespace espalier
