// What a client asks for, free of protobuf. A request is a tree of prompt nodes, parents first.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int top_k = 0;             // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over the whole path
  float frequency_penalty = 0.0f;   // over generated tokens
  float presence_penalty = 0.0f;    // over generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;
};

// Keeps one of a generation's n samples that give the most frequent answer.
struct MajorityVote {
  std::string answer_pattern;  // what finds it in a branch's text
};

enum class BranchScore { kMeanLogprob, kCumulativeLogprob };

// A node's content: text, token ids or turns of a conversation.
using Content = std::variant<std::string, std::vector<int32_t>, std::vector<ChatMessage>>;

// Asks the model about an ended branch: its score is the mean of the answers' values, weighted by
// their probabilities after the branch and the prompt.
struct Judge {
  Content prompt;
  struct Answer {
    std::string text;
    float value = 0;
  };
  std::vector<Answer> answers;
};

// Keeps the best of a generation's n samples.
struct BestOfN {
  int keep = 1;
  BranchScore score = BranchScore::kMeanLogprob;
  bool across_paths = false;        // of those on all paths together
  std::optional<Judge> judge = {};  // scores ended branches instead of `score`
};

// When a beam search that has `width` ended hypotheses is over.
enum class EarlyStopping {
  kHeuristic,  // when the best running one, at its present length, beats none of them
  kAlways,     // at once
  kNever,      // when no running one can beat one of them, whatever its length
};

struct BeamSearch {
  int width = 1;
  int num_return = 1;
  float length_penalty = 1.0f;
  EarlyStopping early_stopping = EarlyStopping::kHeuristic;
  int groups = 1;  // of width / groups hypotheses each
  float diversity_penalty = 0;
};

// Keeps the most likely of given texts; each is a branch.
struct Choices {
  std::vector<std::string> texts;
  BranchScore score = BranchScore::kCumulativeLogprob;
};

struct Generation {
  int n = 1;
  SamplingParams sampling;
  std::optional<int>
      max_tokens;  // unset: 256, capped by the context; set: over the context is an error
  int min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  // Unset: none. 0: of the chosen token. k: also of the k most likely.
  std::optional<int> logprobs;
  // Which branches live on; std::monostate: all n, independent of each other.
  std::variant<std::monostate, BestOfN, BeamSearch, MajorityVote, Choices> search;
  std::string regex;        // that the whole text matches; empty: none
  bool speculative = true;  // drafts may be verified, where the engine makes any
};

// The search is one over all instances of its node.
inline bool IsAcrossPaths(const Generation& generation) {
  const auto* best = std::get_if<BestOfN>(&generation.search);
  return best != nullptr && best->across_paths;
}

// Null: ended branches are not judged.
inline const Judge* JudgeOf(const Generation& generation) {
  const auto* best = std::get_if<BestOfN>(&generation.search);
  return best != nullptr && best->judge ? &*best->judge : nullptr;
}

struct PromptNode {
  int parent = -1;  // index of an earlier node; -1: the root (exactly one, the first)
  std::string id;   // client's label; unique in the tree; empty: the node's index
  Content content;
  std::optional<Generation> generation;
  // A continuation whose tokens' log-probabilities are wanted instead of a generation.
  bool score = false;
};

struct TreeRequest {
  std::string request_id;  // a label, never a key
  int priority = 0;        // higher first
  std::string cache_salt;
  std::optional<uint64_t> seed;  // drawn and echoed when unset
  std::optional<absl::Time> deadline;
  std::vector<PromptNode> nodes;
};

}  // namespace espalier
