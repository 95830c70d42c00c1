// Turns what a session asks of its branches into one request of its own tree, which finds the KV of
// the branches' paths in the cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/request.h"
#include "engine/session/session_tree.h"

namespace espalier {

struct SessionRequest {
  std::vector<PromptNode> nodes;
  std::vector<int> branch_of_node;  // [nodes] the branch that the node generates from; -1: none
};

// One node for what all paths begin with, and one for the rest of each. What some of the paths
// share beyond that, the radix tree finds by its tokens. INVALID_ARGUMENT for no branches, for one
// that is named twice, and for paths that do not begin alike.
absl::StatusOr<SessionRequest> GenerateFrom(const SessionTree& tree, std::span<const int> branches,
                                            const Generation& generation);

// Computes the KV of the branch's path, all but its last token's. The path has 2 tokens at least.
SessionRequest Prefill(const SessionTree& tree, int branch);

// The branch's path and, below it, the continuations, scored.
absl::StatusOr<SessionRequest> ScoreAfter(const SessionTree& tree, int branch,
                                          std::vector<PromptNode> continuations);

}  // namespace espalier
