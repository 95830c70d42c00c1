// Drafted tokens in a step. They lie behind a branch's pending token in its leaf, as a tree of
// tokens of which each is a query and gives a sample. What a branch chooses is a function of the
// logits, its seed and the position, so a drafted token that equals the choice *is* the choice, and
// the output is token for token that of plain decoding, greedy or not. KV of accepted tokens that
// does not lie right behind the branch is moved there; the rest of the leaf is cut off.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/draft/ngram_drafter.h"
#include "engine/scheduler/scheduler.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

// Texts of other branches that a draft is looked up in.
constexpr int kOtherTexts = 16;

}  // namespace

// After everything else has its rows: drafts take what is left and displace nothing. False: there
// is no room, or nobody to draft for.
bool Scheduler::CollectDrafts() {
  drafts_.clear();
  caught_up_ = false;
  draft_step_.branches = static_cast<int>(rows_.size());
  draft_step_.drafted = false;
  if (config_.speculative == Speculative::kOff) return false;
  // A step waits for its widest part: with prompts in it, or many branches, drafts cost too much.
  draft_rows_left_ = config_.speculative_rows - static_cast<int>(rows_.size());
  draft_rows_left_ = std::min({draft_rows_left_, RowsLeft(), LogitsLeft()});
  if (draft_rows_left_ <= 0) return false;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const Task& task = tasks_[i];
    // A branch that decodes has a row of its own; one that begins shares its prompt's.
    if (task.score_token || rows_[task.row].segment != task.segment) continue;
    const Slot& slot = task.live->slots[task.segment];
    const int max_depth = task.live->tree->MaxDraft(task.segment);
    if (slot.state != State::kDecoding || max_depth <= 0) continue;
    drafts_.push_back({.live = task.live,
                       .segment = task.segment,
                       .max_depth = max_depth,
                       .base = static_cast<int>(radix_->tokens(slot.tail).size()),
                       .task = static_cast<int>(i),
                       .tree = DraftTree(config_.draft_shape)});
  }
  if (drafts_.empty()) return false;
  draft_step_.drafted =
      !config_.draft_shape.adaptive || draft_budget_.ShouldDraft(draft_step_.branches);
  return draft_step_.drafted;
}

// What is left of the rows for the drafts from this one on, dealt out evenly.
int Scheduler::DraftShare(size_t draft) const {
  const int sharers = static_cast<int>(drafts_.size() - draft);
  return (draft_rows_left_ + sharers - 1) / sharers;
}

void Scheduler::DraftByNgrams() {
  for (size_t i = 0; i < drafts_.size() && draft_rows_left_ > 0; ++i) {
    BranchDraft& draft = drafts_[i];
    const DecodeTree& tree = *draft.live->tree;
    const int limit = draft.live->slots[draft.segment].draft_limit;
    std::vector<int32_t> tokens =
        DraftByNgram(tree.PathTokens(draft.segment), tree.OtherTexts(draft.segment, kOtherTexts),
                     std::min({DraftShare(i), draft.max_depth, limit}));
    tokens.resize(ReserveDraftSlots(draft, static_cast<int>(tokens.size())));
    Verify(draft, DraftLayout::Chain(tokens));
  }
}

// Slots behind the branch's own tokens; returns how many there are, `count` if pages last.
int Scheduler::ReserveDraftSlots(BranchDraft& draft, int count) {
  Slot& slot = draft.live->slots[draft.segment];
  // A guess is not worth what is cached.
  while (draft.slots < count && pool_->num_free() > 0) {
    if (!radix_->Append(slot.tail, 0)) break;
    ++draft.slots;
  }
  if (draft.slots == 0) return 0;
  slot.draft = static_cast<int>(&draft - drafts_.data());
  if (static_cast<size_t>(slot.tail.index) >= stamps_.size()) stamps_.resize(slot.tail.index + 1);
  stamps_[slot.tail.index].draft_step = step_;
  stamps_[slot.tail.index].drafted = draft.slots;
  return std::min(draft.slots, count);
}

int64_t Scheduler::DraftSlot(const BranchDraft& draft, int place) const {
  return radix_->slot(draft.live->slots[draft.segment].tail, draft.base + place);
}

// Puts a draft into the step; its slots are reserved.
void Scheduler::Verify(BranchDraft& draft, DraftLayout layout) {
  draft.layout = std::move(layout);
  LiveTree& live = *draft.live;
  const int size = draft.layout.size();
  const int path_length = live.tree->path_length(draft.segment);
  draft.first_task = static_cast<int>(tasks_.size());
  for (int place = 0; place < size; ++place) {
    const int depth = draft.layout.depths[place];
    const int row = AddRow(live, draft.segment, path_length + depth - 1, draft.layout.tokens[place],
                           DraftSlot(draft, place));
    rows_[row].draft = live.slots[draft.segment].draft;
    rows_[row].place = place;
    AddTask(row, live, draft.segment, std::nullopt);
    const int above = draft.layout.parents[place];
    tasks_.back().drafted = depth;
    tasks_.back().above = above < 0 ? draft.task : draft.first_task + above;
  }
  draft_rows_left_ -= size;
  live.tree->usage().drafted_tokens += size;
  if (size > 0) ++live.tree->usage().verify_steps;
}

// The draft's node in the step's forest, below the branch's leaf.
int Scheduler::DraftShapeNode(BranchDraft& draft) {
  if (draft.shape_node >= 0) return draft.shape_node;
  const NodeId tail = draft.live->slots[draft.segment].tail;
  const int above = ShapeNode(tail, &batch_);
  const int first = radix_->first_slot(tail) + draft.base;
  const int first_page = first / config_.page_size;
  const int end_page = (first + draft.layout.size() - 1) / config_.page_size + 1;
  draft.shape_node = batch_.shape.AddDraftNode(
      above, first % config_.page_size,
      radix_->pages(tail).subspan(first_page, end_page - first_page), draft.layout.subtree_end);
  return draft.shape_node;
}

// The branch has just taken `token`, with the outcome `accepted`: takes what follows while the
// draft goes on to agree.
DecodeTree::Accepted Scheduler::AcceptDraft(BranchDraft& draft, DecodeTree::Accepted accepted,
                                            int32_t token, std::span<const Sample> samples,
                                            std::span<const uint8_t> row_bad, absl::Time now) {
  LiveTree& live = *draft.live;
  std::vector<int> places;
  for (int place = 0; place < draft.layout.size() && !accepted.finished; ++place) {
    // Depth first: what follows the last accepted token comes after it.
    const int above = places.empty() ? -1 : places.back();
    if (draft.layout.parents[place] != above || draft.layout.tokens[place] != token) continue;
    const int task = draft.first_task + place;
    const Row& row = rows_[tasks_[task].row];
    if (row_bad[tasks_[task].row] != 0 || !samples[task].finite) {
      live.failure = absl::InternalError(
          absl::StrCat("the model gave a value that is not finite at position ", row.position));
      break;
    }
    token = samples[task].token;
    accepted = live.tree->Accept(draft.segment, samples[task], now);
    places.push_back(place);
    ++draft_step_.tokens;
  }
  const int agreed = static_cast<int>(places.size());
  live.tree->usage().accepted_tokens += agreed;
  Slot& slot = live.slots[draft.segment];
  slot.draft_limit =
      agreed < draft.layout.size() ? agreed + 1 : std::min(2 * slot.draft_limit, kMaxDraft);
  if (config_.speculative == Speculative::kDraft) {
    draft_budget_.ObserveAcceptance(draft.layout.expected, agreed);
  }
  KeepDraft(draft, places);
  return accepted;
}

// Leaves in the leaf what was accepted of a draft, right behind the branch's own tokens.
void Scheduler::KeepDraft(BranchDraft& draft, std::span<const int> places) {
  Slot& slot = draft.live->slots[draft.segment];
  slot.draft = -1;
  for (int i = 0; i < draft.slots; ++i) draft_kv_.Remove(DraftSlot(draft, i));
  std::vector<int32_t> tokens;
  for (int place : places) {
    const int kept = static_cast<int>(tokens.size());
    tokens.push_back(draft.layout.tokens[place]);
    if (place != kept) {
      moves_.from.push_back(DraftSlot(draft, place));
      moves_.to.push_back(DraftSlot(draft, kept));
    }
    const int expanded = draft.layout.expanded[place];
    if (expanded < 0 || expanded >= draft.num_computed) continue;
    draft_kv_.Add(DraftSlot(draft, kept));
    if (expanded == kept) continue;
    draft_moves_.from.push_back(DraftSlot(draft, expanded));
    draft_moves_.to.push_back(DraftSlot(draft, kept));
  }
  radix_->Replace(slot.tail, draft.base, tokens);
  radix_->Truncate(slot.tail, draft.base + static_cast<int>(tokens.size()));
}

}  // namespace espalier
