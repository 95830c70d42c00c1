// The token ids of a request's nodes.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/request.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// Ids of one node's content. `add_generation_prompt` opens the assistant's turn after messages.
absl::StatusOr<std::vector<int32_t>> TokenizeNode(const PromptNode& node, int index,
                                                  const Tokenizer& tokenizer, bool at_root,
                                                  bool add_generation_prompt);

// Ids of every node of a request that has passed ValidateTree. Each node is encoded alone. Messages
// open the assistant's turn when the node generates or when something other than messages
// continues it; messages that continue an open turn close it first.
// INVALID_ARGUMENT when a node comes to no tokens.
struct TokenizedTree {
  std::vector<std::vector<int32_t>> ids;  // [nodes]
  std::vector<char> turn_is_open;         // [nodes] the assistant's, after the node
};
absl::StatusOr<TokenizedTree> TokenizeTree(const TreeRequest& request, const Tokenizer& tokenizer);

// What follows an ended branch when node `index`'s judge asks about it, answer by answer.
struct TokenizedJudge {
  std::vector<int32_t> prompt;
  std::vector<std::vector<int32_t>> answers;
};
absl::StatusOr<TokenizedJudge> TokenizeJudge(const Judge& judge, int index,
                                             const Tokenizer& tokenizer, bool turn_is_open);

}  // namespace espalier
