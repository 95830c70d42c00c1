// Drafted tokens in a step. A draft is a run of tokens below a branch's pending one, appended to
// its leaf as if they had been chosen: one query each, one sample each. What a branch chooses is a
// function of the logits, its seed and the position, so a drafted token that equals the choice *is*
// the choice, and the output is token for token that of plain decoding, greedy or not. The rest of
// the leaf is cut off again: nothing is copied.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/draft/ngram_drafter.h"
#include "engine/scheduler/scheduler.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

// Texts of other branches that a draft is looked up in.
constexpr int kOtherTexts = 16;

}  // namespace

// After everything else has its rows: drafts take what is left and displace nothing.
void Scheduler::ScheduleDrafts() {
  drafting_.clear();
  if (config_.speculative == Speculative::kOff) return;
  // A step waits for its widest part: with prompts in it, or many branches, drafts cost too much.
  int budget = config_.speculative_rows - static_cast<int>(rows_.size());
  budget = std::min({budget, RowsLeft(), LogitsLeft()});
  if (budget <= 0) return;
  for (const Task& task : tasks_) {
    // A branch that decodes has a row of its own; one that begins shares its prompt's.
    if (task.score_token || rows_[task.row].segment != task.segment) continue;
    if (task.live->slots[task.segment].state != State::kDecoding) continue;
    drafting_.emplace_back(task.live, task.segment);
  }
  for (size_t i = 0; i < drafting_.size() && budget > 0; ++i) {
    const auto& [live, segment] = drafting_[i];
    const int share = (budget + static_cast<int>(drafting_.size() - i) - 1) /
                      static_cast<int>(drafting_.size() - i);
    budget -= Draft(*live, segment, share);
  }
}

// Returns how many tokens it drafted.
int Scheduler::Draft(LiveTree& live, int segment, int max_tokens) {
  Slot& slot = live.slots[segment];
  max_tokens = std::min({max_tokens, slot.draft_limit, live.tree->MaxDraft(segment)});
  if (max_tokens <= 0) return 0;
  const std::vector<int32_t> draft = DraftByNgram(
      live.tree->PathTokens(segment), live.tree->OtherTexts(segment, kOtherTexts), max_tokens);
  slot.draft_task = static_cast<int>(tasks_.size());
  int position = live.tree->path_length(segment);
  for (int32_t token : draft) {
    // A guess is not worth what is cached.
    if (pool_->num_free() == 0) break;
    const std::optional<int64_t> kv_slot = radix_->Append(slot.tail, token);
    if (!kv_slot) break;
    const int row = AddRow(live, segment, position++, token, *kv_slot);
    rows_[row].draft = true;
    AddTask(row, live, segment, std::nullopt);
    tasks_.back().drafted = ++slot.drafted;
  }
  live.tree->usage().drafted_tokens += slot.drafted;
  if (slot.drafted > 0) ++live.tree->usage().verify_steps;
  return slot.drafted;
}

// The branch has just taken `token`, with the outcome `accepted`: takes what follows while the
// draft goes on to agree.
DecodeTree::Accepted Scheduler::AcceptDraft(LiveTree& live, int segment,
                                            DecodeTree::Accepted accepted, int32_t token,
                                            std::span<const Sample> samples,
                                            std::span<const uint8_t> row_bad, absl::Time now) {
  Slot& slot = live.slots[segment];
  int agreed = 0;
  while (agreed < slot.drafted && !accepted.finished) {
    const int task = slot.draft_task + agreed;
    const Row& row = rows_[tasks_[task].row];
    if (row.token != token) break;
    if (row_bad[tasks_[task].row] != 0 || !samples[task].finite) {
      live.failure = absl::InternalError(
          absl::StrCat("the model gave a value that is not finite at position ", row.position));
      break;
    }
    token = samples[task].token;
    accepted = live.tree->Accept(segment, samples[task], now);
    ++agreed;
  }
  const int rejected = slot.drafted - agreed;
  if (rejected > 0) {
    const int own = static_cast<int>(radix_->tokens(slot.tail).size());
    ESPALIER_CHECK(rejected < own);
    radix_->Truncate(slot.tail, own - rejected);
  }
  live.tree->usage().accepted_tokens += agreed;
  slot.draft_limit = rejected > 0 ? agreed + 1 : std::min(2 * slot.draft_limit, kMaxDraft);
  slot.drafted = 0;
  return accepted;
}

}  // namespace espalier
