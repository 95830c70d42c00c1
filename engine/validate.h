// The one validator of what clients ask for. Pure; any thread. Every error is INVALID_ARGUMENT and
// names the field, as in "nodes[3].generation.top_p", the value and the limit.
//
// ValidateTree looks at a request as it came, before anything is allocated for it. ExpandTree looks
// at it again once the lengths of its texts are known, and says how large it can grow.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/limits.h"
#include "engine/request.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// Of the model and of the engine that runs it.
struct ModelFacts {
  int vocab_size = 0;
  int max_context = 0;  // tokens that a path may hold, prompt and generated
  ChatFormat chat_format = ChatFormat::kNone;
  int page_size = 0;  // tokens
  int num_pages = 0;  // of the KV pool
  int num_eos = 0;    // end-of-generation tokens
};

// Generation.max_tokens when unset, unless the context leaves less.
inline constexpr int kDefaultMaxTokens = 256;

// The part of ValidateTree that looks at one node's text, ids or messages. Errors call the node
// nodes[index].
absl::Status ValidateContent(int index, const PromptNode& node, const ModelFacts& model,
                             const Limits& limits);

absl::Status ValidateTree(const TreeRequest& request, const ModelFacts& model,
                          const Limits& limits);

// Branches of a generation that can be alive at once.
int64_t BranchesAlive(const Generation& generation);
// Branches of a generation that the node's children continue, of one instance of the node, or of
// all instances where the search is across paths.
int64_t BranchesKept(const Generation& generation);

// Most branches that the tree can have alive at once; 2^63 - 1 stands for all larger numbers. A
// prompt that waits or is scored counts as one. The request has passed the structural checks.
int64_t MaxWidth(const TreeRequest& request);

// What a tree can grow to.
struct TreeExpansion {
  struct Node {
    // Copies of the node: one for every branch that it continues.
    int64_t instances = 0;
    int max_tokens = 0;  // effective; 0 without a generation
  };
  std::vector<Node> nodes;
  int64_t width = 0;       // most branches that can be alive at once
  int64_t tokens = 0;      // prompt tokens plus max_tokens, over all instances
  int64_t path_pages = 0;  // KV pages of the largest path, when it shares none
};

// Tokens that a node's judge appends to an ended branch: with the longest answer, and with all of
// them together.
struct JudgeTokens {
  int longest = 0;
  int total = 0;
};

// `node_tokens[i]` is the number of tokens of node i; `judge_tokens` has an entry a node, or none
// when no branch is judged. The request has passed ValidateTree.
absl::StatusOr<TreeExpansion> ExpandTree(const TreeRequest& request,
                                         std::span<const int> node_tokens, const ModelFacts& model,
                                         const Limits& limits,
                                         std::span<const JudgeTokens> judge_tokens = {});

}  // namespace espalier
