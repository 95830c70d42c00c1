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
absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeTree(const TreeRequest& request,
                                                               const Tokenizer& tokenizer);

}  // namespace espalier
