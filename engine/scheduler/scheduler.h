// Decides what every step computes. A pure state machine: time and the model's answers are
// arguments, so that a seed replays any history. Engine thread only.
//
// Each step the trees are visited in rank order (priority, then arrival; within a tree, segments in
// order of creation). Higher ranks take rows and pages first. When pages run out, whoever ranks
// lowest and has no row in the step yet is preempted: its lock goes, its tokens stay, and it
// computes its path again later (from whatever the cache still holds). So the highest-ranked
// segment that can run always does.
//
// The rows of one step see each other's KV, so a segment may build on tokens that another segment
// computes in the same step. Whoever visits an unfilled node first fills it: a filler that went
// away needs no replacement.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/draft/draft_budget.h"
#include "engine/draft/draft_tree.h"
#include "engine/draft/filled_slots.h"
#include "engine/kvcache/pinned_paths.h"
#include "engine/kvcache/radix_tree.h"
#include "engine/sampler/sampler.h"
#include "engine/scheduler/step_batch.h"
#include "engine/sharing.h"
#include "engine/speculative.h"
#include "engine/tree/decode_tree.h"

namespace espalier {

struct SchedulerConfig {
  Sharing sharing = Sharing::kCache;
  int page_size = 16;
  int max_batch_tokens = 512;    // rows a step
  int max_logits_rows = 256;     // rows a step whose logits are computed
  int max_live_branches = 1024;  // branches with KV at once, over all trees
  Speculative speculative = Speculative::kOff;
  // Drafts fill a step up to so many rows: below it a row costs little, for reading weights and KV
  // is what takes the time. A step that decodes as many branches drafts nothing.
  int speculative_rows = 16;
  DraftShape draft_shape = {};  // kDraft only, as the next two
  int draft_max_context = 0;    // positions that the draft model has
  int draft_vocab_size = 0;     // tokens that both models have
  absl::Duration stall_timeout = absl::Seconds(60);
};

struct SchedulerStats {
  int trees_waiting = 0;  // nothing computed yet
  int trees_running = 0;
  int branches_live = 0;
  int64_t trees_finished = 0;
  int64_t steps = 0;
  int64_t preemptions = 0;
  Usage total;  // sums over the trees that ended
};

class Scheduler {
 public:
  // Borrows both.
  Scheduler(const SchedulerConfig& config, PagePool* pool, RadixTree* radix);
  ~Scheduler();

  // The radix tree's namespace of a salt, where requests share a cache.
  static std::string CacheNamespace(std::string_view salt);

  void Submit(std::unique_ptr<DecodeTree> tree);
  // False when no such tree lives.
  bool Cancel(std::string_view tree_id, absl::Time now);
  // Ends every tree with this status.
  void CancelAll(const absl::Status& status, absl::Time now);

  // The next step, or null when nothing can run now. Every non-null batch is followed by Commit.
  // One with `draft_pass` is for the draft model: its samples go to TakeDraft, which returns the
  // batch that follows, until the step itself is there.
  const StepBatch* Schedule(absl::Time now);
  const StepBatch* TakeDraft(std::span<const Sample> samples);
  // samples: one a task. row_bad: one a row, non-zero where a value was not finite.
  void Commit(std::span<const Sample> samples, std::span<const uint8_t> row_bad, absl::Time now);

  // Instead of Commit, when the step failed: ends every tree with `status`.
  void Abandon(const absl::Status& status, absl::Time now);

  // KV that the last Commit wants moved before the next step, slot by slot in order: no entry reads
  // what an earlier one writes.
  struct KvMoves {
    std::vector<int64_t> from, to;
  };
  const KvMoves& moves() const { return moves_; }
  const KvMoves& draft_moves() const { return draft_moves_; }

  // How long the last committed step took, and of that the model that verified: what drafts may
  // cost follows from it.
  void ObserveStepTime(double verify_ms, double total_ms);
  void ObserveDraftPassTime(double ms);

  // What sessions keep in the cache between their commands. It gives way before any tree is
  // preempted.
  PinnedPaths& pins() { return pins_; }

  // Hands the events of all calls since the last Emit to the trees' owners. Comes between two
  // Commits, best while a device works.
  void Emit();

  bool empty() const { return trees_.empty(); }
  // When Schedule returned null though trees live: they wait for their clients until then.
  std::optional<absl::Time> NextDeadline() const;
  bool Contains(std::string_view tree_id) const;
  SchedulerStats Stats() const;
  void CheckInvariants() const;

 private:
  enum class State {
    kQueued,      // wants KV, holds none
    kFilling,     // holds its path; some of it has no KV yet
    kReady,       // prompt with KV whose branches are not all started; score awaiting its logits
    kDecoding,    // branch: its last token is pending
    kHeld,        // branch whose search chooses its next token
    kFinalizing,  // branch that ended: its last token's KV is pending, its children wait
    kEnded,       // holds its path, if at all, only for children that hold none yet
  };

  static constexpr int kFirstDraft = 4;  // tokens of a branch's first draft
  static constexpr int kMaxDraft = 16;

  // Scheduling state of a segment.
  struct Slot {
    State state = State::kQueued;
    NodeId tail;  // valid while locked
    bool locked = false;
    bool admitted = false;     // has been locked at least once
    bool compact = false;      // computes its path privately, in as few pages as its length allows
    int next_sample = 0;       // prompt: branches started so far
    int waiting_children = 0;  // children that were never admitted
    uint64_t step = 0;         // the last step with a row of this segment
    int draft = -1;            // of the step under construction: index into drafts_
    // ngram: how many tokens are drafted next, which follows what was accepted.
    int draft_limit = kFirstDraft;
    int draft_filled = 0;  // draft model: tokens of the path whose KV it is known to have
  };

  struct LiveTree {
    std::unique_ptr<DecodeTree> tree;
    uint64_t arrival = 0;
    std::string name_space;
    std::deque<Slot> slots;   // [segments]; references stay valid while segments are added
    std::vector<int> active;  // segments that are not over, ascending
    std::optional<absl::Time> stalled_since;
    bool running = false;
    absl::Status failure;   // the tree ends with this after the step
    std::vector<int> rows;  // of the step under construction
  };

  struct Row {
    LiveTree* live;
    int segment;
    NodeId tail;  // the path that the token lies on
    int position;
    int32_t token;
    int64_t kv_slot;
    bool logits = false;
    int draft = -1;  // a drafted token: index into drafts_
    int place = -1;  // and its place there
  };

  struct Task {
    int row;
    LiveTree* live;
    int segment;
    std::optional<int32_t> score_token;
    int drafted = 0;
    int above = -1;
  };

  // What is drafted for a branch in the step under construction. Its tokens lie in the branch's
  // leaf, behind `base` tokens of its own.
  struct BranchDraft {
    LiveTree* live;
    int segment;
    int max_depth;  // more tokens one below the other cannot be accepted
    int base = 0;
    int task = 0;                      // the branch's own
    DraftTree tree;                    // draft model only, as the next three
    bool growing = false;              // it has its path's KV and may take another level
    int num_computed = 0;              // expanded tokens that have KV
    std::vector<int> pass_nodes = {};  // by expanded place: its node in the pass, or -1
    int slots = 0;                     // behind the leaf's own
    DraftLayout layout = {};
    int first_task = 0;  // of the layout's first place
    int shape_node = -1;
  };

  int RowsLeft() const { return config_.max_batch_tokens - static_cast<int>(rows_.size()); }
  int LogitsLeft() const { return config_.max_logits_rows - logits_used_; }
  // Computes its path in a private run of its own.
  bool Unshared(const Slot& slot) const {
    return config_.sharing == Sharing::kNone || slot.compact;
  }
  static bool Over(const Slot& slot) { return slot.state == State::kEnded && !slot.locked; }

  void EndOverdue(absl::Time now);
  void VisitTrees();
  void ScheduleDecoding(size_t begin, size_t end);
  void ScheduleFilling(LiveTree& live);
  void VisitFilling(LiveTree& live, int segment);
  void DecodeRow(LiveTree& live, int segment);
  // Drafts: draft_rows.cc.
  bool CollectDrafts();
  void DraftByNgrams();
  int DraftShare(size_t draft) const;
  int ReserveDraftSlots(BranchDraft& draft, int count);
  void Verify(BranchDraft& draft, DraftLayout layout);
  int64_t DraftSlot(const BranchDraft& draft, int place) const;
  int DraftShapeNode(BranchDraft& draft);
  void KeepDraft(BranchDraft& draft, std::span<const int> places);
  // The draft model's passes: draft_passes.cc.
  bool PassPays(double frontier) const;
  double MinDraftProbability() const;
  void StartDraftPass();
  const StepBatch* FirstDraftPass();
  const StepBatch* NextDraftPass();
  bool AddMissing(BranchDraft& draft);
  int PassNode(BranchDraft& draft, int token);
  void AddPassRow(int32_t token, int position, int64_t kv_slot, int node, int offset);
  void AddPassTask(int draft, int token);
  void VerifyDrafts();
  const StepBatch* FinishSchedule();
  void CommitBranch(size_t task, std::span<const Sample> samples, std::span<const uint8_t> row_bad,
                    absl::Time now);
  DecodeTree::Accepted AcceptDraft(BranchDraft& draft, DecodeTree::Accepted accepted, int32_t token,
                                   std::span<const Sample> samples,
                                   std::span<const uint8_t> row_bad, absl::Time now);

  bool Admit(LiveTree& live, int segment);
  bool ParentPathHeld(const LiveTree& live, const Segment& s) const;
  bool AdmitPrivate(LiveTree& live, int segment);
  bool AdmitShared(LiveTree& live, int segment);
  bool HasRoomFor(const LiveTree& live, int64_t tokens);
  bool HasRoomForBranch(const LiveTree& live);
  bool PreemptHeld();
  void Fill(LiveTree& live, int segment);
  bool FillSome(LiveTree& live, int segment);
  void CompleteFill(LiveTree& live, int segment);
  void StartBranches(LiveTree& live, int segment);
  void ExpandUnshared(LiveTree& live, int segment);
  void BranchEnded(LiveTree& live, int segment);
  void DecideSearches(LiveTree& live);
  void Fork(LiveTree& live, int branch, int source);
  void GrowOn(LiveTree& live, int branch, bool forked);
  void Drop(LiveTree& live, int segment);
  void AddChildren(LiveTree& live, int segment);

  int AddRow(LiveTree& live, int segment, int position, int32_t token, int64_t kv_slot);
  int LogitsRowAt(LiveTree& live, int segment, NodeId tail, int position);
  void AddTask(int row, LiveTree& live, int segment, std::optional<int32_t> score_token);

  bool MakeRoom(LiveTree& live, int segment);
  bool PreemptInferior(const LiveTree& live);
  bool PreemptFor(const LiveTree& live, int segment);
  bool PreemptIn(LiveTree& victim, int above_segment);
  void Preempt(LiveTree& live, int segment);
  Slot& NewSlot(LiveTree& live, int segment);
  void Hold(LiveTree& live, int segment, NodeId locked_tail);
  void Release(LiveTree& live, int segment);

  void FinishTree(LiveTree& live, const absl::Status& status, FinishReason reason, absl::Time now);
  void RemoveFinished(absl::Time now);
  void BuildBatch();
  int NodeStart(NodeId node) const;
  NodeId NodeAt(NodeId tail, int position) const;
  int NumTokens(NodeId node) const;
  int ShapeNode(NodeId node, StepBatch* batch);
  void CountReads(LiveTree& live);

  const SchedulerConfig config_;
  PagePool* const pool_;
  RadixTree* const radix_;
  PinnedPaths pins_;

  std::vector<std::unique_ptr<LiveTree>> trees_;  // in rank order
  std::vector<std::unique_ptr<LiveTree>> ended_;  // since the last Emit
  uint64_t arrivals_ = 0;
  uint64_t step_ = 0;
  bool step_open_ = false;
  int live_branches_ = 0;  // branch segments that hold a path
  int holders_ = 0;        // segments that hold a path
  SchedulerStats stats_;

  // The step under construction.
  std::vector<Row> rows_;
  std::vector<Task> tasks_;
  int logits_used_ = 0;
  bool admission_closed_ = false;
  bool retry_ = false;  // a preemption freed pages though no row was scheduled
  std::vector<std::pair<LiveTree*, int>> decoding_;
  std::vector<BranchDraft> drafts_;
  int draft_rows_left_ = 0;  // of the step, for drafts
  StepBatch draft_batch_;
  std::vector<std::pair<int, int>> pass_tasks_;  // draft, and the token that it goes on from
  double pass_frontier_ = 0;                     // probability in sum
  bool small_pass_ = false;                      // hardly more than tokens to go on from
  double draft_pass_ms_ = 0;                     // the last pass took
  std::vector<std::pair<int32_t, float>> candidates_;
  FilledSlots draft_kv_;  // the draft model's
  DraftBudget draft_budget_;
  KvMoves moves_;
  KvMoves draft_moves_;
  DraftBudget::Step draft_step_;  // the last step
  bool caught_up_ = false;        // the draft model computed much that it had missed
  std::vector<int64_t> fill_slots_;
  std::vector<int> logits_index_;  // [rows]
  StepBatch batch_;

  struct NodeStamp {
    uint64_t shape_build = 0;
    int shape_index = -1;
    // Tokens at the node's end that are a draft.
    uint64_t draft_step = 0;
    int drafted = 0;
    uint64_t read_mark = 0;
  };
  std::vector<NodeStamp> stamps_;  // [radix node index]
  uint64_t read_marks_ = 0;
  uint64_t shape_builds_ = 0;
};

}  // namespace espalier
