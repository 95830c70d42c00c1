// One request while it lives: its prompt nodes, the segments that they became, and what its client
// has been told. Knows nothing of KV or of scheduling. Engine thread only.
//
// A *segment* is a run of tokens with one parent segment:
//   prompt   an instance of a prompt node, one for each branch that the node continues
//   branch   one of the generations of a prompt node's instance, or a fork of another branch: then
//            it continues its parent after the first (start - parent's start) of its tokens
//   score    a continuation whose tokens are scored
// Segments are created parents first and are never removed while the tree lives, so an index is a
// name. Segment 0 is the root's instance.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/constraint/token_constraint.h"
#include "engine/event.h"
#include "engine/outbox.h"
#include "engine/request.h"
#include "engine/sampler/sampler.h"
#include "engine/tree/branch_policy.h"
#include "engine/tree/text_stream.h"

namespace espalier {

// One answer of a judge, with the prompt before it.
struct JudgeAnswer {
  std::vector<int32_t> tokens;
  int prompt_tokens = 0;  // of these
  double value = 0;
};

// A prompt node after validation and tokenisation.
struct TreeNode {
  int parent = -1;
  std::vector<int> children;
  std::vector<int32_t> tokens;
  std::optional<Generation> generation;
  int max_tokens = 0;                                 // effective; 0 without a generation
  std::shared_ptr<const TokenConstraint> constraint;  // null: any text
  std::vector<std::vector<int32_t>> choices;          // [branches] tokens, of Choices
  std::vector<JudgeAnswer> judge;                     // empty: branches are not judged
  bool score = false;
};

struct DecodeTreeInit {
  std::string tree_id;
  std::string cache_salt;
  int priority = 0;
  uint64_t seed = 0;
  std::optional<absl::Time> deadline;
  std::vector<TreeNode> nodes;
  std::shared_ptr<Outbox> outbox;
  const Tokenizer* tokenizer = nullptr;  // outlives the tree
  absl::Time submitted;
};

// What a search policy's decisions ask of the scheduler.
struct SearchOutcome {
  struct Fork {
    int branch = 0;
    int source = 0;
  };
  std::vector<int> grown;  // held branches that took a token and go on
  // New segments in order. They go on, if they are not done, where `source` was before it took its
  // own token.
  std::vector<Fork> forks;
  std::vector<int> dropped;  // branches that need their KV no longer: pruned, or ended
  std::vector<int> kept;     // branches whose children follow
};

enum class SegmentKind { kPrompt, kBranch, kScore };

struct Segment {
  SegmentKind kind = SegmentKind::kPrompt;
  int node = 0;
  int parent = -1;
  int start = 0;  // tokens on the path before this segment
  bool done = false;
  TokenHistory history;  // where a penalty is set: of a prompt's path, of a branch's path

  // Prompt only, of a generation with a search policy; of a search across paths the first instance.
  std::vector<int> undecided;  // branches that the policy has neither pruned nor kept
  int num_started = 0;         // branches that began here

  // Branch only.
  int branch_id = -1;
  int sample = 0;
  uint64_t seed = 0;
  bool started = false;  // its client knows of it
  std::vector<int32_t> generated;
  std::vector<TokenLogprob> logprobs;        // one a generated token
  int sent = 0;                              // generated tokens that the client has
  int constraint_state = 0;                  // where a constraint is set
  std::shared_ptr<const TokenMask> allowed;  // next tokens there; null: all
  std::unique_ptr<TextStream> text;
  // Under a search policy.
  int search = -1;            // the prompt segment that the search began at; -1: no policy
  int root_sample = 0;        // of the branch that forks go back to
  int num_forks = 0;          // branches that were forked off
  int search_tokens = 0;      // since the search began, with a stop token that the policy chose
  double search_logprob = 0;  // their sum
  std::vector<std::pair<int32_t, float>> candidates;  // that the policy has yet to choose from
  FinishReason end_reason = FinishReason::kStop;      // once done
  std::string stop_reason;
  std::string sent_text;              // all that its client has
  std::optional<std::string> answer;  // that its policy found there
  bool asked = false;                 // its judge's answers are being scored, or were
  std::vector<double> verdict;        // [answers] log-probabilities
  int num_verdicts = 0;               // of these, those that are there
  std::optional<double> judgement;    // once all are there

  // Score only: one a token of the node, filled in order; of a judge's, a token of its answer.
  std::vector<TokenLogprob> scores;
  int judge = -1;  // which of the answers that judge the parent branch; -1: none
};

class DecodeTree {
 public:
  explicit DecodeTree(DecodeTreeInit init);

  const std::string& id() const { return init_.tree_id; }
  const std::string& cache_salt() const { return init_.cache_salt; }
  int priority() const { return init_.priority; }
  absl::Time submitted() const { return init_.submitted; }
  std::optional<absl::Time> deadline() const { return init_.deadline; }
  Outbox& outbox() const { return *init_.outbox; }
  Usage& usage() { return usage_; }

  int num_segments() const { return static_cast<int>(segments_.size()); }
  const Segment& segment(int index) const { return segments_[index]; }
  const TreeNode& node(const Segment& s) const { return init_.nodes[s.node]; }
  // Tokens of the segment itself.
  std::span<const int32_t> tokens(int index) const;
  // Tokens from the root to the segment's end.
  std::vector<int32_t> PathTokens(int index) const;
  int path_length(int index) const;
  // Branches that begin at a prompt that generates.
  int fanout(int prompt) const;
  bool has_children(int index) const {
    return NeedsJudgement(segments_[index]) || !node(segments_[index]).children.empty();
  }
  // How many of a score segment's first tokens are not scored.
  int num_unscored(int score) const;

  // New segments; the caller schedules them.
  int AddRoot();
  // Instances of the node's children, once the segment's own tokens are final; of a branch that is
  // to be judged its judge's answers, and the children when it is asked again.
  std::vector<int> AddChildren(int parent);
  int AddBranch(int prompt, int sample);

  // What the sampler needs for the branch's next token. Valid until the branch's next call.
  struct SampleRequest {
    const SamplingParams* params;
    const TokenHistory* history;  // null: no penalty is set
    std::span<const int32_t> banned;
    std::span<const uint64_t> allowed;  // TokenMask; empty: all
    std::optional<int32_t> forced;      // nothing is drawn: the next token is given
    double uniform;
    int top_logprobs;
  };
  // `ahead`: as if the branch had so many tokens more, which then may not carry a penalty.
  SampleRequest NextSample(int branch, int ahead = 0) const;

  // How many tokens may be drafted below the branch's last one. 0: its request wants none, a policy
  // chooses its tokens, a penalty would have to count the draft, or its next token is its last.
  int MaxDraft(int branch) const;
  // What other branches have generated, the newest `count`, newest first.
  std::vector<std::span<const int32_t>> OtherTexts(int branch, int count) const;

  // Takes the branch's next token. Tells the client at the next Flush.
  struct Accepted {
    bool finished = false;  // the branch has ended; its generated tokens are final
    bool held = false;      // its search decides what becomes of it
  };
  Accepted Accept(int branch, const Sample& sample, absl::Time now);
  // Asks the policies of the searches in which a branch was held or moved since the last call.
  std::vector<SearchOutcome> DecideSearches();
  // The next scored token of a score segment; returns true with the last one.
  bool AcceptScore(int score, const Sample& sample);
  void RestartScore(int score) { segments_[score].scores.clear(); }
  int top_logprobs(int index) const;

  void Started();
  // One event with every branch that moved in the step, then the ends. Puts the text together: the
  // caller has time.
  void Flush();
  // Whether the outbox is, with what Flush adds.
  bool outbox_full() const;
  // Ends every live branch with `reason` and tells the client. The tree takes no further call.
  void Finish(const absl::Status& status, FinishReason reason, absl::Time now);
  bool finished() const { return finished_; }

 private:
  int AddSegment(SegmentKind kind, int node, int parent);
  void CountPrompt(int segment);
  bool NeedsJudgement(const Segment& s) const;
  void TakeVerdict(const Segment& score);
  void MarkMoved(int search);
  // What the step's event says of a branch: text and how many tokens have gone out with it, which
  // follow in Flush from `token` and `has_end` where the text may wait.
  struct News {
    Segment* branch;
    std::optional<int32_t> token = {};
    bool has_end = false;
    std::string text = {};
    int released = 0;
  };
  bool TextMayWait(const Segment& s) const;
  void MakeText(News& news);
  void Release(Segment& s, std::string text, int released);
  void ReleaseRest(Segment& s, std::string text = "");
  void Announce(Segment& s, absl::Time now);
  bool TakeToken(Segment& s, TokenLogprob token);
  // What the branch's last token leaves of its constraint or choice.
  enum class Outlook { kOpen, kComplete, kStuck };
  Outlook AdvanceConstraint(Segment& s);
  void EndBranch(Segment& s, FinishReason reason, std::string stop_reason);
  void Report(const Segment& s, FinishReason reason, std::optional<double> score,
              std::optional<double> threshold, std::optional<int> rank);

  const BranchPolicy* PolicyOf(const Segment& s) const { return policies_[s.node].get(); }
  SearchView ViewOf(const Segment& prompt) const;
  void TakeStep(const SearchDecision::Step& step, SearchOutcome* outcome);
  void Prune(const SearchDecision::Pruned& pruned);
  void Apply(int prompt, const SearchDecision& decision, SearchOutcome* outcome);
  int AddFork(int source);
  std::vector<int32_t> SearchTokens(int branch) const;
  bool IsStopToken(const Generation& g, int32_t token) const;

  DecodeTreeInit init_;
  std::vector<int32_t> eos_;
  std::vector<std::vector<int32_t>> banned_;  // [nodes] what min_tokens forbids
  // [nodes] null: branches are independent
  std::vector<std::unique_ptr<const BranchPolicy>> policies_;
  std::vector<std::vector<int32_t>> stop_tokens_;  // [nodes] with a policy
  // [nodes] instances that one search spans: more than 1 only across paths.
  std::vector<int> search_paths_;
  std::vector<int> search_home_;  // [nodes] across paths: the segment that holds the search, or -1
  std::vector<int> moved_searches_;  // prompt segments, since DecideSearches
  std::deque<Segment> segments_;     // references stay valid while segments are added
  int num_branches_ = 0;
  std::vector<News> news_;  // since the last Flush, in order
  std::vector<TreeEvent> pending_ends_;
  Usage usage_;
  bool finished_ = false;
};

}  // namespace espalier
