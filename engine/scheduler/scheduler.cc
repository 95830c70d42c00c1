#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <ranges>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

// Filler ids only mark a node as being filled: whoever is visited first fills it.
constexpr uint64_t kFiller = 1;

void AddUsage(const Usage& from, Usage* to) {
  to->prompt_tokens += from.prompt_tokens;
  to->cached_tokens += from.cached_tokens;
  to->computed_tokens += from.computed_tokens;
  to->completion_tokens += from.completion_tokens;
  to->kv_tokens_read_unique += from.kv_tokens_read_unique;
  to->kv_tokens_read_logical += from.kv_tokens_read_logical;
  to->steps += from.steps;
  to->preemptions += from.preemptions;
  to->drafted_tokens += from.drafted_tokens;
  to->accepted_tokens += from.accepted_tokens;
  to->verify_steps += from.verify_steps;
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config, PagePool* pool, RadixTree* radix)
    : config_(config),
      pool_(pool),
      radix_(radix),
      pins_(radix),
      draft_kv_(pool->num_pages(), config.page_size) {
  ESPALIER_CHECK(config_.max_batch_tokens > 0);
  ESPALIER_CHECK(config_.max_logits_rows > 0);
  ESPALIER_CHECK(config_.max_live_branches > 0);
}

Scheduler::~Scheduler() = default;

std::string Scheduler::CacheNamespace(std::string_view salt) {
  return std::string("salt:").append(salt);
}

void Scheduler::Submit(std::unique_ptr<DecodeTree> tree) {
  auto live = std::make_unique<LiveTree>();
  live->arrival = arrivals_++;
  live->name_space = config_.sharing == Sharing::kCache ? CacheNamespace(tree->cache_salt())
                                                        : absl::StrCat("tree:", live->arrival);
  live->tree = std::move(tree);
  live->tree->Started();
  NewSlot(*live, live->tree->AddRoot());
  const auto place = std::ranges::find_if(
      trees_, [&](const auto& other) { return other->tree->priority() < live->tree->priority(); });
  trees_.insert(place, std::move(live));
}

bool Scheduler::Cancel(std::string_view tree_id, absl::Time now) {
  ESPALIER_CHECK(!step_open_);
  const auto found =
      std::ranges::find_if(trees_, [&](const auto& live) { return live->tree->id() == tree_id; });
  if (found == trees_.end()) return false;
  FinishTree(**found, absl::CancelledError("cancelled by the client"), FinishReason::kCancelled,
             now);
  RemoveFinished(now);
  return true;
}

void Scheduler::CancelAll(const absl::Status& status, absl::Time now) {
  ESPALIER_CHECK(!step_open_);
  for (auto& live : trees_) {
    FinishTree(*live, status,
               absl::IsCancelled(status) ? FinishReason::kCancelled : FinishReason::kError, now);
  }
  RemoveFinished(now);
}

const StepBatch* Scheduler::Schedule(absl::Time now) {
  ESPALIER_CHECK(!step_open_);
  EndOverdue(now);
  ++step_;
  rows_.clear();
  tasks_.clear();
  logits_used_ = 0;
  admission_closed_ = false;
  for (auto& live : trees_) live->rows.clear();
  do {
    retry_ = false;
    VisitTrees();
  } while (rows_.empty() && retry_);
  if (rows_.empty()) {
    RemoveFinished(now);
    return nullptr;
  }
  for (auto& live : trees_) {
    if (live->rows.empty() || live->running) continue;
    live->running = true;
    live->tree->usage().queue_ms = absl::ToDoubleMilliseconds(now - live->tree->submitted());
  }
  pool_->StepSubmitted(step_);
  step_open_ = true;
  if (CollectDrafts()) {
    if (config_.speculative == Speculative::kNgram) {
      DraftByNgrams();
    } else if (const StepBatch* pass = FirstDraftPass()) {
      return pass;
    }
  }
  return FinishSchedule();
}

const StepBatch* Scheduler::FinishSchedule() {
  BuildBatch();
  return &batch_;
}

void Scheduler::Commit(std::span<const Sample> samples, std::span<const uint8_t> row_bad,
                       absl::Time now) {
  ESPALIER_CHECK(step_open_);
  ++stats_.steps;
  ESPALIER_CHECK(samples.size() == tasks_.size());
  ESPALIER_CHECK(row_bad.size() == rows_.size());
  step_open_ = false;
  pool_->StepDone(step_);
  moves_ = {};
  draft_moves_ = {};
  draft_step_.rows = static_cast<int>(rows_.size());
  draft_step_.tokens = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (row_bad[i] == 0 || rows_[i].draft >= 0) continue;  // nobody may ever look at a draft's row
    rows_[i].live->failure = absl::InternalError(
        absl::StrCat("the model gave a value that is not finite at position ", rows_[i].position));
  }
  for (size_t i = 0; i < tasks_.size(); ++i) {
    if (tasks_[i].drafted > 0) continue;  // taken with the branch's pending token
    LiveTree& live = *tasks_[i].live;
    if (!samples[i].finite) {
      live.failure = absl::InternalError(
          absl::StrCat("no token can be drawn at position ", rows_[tasks_[i].row].position,
                       ": every logit is masked or the row is not finite"));
    }
    if (!live.failure.ok()) continue;
    const int segment = tasks_[i].segment;
    if (tasks_[i].score_token) {
      if (!live.tree->AcceptScore(segment, samples[i])) continue;
      Release(live, segment);
      live.slots[segment].state = State::kEnded;
      continue;
    }
    CommitBranch(i, samples, row_bad, now);
  }
  for (auto& live : trees_) {
    if (live->rows.empty()) continue;
    ++live->tree->usage().steps;
    if (live->failure.ok()) DecideSearches(*live);
  }
  RemoveFinished(now);
}

void Scheduler::CommitBranch(size_t task, std::span<const Sample> samples,
                             std::span<const uint8_t> row_bad, absl::Time now) {
  LiveTree& live = *tasks_[task].live;
  const int segment = tasks_[task].segment;
  DecodeTree::Accepted accepted = live.tree->Accept(segment, samples[task], now);
  ++draft_step_.tokens;
  if (const int draft = live.slots[segment].draft; draft >= 0) {
    accepted = AcceptDraft(drafts_[draft], accepted, samples[task].token, samples, row_bad, now);
  }
  if (accepted.held && accepted.finished) {
    Drop(live, segment);  // children of what the search keeps find its path in the cache
  } else if (accepted.held) {
    live.slots[segment].state = State::kHeld;
  } else if (accepted.finished) {
    BranchEnded(live, segment);
  }
}

std::optional<absl::Time> Scheduler::NextDeadline() const {
  std::optional<absl::Time> next;
  const auto consider = [&](absl::Time time) {
    if (!next || time < *next) next = time;
  };
  for (const auto& live : trees_) {
    if (live->tree->deadline()) consider(*live->tree->deadline());
    if (live->stalled_since) consider(*live->stalled_since + config_.stall_timeout);
  }
  return next;
}

bool Scheduler::Contains(std::string_view tree_id) const {
  return std::ranges::any_of(trees_, [&](const auto& live) { return live->tree->id() == tree_id; });
}

SchedulerStats Scheduler::Stats() const {
  SchedulerStats stats = stats_;
  for (const auto& live : trees_) ++(live->running ? stats.trees_running : stats.trees_waiting);
  stats.branches_live = live_branches_;
  return stats;
}

void Scheduler::Abandon(const absl::Status& status, absl::Time now) {
  ESPALIER_CHECK(step_open_);
  step_open_ = false;
  pool_->StepDone(step_);
  std::set<std::string> touched;
  for (const auto& live : trees_) touched.insert(live->name_space);
  CancelAll(status, now);
  // What the step should have stored must not be found by anybody.
  for (const std::string& name_space : touched) radix_->DropNamespace(name_space);
  draft_kv_.Clear();
  moves_ = {};
  draft_moves_ = {};
}

void Scheduler::Emit() {
  for (auto& live : trees_) {
    live->tree->Flush();
    live->tree->outbox().Deliver();
  }
  for (auto& live : ended_) live->tree->outbox().Deliver();
  ended_.clear();
}

void Scheduler::EndOverdue(absl::Time now) {
  for (auto& live : trees_) {
    const DecodeTree& tree = *live->tree;
    if (!tree.outbox_full()) {
      live->stalled_since.reset();
    } else if (!live->stalled_since) {
      live->stalled_since = now;
    }
    if (tree.deadline() && now >= *tree.deadline()) {
      FinishTree(*live, absl::DeadlineExceededError("the request's deadline is over"),
                 FinishReason::kDeadline, now);
    } else if (live->stalled_since && now - *live->stalled_since >= config_.stall_timeout) {
      FinishTree(*live,
                 absl::ResourceExhaustedError(
                     absl::StrCat("the client has not read its events for ",
                                  absl::FormatDuration(config_.stall_timeout), " (stall_timeout)")),
                 FinishReason::kError, now);
    }
  }
  RemoveFinished(now);
}

// Within a priority, branches decode before prompts are filled: a new request must not stall the
// running ones.
void Scheduler::VisitTrees() {
  for (size_t begin = 0; begin < trees_.size();) {
    size_t end = begin;
    while (end < trees_.size() &&
           trees_[end]->tree->priority() == trees_[begin]->tree->priority()) {
      ++end;
    }
    ScheduleDecoding(begin, end);
    for (size_t i = begin; i < end; ++i) ScheduleFilling(*trees_[i]);
    begin = end;
  }
}

void Scheduler::ScheduleDecoding(size_t begin, size_t end) {
  decoding_.clear();
  for (size_t i = begin; i < end; ++i) {
    LiveTree& live = *trees_[i];
    if (live.tree->outbox_full()) continue;
    for (int segment : live.active) {
      const State state = live.slots[segment].state;
      if (state == State::kDecoding || state == State::kFinalizing) {
        decoding_.emplace_back(&live, segment);
      }
    }
  }
  // More branches than a step serves take turns.
  if (static_cast<int>(decoding_.size()) > std::min(RowsLeft(), LogitsLeft())) {
    std::ranges::stable_sort(
        decoding_, {}, [](const auto& entry) { return entry.first->slots[entry.second].step; });
  }
  for (const auto& [live, segment] : decoding_) {
    const State state = live->slots[segment].state;  // an earlier one may have preempted it
    if (state == State::kDecoding || state == State::kFinalizing) DecodeRow(*live, segment);
  }
}

void Scheduler::DecodeRow(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  const bool finalizing = slot.state == State::kFinalizing;
  if (RowsLeft() == 0 || (!finalizing && LogitsLeft() == 0)) return;
  const int position = live.tree->path_length(segment) - 1;
  ESPALIER_CHECK(radix_->path_tokens(slot.tail) == position);
  // A branch that computes its path anew before its first token starts from the prompt's last.
  int owner = segment;
  while (live.tree->tokens(owner).empty()) owner = live.tree->segment(owner).parent;
  const int32_t token = live.tree->tokens(owner).back();

  std::optional<int64_t> kv_slot = radix_->Append(slot.tail, token);
  while (!kv_slot) {
    if (!MakeRoom(live, segment)) return;
    kv_slot = radix_->Append(slot.tail, token);
  }
  const int row = AddRow(live, segment, position, token, *kv_slot);
  if (finalizing) {
    radix_->Publish(slot.tail);
    slot.state = State::kEnded;
    AddChildren(live, segment);
  } else {
    AddTask(row, live, segment, std::nullopt);
  }
}

void Scheduler::ScheduleFilling(LiveTree& live) {
  if (!live.failure.ok() || live.tree->outbox_full()) return;
  // By index: visiting a prompt may add its children, which are then visited too.
  for (size_t i = 0; i < live.active.size() && RowsLeft() > 0; ++i) {
    VisitFilling(live, live.active[i]);
  }
}

void Scheduler::VisitFilling(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  if (slot.state == State::kQueued && !Admit(live, segment)) return;
  if (slot.state == State::kFilling) Fill(live, segment);
  if (slot.state == State::kReady && live.tree->segment(segment).kind == SegmentKind::kPrompt) {
    StartBranches(live, segment);
  }
}

// Whether a segment may start that wants KV for so many tokens. Trees of lower priority and those
// whose clients do not read make room; others run on, and the segment waits for them.
bool Scheduler::HasRoomFor(const LiveTree& live, int64_t tokens) {
  const int64_t pages = tokens / config_.page_size + 2;
  // With nothing else in the step the segment must start: whoever ranks lower makes room for it.
  while (!rows_.empty()) {
    const int64_t available = pool_->num_free() + radix_->num_cached_pages();
    // Every live branch may want a page soon; admitting into that would only preempt it again.
    if (pages + live_branches_ <= available) return true;
    if (pins_.ReleaseOne()) continue;
    if (!PreemptInferior(live)) return false;
  }
  return true;
}

// Whether a branch more may live.
bool Scheduler::HasRoomForBranch(const LiveTree& live) {
  while (live_branches_ >= config_.max_live_branches) {
    if (!PreemptInferior(live) && !PreemptHeld()) return false;
  }
  return true;
}

// A held branch may wait for the very one that wants to live, and loses nothing but its place.
bool Scheduler::PreemptHeld() {
  for (auto& live : trees_ | std::views::reverse) {
    for (int segment : live->active | std::views::reverse) {
      const Slot& slot = live->slots[segment];
      if (slot.state != State::kHeld || !slot.locked) continue;
      Preempt(*live, segment);
      return true;
    }
  }
  return false;
}

bool Scheduler::Admit(LiveTree& live, int segment) {
  if (admission_closed_) return false;
  Slot& slot = live.slots[segment];
  const SegmentKind kind = live.tree->segment(segment).kind;
  if (config_.sharing == Sharing::kNone && kind == SegmentKind::kPrompt) {
    ExpandUnshared(live, segment);
    return false;
  }
  if (kind == SegmentKind::kBranch && !HasRoomForBranch(live)) return false;
  if (kind == SegmentKind::kScore && LogitsLeft() == 0) return false;
  const bool admitted = Unshared(slot) || kind == SegmentKind::kScore ? AdmitPrivate(live, segment)
                                                                      : AdmitShared(live, segment);
  if (!admitted) {
    // Nobody of lower rank may take the pages that this segment waits for.
    admission_closed_ = true;
    return false;
  }
  slot.state = State::kFilling;
  if (slot.admitted) return true;
  slot.admitted = true;
  const int parent = live.tree->segment(segment).parent;
  if (parent < 0 || kind == SegmentKind::kBranch) return true;
  --live.slots[parent].waiting_children;
  return true;
}

// Not below a branch that goes on after others were forked off.
bool Scheduler::ParentPathHeld(const LiveTree& live, const Segment& s) const {
  if (s.parent < 0 || !live.slots[s.parent].locked) return false;
  const Segment& parent = live.tree->segment(s.parent);
  return parent.kind != SegmentKind::kBranch || parent.done;
}

// A private path: where sharing is off, for continuations that are only scored, and as the last
// resort of a path that does not fit otherwise.
bool Scheduler::AdmitPrivate(LiveTree& live, int segment) {
  const DecodeTree& tree = *live.tree;
  const Segment& s = tree.segment(segment);
  const bool below_parent = !Unshared(live.slots[segment]) && ParentPathHeld(live, s);
  NodeId from;
  std::vector<int32_t> wanted;
  if (below_parent) {
    from = live.slots[s.parent].tail;
    wanted.assign(tree.tokens(segment).begin(), tree.tokens(segment).end());
  } else {
    from = radix_->Root(live.name_space);
    wanted = tree.PathTokens(segment);
  }
  // A branch's last token is decoded, not filled; nothing follows a scored token.
  if (s.kind != SegmentKind::kPrompt) wanted.pop_back();
  if (!HasRoomFor(live, static_cast<int64_t>(wanted.size()))) return false;
  if (below_parent && tree.num_unscored(segment) == 0) {
    // The first token is scored by the logits of the last one before it, whose KV exists.
    const int row = LogitsRowAt(live, segment, from, s.start - 1);
    if (row < 0) return false;
    AddTask(row, live, segment, tree.tokens(segment).front());
  }
  Hold(
      live, segment,
      wanted.empty() ? radix_->NewPrivate(from) : radix_->NewPrivateFilling(from, wanted, kFiller));
  return true;
}

bool Scheduler::AdmitShared(LiveTree& live, int segment) {
  const DecodeTree& tree = *live.tree;
  const Segment& s = tree.segment(segment);
  const bool below_parent = ParentPathHeld(live, s) && !tree.tokens(segment).empty();
  NodeId from;
  std::vector<int32_t> wanted;
  if (below_parent) {
    from = live.slots[s.parent].tail;
    wanted.assign(tree.tokens(segment).begin(), tree.tokens(segment).end());
  } else {
    from = radix_->Root(live.name_space);
    wanted = tree.PathTokens(segment);
  }
  if (s.kind == SegmentKind::kBranch) wanted.pop_back();

  RadixTree::MatchResult match = radix_->Match(from, wanted);
  radix_->Lock(match.node);
  if (!HasRoomFor(live, static_cast<int64_t>(wanted.size()) - match.matched)) {
    radix_->Unlock(match.node);
    return false;
  }
  // What was preempted to make room may have entered the index below the match.
  const RadixTree::MatchResult more =
      radix_->Match(match.node, std::span(wanted).subspan(match.matched));
  radix_->Lock(more.node);
  radix_->Unlock(match.node);
  match = {more.node, match.matched + more.matched};
  const std::span<const int32_t> rest = std::span(wanted).subspan(match.matched);
  if (s.kind == SegmentKind::kPrompt && !live.slots[segment].admitted) {
    const int before = below_parent ? 0 : s.start;
    live.tree->usage().cached_tokens += std::max(0, match.matched - before);
  }
  if (rest.empty()) {
    Hold(live, segment, match.node);
  } else {
    Hold(live, segment, radix_->InsertFilling(match.node, rest, kFiller));
    radix_->Unlock(match.node);
  }
  return true;
}

void Scheduler::Fill(LiveTree& live, int segment) {
  while (live.slots[segment].state == State::kFilling) {
    if (!radix_->FirstUnfilled(live.slots[segment].tail)) {
      CompleteFill(live, segment);
      return;
    }
    if (!FillSome(live, segment)) return;
  }
}

// Adds rows for the next tokens without KV; false when nothing more can be done in this step.
bool Scheduler::FillSome(LiveTree& live, int segment) {
  const Segment& s = live.tree->segment(segment);
  const NodeId tail = live.slots[segment].tail;
  const RadixTree::Unfilled unfilled = *radix_->FirstUnfilled(tail);
  const int position = NodeStart(unfilled.node) + unfilled.offset;
  int count = std::min(RowsLeft(), unfilled.remaining);
  // A score segment wants the logits of every row from the one before its first token.
  const bool scores = s.kind == SegmentKind::kScore;
  const int first_scored = scores ? s.start + live.tree->num_unscored(segment) - 1 : INT32_MAX;
  if (scores) {
    count = std::min(count, std::max(0, first_scored - position) + LogitsLeft());
  }
  if (count <= 0) return false;

  fill_slots_.clear();
  const int filled = radix_->Fill(unfilled.node, count, &fill_slots_);
  const std::span<const int32_t> tokens = radix_->tokens(unfilled.node);
  for (int i = 0; i < filled; ++i) {
    const int row =
        AddRow(live, segment, position + i, tokens[unfilled.offset + i], fill_slots_[i]);
    if (position + i < first_scored) continue;
    AddTask(row, live, segment, live.tree->tokens(segment)[position + i + 1 - s.start]);
  }
  return filled > 0 || MakeRoom(live, segment);
}

void Scheduler::CompleteFill(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  switch (live.tree->segment(segment).kind) {
    case SegmentKind::kPrompt:
      if (live.tree->node(live.tree->segment(segment)).generation) {
        slot.state = State::kReady;
        return;
      }
      slot.state = State::kEnded;
      AddChildren(live, segment);
      return;
    case SegmentKind::kBranch: {
      // A private path is continued where it ends; one that others may read, on a page of its own.
      if (!Unshared(slot)) {
        const NodeId leaf = radix_->NewPrivate(slot.tail);
        Release(live, segment);
        Hold(live, segment, leaf);
      }
      slot.state = State::kDecoding;
      DecodeRow(live, segment);
      return;
    }
    case SegmentKind::kScore:
      slot.state = State::kReady;
      return;
  }
}

void Scheduler::StartBranches(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  const int n = live.tree->fanout(segment);
  const int position = live.tree->path_length(segment) - 1;
  while (slot.next_sample < n && HasRoomForBranch(live)) {
    const int row = LogitsRowAt(live, segment, slot.tail, position);
    if (row < 0) return;
    const int branch = live.tree->AddBranch(segment, slot.next_sample++);
    Slot& branch_slot = NewSlot(live, branch);
    Hold(live, branch, radix_->NewPrivate(slot.tail));
    branch_slot.state = State::kDecoding;
    branch_slot.admitted = true;
    branch_slot.step = step_;
    AddTask(row, live, branch, std::nullopt);
  }
  if (slot.next_sample == n) slot.state = State::kEnded;
}

// Without sharing a prompt has no KV of its own: each branch computes its whole path.
void Scheduler::ExpandUnshared(LiveTree& live, int segment) {
  live.slots[segment].state = State::kEnded;
  const std::optional<Generation>& generation =
      live.tree->node(live.tree->segment(segment)).generation;
  if (!generation) {
    AddChildren(live, segment);
    return;
  }
  for (int sample = 0; sample < live.tree->fanout(segment); ++sample) {
    NewSlot(live, live.tree->AddBranch(segment, sample));
  }
}

void Scheduler::BranchEnded(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  slot.state = State::kEnded;
  if (!live.tree->has_children(segment)) {
    Release(live, segment);
    return;
  }
  const int length = live.tree->path_length(segment);
  const int surplus = radix_->path_tokens(slot.tail) - length;
  const int own = static_cast<int>(radix_->tokens(slot.tail).size());
  if (config_.sharing == Sharing::kNone || surplus > own) {
    Release(live, segment);
  } else if (surplus == own) {
    // Nothing is left of the branch's own node: its children continue from the node above.
    const NodeId above = radix_->parent(slot.tail);
    radix_->Lock(above);
    Release(live, segment);
    Hold(live, segment, above);
  } else if (surplus >= 0) {
    if (surplus > 0) radix_->Truncate(slot.tail, own - surplus);
    radix_->Publish(slot.tail);
  } else {
    slot.state = State::kFinalizing;
    return;
  }
  AddChildren(live, segment);
}

// Gives up what a branch holds that needs it no longer.
void Scheduler::Drop(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  if (slot.locked) Release(live, segment);
  slot.state = State::kEnded;
}

void Scheduler::DecideSearches(LiveTree& live) {
  const std::vector<SearchOutcome> outcomes = live.tree->DecideSearches();
  for (const SearchOutcome& outcome : outcomes) {
    for (const SearchOutcome::Fork& fork : outcome.forks) Fork(live, fork.branch, fork.source);
  }
  for (const SearchOutcome& outcome : outcomes) {
    for (int branch : outcome.grown) {
      const bool forked = std::ranges::any_of(outcome.forks, [&](const SearchOutcome::Fork& fork) {
        return fork.source == branch && live.slots[fork.branch].locked;
      });
      GrowOn(live, branch, forked);
    }
    for (int branch : outcome.dropped) Drop(live, branch);
    for (int branch : outcome.kept) AddChildren(live, branch);
  }
}

// Nothing is copied: both go on in leaves of their own below what they share. A fork that finds no
// such place computes its path when it is admitted.
void Scheduler::Fork(LiveTree& live, int branch, int source) {
  Slot& slot = NewSlot(live, branch);
  slot.admitted = true;
  if (live.tree->segment(branch).done) {
    slot.state = State::kEnded;
    return;
  }
  const Slot& from = live.slots[source];
  if (!from.locked || Unshared(from) || live_branches_ >= config_.max_live_branches) return;
  radix_->Publish(from.tail);
  Hold(live, branch, radix_->NewPrivate(from.tail));
  slot.state = State::kDecoding;
}

// A held branch has its next token.
void Scheduler::GrowOn(LiveTree& live, int branch, bool forked) {
  Slot& slot = live.slots[branch];
  slot.state = slot.locked ? State::kDecoding : State::kQueued;
  if (!slot.locked || !forked || Unshared(slot)) return;
  const NodeId leaf = radix_->NewPrivate(slot.tail);
  Release(live, branch);
  Hold(live, branch, leaf);
}

void Scheduler::AddChildren(LiveTree& live, int segment) {
  const std::vector<int> children = live.tree->AddChildren(segment);
  for (int child : children) NewSlot(live, child);
  live.slots[segment].waiting_children = static_cast<int>(children.size());
}

int Scheduler::AddRow(LiveTree& live, int segment, int position, int32_t token, int64_t kv_slot) {
  const int row = static_cast<int>(rows_.size());
  rows_.push_back({&live, segment, live.slots[segment].tail, position, token, kv_slot});
  if (kv_slot >= 0) draft_kv_.Remove(kv_slot);
  live.rows.push_back(row);
  live.slots[segment].step = step_;
  return row;
}

// A row that gives logits at a token of `tail`'s path: the one that computes it in this step, or
// one that queries it again. -1: the step has no room.
int Scheduler::LogitsRowAt(LiveTree& live, int segment, NodeId tail, int position) {
  for (int row : live.rows | std::views::reverse) {
    if (rows_[row].position != position || !(rows_[row].tail == tail)) continue;
    if (!rows_[row].logits && LogitsLeft() == 0) return -1;
    live.slots[segment].step = step_;
    return row;
  }
  if (RowsLeft() == 0 || LogitsLeft() == 0) return -1;
  const NodeId node = NodeAt(tail, position);
  const int32_t token = radix_->tokens(node)[position - NodeStart(node)];
  const int row = AddRow(live, segment, position, token, -1);
  rows_[row].tail = tail;
  return row;
}

void Scheduler::AddTask(int row, LiveTree& live, int segment, std::optional<int32_t> score_token) {
  if (!rows_[row].logits) {
    rows_[row].logits = true;
    ++logits_used_;
  }
  tasks_.push_back({row, &live, segment, score_token});
}

// Called when the segment needs a page and none can be had by eviction. True: try again.
bool Scheduler::MakeRoom(LiveTree& live, int segment) {
  if (PreemptFor(live, segment)) return true;
  if (!rows_.empty()) return false;
  Slot& slot = live.slots[segment];
  if (!slot.compact) {
    // Its path may lie scattered over pages that others began. Alone it takes the fewest.
    slot.compact = true;
    Preempt(live, segment);
    retry_ = true;
  } else if (holders_ == 1) {
    live.failure = absl::ResourceExhaustedError(
        absl::StrCat("a path of ", live.tree->path_length(segment), " tokens does not fit in ",
                     pool_->num_pages(), " KV pages of ", config_.page_size, " tokens"));
  }
  return false;
}

// Preempts in a tree whose client does not read, or else in one of lower priority.
bool Scheduler::PreemptInferior(const LiveTree& live) {
  for (auto& other : trees_ | std::views::reverse) {
    if (other.get() != &live && other->tree->outbox_full() && PreemptIn(*other, -1)) return true;
  }
  for (auto& other : trees_ | std::views::reverse) {
    if (other->tree->priority() >= live.tree->priority()) return false;
    if (PreemptIn(*other, -1)) return true;
  }
  return false;
}

bool Scheduler::PreemptFor(const LiveTree& live, int segment) {
  if (pins_.ReleaseOne()) return true;
  if (PreemptInferior(live)) return true;
  for (auto it = trees_.rbegin(); it != trees_.rend(); ++it) {
    if (it->get() == &live) return PreemptIn(**it, segment);
    if (PreemptIn(**it, -1)) return true;
  }
  return false;
}

// Takes the path of the tree's newest segment that has no row in this step, if there is one above
// `above_segment`; a path held only for children or for a search's decision may go whatever its
// age.
bool Scheduler::PreemptIn(LiveTree& victim, int above_segment) {
  for (auto it = victim.active.rbegin(); it != victim.active.rend(); ++it) {
    const Slot& slot = victim.slots[*it];
    if (!slot.locked || slot.step == step_ || *it == above_segment) continue;
    const bool waits = slot.state == State::kEnded || slot.state == State::kHeld;
    if (*it < above_segment && !waits) continue;
    Preempt(victim, *it);
    return true;
  }
  return false;
}

void Scheduler::Preempt(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  Release(live, segment);
  switch (slot.state) {
    case State::kFilling:
    case State::kReady:
    case State::kDecoding:
      if (live.tree->segment(segment).kind == SegmentKind::kScore) {
        live.tree->RestartScore(segment);
      }
      slot.state = State::kQueued;
      break;
    case State::kFinalizing:
      // Its children compute the whole path themselves.
      slot.state = State::kEnded;
      AddChildren(live, segment);
      break;
    case State::kEnded:
      return;
    case State::kHeld:
      break;
    case State::kQueued:
      ESPALIER_CHECK(false && "a queued segment holds nothing");
  }
  ++stats_.preemptions;
  ++live.tree->usage().preemptions;
}

Scheduler::Slot& Scheduler::NewSlot(LiveTree& live, int segment) {
  ESPALIER_CHECK(segment == static_cast<int>(live.slots.size()));
  live.active.push_back(segment);
  return live.slots.emplace_back();
}

void Scheduler::Hold(LiveTree& live, int segment, NodeId locked_tail) {
  Slot& slot = live.slots[segment];
  ESPALIER_CHECK(!slot.locked);
  slot.tail = locked_tail;
  slot.locked = true;
  slot.draft_filled = 0;
  ++holders_;
  if (live.tree->segment(segment).kind == SegmentKind::kBranch) ++live_branches_;
}

void Scheduler::Release(LiveTree& live, int segment) {
  Slot& slot = live.slots[segment];
  ESPALIER_CHECK(slot.locked);
  radix_->Unlock(slot.tail);
  slot.locked = false;
  slot.tail = NodeId();
  --holders_;
  if (live.tree->segment(segment).kind == SegmentKind::kBranch) --live_branches_;
}

void Scheduler::FinishTree(LiveTree& live, const absl::Status& status, FinishReason reason,
                           absl::Time now) {
  if (live.tree->finished()) return;
  for (int segment : live.active) {
    if (live.slots[segment].locked) Release(live, segment);
  }
  // What a failed step stored must not be found by anybody.
  const bool forget = config_.sharing != Sharing::kCache || absl::IsInternal(status);
  if (forget) radix_->DropNamespace(live.name_space);
  live.active.clear();
  live.tree->Finish(status, reason, now);
  AddUsage(live.tree->usage(), &stats_.total);
  ++stats_.trees_finished;
}

void Scheduler::RemoveFinished(absl::Time now) {
  for (auto& live : trees_) {
    for (int segment : live->active) {
      const Slot& slot = live->slots[segment];
      const bool held_for_nobody = slot.state == State::kEnded && slot.waiting_children == 0;
      if (held_for_nobody && slot.locked) Release(*live, segment);
    }
    std::erase_if(live->active, [&](int segment) { return Over(live->slots[segment]); });
    if (!live->failure.ok()) {
      FinishTree(*live, live->failure, FinishReason::kError, now);
    } else if (live->active.empty()) {
      FinishTree(*live, absl::OkStatus(), FinishReason::kStop, now);
    }
  }
  std::erase_if(trees_, [&](auto& live) {
    if (!live->tree->finished()) return false;
    ended_.push_back(std::move(live));
    return true;
  });
}

// Position of the node's first token.
int Scheduler::NodeStart(NodeId node) const {
  return radix_->path_tokens(node) - static_cast<int>(radix_->tokens(node).size());
}

// The node of `tail`'s path that holds the position.
NodeId Scheduler::NodeAt(NodeId tail, int position) const {
  NodeId node = tail;
  while (position < NodeStart(node)) node = radix_->parent(node);
  return node;
}

void Scheduler::BuildBatch() {
  batch_.Clear();
  batch_.step = step_;
  batch_.shape.page_size = config_.page_size;
  ++shape_builds_;
  logits_index_.assign(rows_.size(), -1);
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    if (row.draft >= 0) {
      batch_.shape.AddQuery(DraftShapeNode(drafts_[row.draft]), row.place);
    } else {
      const NodeId node = NodeAt(row.tail, row.position);
      batch_.shape.AddQuery(ShapeNode(node, &batch_), row.position - NodeStart(node));
    }
    batch_.token_ids.push_back(row.token);
    batch_.positions.push_back(row.position);
    batch_.kv_slots.push_back(row.kv_slot);
    if (row.logits) {
      logits_index_[i] = static_cast<int>(batch_.logits_rows.size());
      batch_.logits_rows.push_back(static_cast<int32_t>(i));
    }
  }
  for (const Task& task : tasks_) {
    batch_.tasks.push_back({.logits_row = logits_index_[task.row],
                            .tree = task.live->tree.get(),
                            .segment = task.segment,
                            .score_token = task.score_token,
                            .drafted = task.drafted,
                            .above = task.above});
  }
  pool_->ListNext(batch_.num_rows(), &batch_.next_pages);
  for (auto& live : trees_) CountReads(*live);
}

// Tokens of the node in the step's forest: those with KV that are no draft.
int Scheduler::NumTokens(NodeId node) const {
  const NodeStamp& stamp = stamps_[node.index];
  return radix_->filled(node) - (stamp.draft_step == step_ ? stamp.drafted : 0);
}

// The node in the batch that is being built.
int Scheduler::ShapeNode(NodeId node, StepBatch* batch) {
  const NodeId parent = radix_->parent(node);
  if (!parent.valid()) return -1;  // a root has no tokens
  if (static_cast<size_t>(node.index) >= stamps_.size()) stamps_.resize(node.index + 1);
  if (stamps_[node.index].shape_build == shape_builds_) return stamps_[node.index].shape_index;
  const int above = ShapeNode(parent, batch);
  const int tokens = NumTokens(node);
  const int first_slot = radix_->first_slot(node);
  const int pages = (first_slot + tokens + config_.page_size - 1) / config_.page_size;
  const int index =
      batch->shape.AddNode(above, tokens, first_slot, radix_->pages(node).subspan(0, pages));
  stamps_[node.index].shape_build = shape_builds_;
  stamps_[node.index].shape_index = index;
  return index;
}

// What the step reads for this tree alone, each KV token once, and what attention branch by branch
// would read: a branch's path once a step, however many of its tokens are queried.
void Scheduler::CountReads(LiveTree& live) {
  Usage& usage = live.tree->usage();
  usage.computed_tokens += static_cast<int64_t>(live.rows.size());
  const uint64_t mark = ++read_marks_;
  for (size_t i = 0; i < live.rows.size(); ++i) {
    const int row = live.rows[i];
    const bool run_goes_on = i + 1 < live.rows.size() && rows_[live.rows[i + 1]].draft < 0 &&
                             rows_[live.rows[i + 1]].segment == rows_[row].segment &&
                             rows_[live.rows[i + 1]].position == rows_[row].position + 1;
    if (rows_[row].draft >= 0) {
      // The rest of its path is its pending token's.
      ++usage.kv_tokens_read_logical;
      ++usage.kv_tokens_read_unique;
      continue;
    }
    if (!run_goes_on) {
      usage.kv_tokens_read_logical += rows_[row].position + 1;
    }
    NodeId node = NodeAt(rows_[row].tail, rows_[row].position);
    for (NodeId parent = radix_->parent(node); parent.valid();
         node = parent, parent = radix_->parent(node)) {
      if (stamps_[node.index].read_mark == mark) break;
      stamps_[node.index].read_mark = mark;
      usage.kv_tokens_read_unique += NumTokens(node);
    }
  }
}

void Scheduler::CheckInvariants() const {
  pool_->CheckInvariants();
  radix_->CheckInvariants();
  int holders = 0;
  int branches = 0;
  for (const auto& live : trees_) {
    ESPALIER_CHECK(live->slots.size() == static_cast<size_t>(live->tree->num_segments()));
    ESPALIER_CHECK(std::ranges::is_sorted(live->active));
    for (size_t i = 0; i < live->slots.size(); ++i) {
      const Slot& slot = live->slots[i];
      const bool active = std::ranges::binary_search(live->active, static_cast<int>(i));
      ESPALIER_CHECK(active || Over(slot));
      ESPALIER_CHECK(slot.state != State::kQueued || !slot.locked);
      if (!slot.locked) continue;
      ++holders;
      if (live->tree->segment(static_cast<int>(i)).kind == SegmentKind::kBranch) ++branches;
    }
  }
  ESPALIER_CHECK(holders == holders_);
  ESPALIER_CHECK(branches == live_branches_);
  ESPALIER_CHECK(live_branches_ <= config_.max_live_branches);
}

void StepBatch::Clear() {
  draft_pass = false;
  shape.Clear();
  token_ids.clear();
  positions.clear();
  kv_slots.clear();
  logits_rows.clear();
  tasks.clear();
  next_pages.clear();
}

}  // namespace espalier
