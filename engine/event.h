// What the engine tells a client about its tree, in order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"

namespace espalier {

enum class FinishReason { kStop, kLength, kPruned, kCancelled, kDeadline, kError };

struct TreeStarted {
  std::string tree_id;  // 128 random bits in hex; what Abort takes
  uint64_t seed = 0;
};

struct BranchStarted {
  int branch_id = 0;
  int parent_branch_id = -1;  // -1: forked from the prompt
  int node = 0;               // index of the prompt node that generates
  int sample = 0;             // which of the node's n
  int fork_token_index = 0;   // tokens on the path before the branch's first
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // most likely first
};

struct BranchTokens {
  int branch_id = 0;
  std::string text;  // complete UTF-8; may be empty while a character or a stop string is pending
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;  // one a token when asked for
};

// All branches that moved in one step.
struct StepTokens {
  std::vector<BranchTokens> branches;
};

struct BranchFinished {
  int branch_id = 0;
  FinishReason reason = FinishReason::kStop;
  double cumulative_logprob = 0;
  int completion_tokens = 0;
  std::string stop_reason;  // the stop string or token id that matched, if any
  // Of a branch that a search policy kept or pruned.
  std::optional<double> score = std::nullopt;
  // Of a pruned one: the lowest score that went on.
  std::optional<double> threshold = std::nullopt;
  std::optional<int> rank = std::nullopt;            // of a kept one, from 0, best first
  std::optional<std::string> answer = std::nullopt;  // that voted
  // Of a kept hypothesis, whose tokens may lie in several branches: all since the prompt.
  std::vector<int32_t> hypothesis_token_ids = {};
  std::string hypothesis_text = {};
};

// Log-probabilities of a scored node's tokens given the path before it. With several parent
// branches, one event each.
struct NodeScored {
  int node = 0;
  int parent_branch_id = -1;
  std::vector<TokenLogprob> logprobs;
};

struct Usage {
  int64_t prompt_tokens = 0;    // tokens of the request's nodes, each counted once a branch path
  int64_t cached_tokens = 0;    // of those, found in the cache
  int64_t computed_tokens = 0;  // rows that went through the model
  int64_t completion_tokens = 0;
  int64_t kv_tokens_read_unique = 0;  // summed over steps: KV tokens of the tree, each once
  // What attention branch by branch would have read: every branch its whole path, once a step.
  int64_t kv_tokens_read_logical = 0;
  int64_t steps = 0;
  int64_t preemptions = 0;
  int64_t drafted_tokens = 0;   // that were verified
  int64_t accepted_tokens = 0;  // of those, generated
  int64_t verify_steps = 0;     // summed over branches: steps that verified a draft
  double queue_ms = 0;
  double first_token_ms = 0;
  double total_ms = 0;
};

struct TreeFinished {
  absl::Status status;  // OK, CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL
  Usage usage;
};

using TreeEvent =
    std::variant<TreeStarted, BranchStarted, StepTokens, BranchFinished, NodeScored, TreeFinished>;

}  // namespace espalier
