// One request while it lives: its prompt nodes, the segments that they became, and what its client
// has been told. Knows nothing of KV or of scheduling. Engine thread only.
//
// A *segment* is a run of tokens with one parent segment:
//   prompt   an instance of a prompt node, one for each branch that the node continues
//   branch   one of the n generations of a prompt node's instance
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
#include "engine/event.h"
#include "engine/outbox.h"
#include "engine/request.h"
#include "engine/sampler/sampler.h"
#include "engine/tree/text_stream.h"

namespace espalier {

// A prompt node after validation and tokenisation.
struct TreeNode {
  int parent = -1;
  std::vector<int> children;
  std::vector<int32_t> tokens;
  std::optional<Generation> generation;
  int max_tokens = 0;  // effective; 0 without a generation
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

enum class SegmentKind { kPrompt, kBranch, kScore };

struct Segment {
  SegmentKind kind = SegmentKind::kPrompt;
  int node = 0;
  int parent = -1;
  int start = 0;  // tokens on the path before this segment
  bool done = false;
  TokenHistory history;  // where a penalty is set: of a prompt's path, of a branch's path

  // Branch only.
  int branch_id = -1;
  int sample = 0;
  uint64_t seed = 0;
  bool started = false;  // its client knows of it
  std::vector<int32_t> generated;
  std::vector<TokenLogprob> logprobs;  // one a generated token
  int sent = 0;                        // generated tokens that the client has
  std::unique_ptr<TextStream> text;

  // Score only: one a token of the node, filled in order.
  std::vector<TokenLogprob> scores;
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
  bool has_children(int index) const { return !node(segments_[index]).children.empty(); }

  // New segments; the caller schedules them.
  int AddRoot();
  // Instances of the node's children, once the segment's own tokens are final.
  std::vector<int> AddChildren(int parent);
  int AddBranch(int prompt, int sample);

  // What the sampler needs for the branch's next token. Valid until the branch's next call.
  struct SampleRequest {
    const SamplingParams* params;
    const TokenHistory* history;  // null: no penalty is set
    std::span<const int32_t> banned;
    double uniform;
    int top_logprobs;
  };
  SampleRequest NextSample(int branch) const;

  // Takes the branch's next token. Tells the client at the next Flush.
  struct Accepted {
    bool finished = false;  // the branch has ended; its generated tokens are final
  };
  Accepted Accept(int branch, const Sample& sample, absl::Time now);
  // The next scored token of a score segment; returns true with the last one.
  bool AcceptScore(int score, const Sample& sample);
  void RestartScore(int score) { segments_[score].scores.clear(); }
  int top_logprobs(int index) const;

  void Started();
  // One event with every branch that moved in the step, then the ends.
  void Flush();
  // Ends every live branch with `reason` and tells the client. The tree takes no further call.
  void Finish(const absl::Status& status, FinishReason reason, absl::Time now);
  bool finished() const { return finished_; }

 private:
  int AddSegment(SegmentKind kind, int node, int parent);
  void Release(Segment& s, const std::string& text, int released);
  void EndBranch(Segment& s, FinishReason reason, std::string stop_reason);
  bool IsStopToken(const Generation& g, int32_t token) const;

  DecodeTreeInit init_;
  std::vector<int32_t> eos_;
  std::vector<std::vector<int32_t>> banned_;  // [nodes] what min_tokens forbids
  std::deque<Segment> segments_;              // references stay valid while segments are added
  int num_branches_ = 0;
  StepTokens pending_tokens_;
  std::vector<TreeEvent> pending_ends_;
  Usage usage_;
  bool finished_ = false;
};

}  // namespace espalier
