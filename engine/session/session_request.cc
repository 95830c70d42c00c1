#include "engine/session/session_request.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"

namespace espalier {
namespace {

// A prompt node with these tokens.
PromptNode TokenNode(int parent, std::vector<int32_t> tokens) {
  PromptNode node;
  node.parent = parent;
  node.content = std::move(tokens);
  return node;
}

}  // namespace

absl::StatusOr<SessionRequest> GenerateFrom(const SessionTree& tree, std::span<const int> branches,
                                            const Generation& generation) {
  if (branches.empty()) {
    return absl::InvalidArgumentError("generate.branches is 0 entries; must be at least 1");
  }
  std::set<int> seen;
  std::vector<std::vector<int32_t>> paths;
  for (int branch : branches) {
    if (absl::Status leaf = tree.CheckLeaf(branch); !leaf.ok()) return leaf;
    if (!seen.insert(branch).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("generate.branches has branch ", branch, " twice; must have it once"));
    }
    paths.push_back(tree.PathTokens(branch));
  }

  SessionRequest request;
  if (branches.size() == 1) {
    request.nodes.push_back(TokenNode(-1, std::move(paths[0])));
    request.nodes[0].generation = generation;
    request.branch_of_node.push_back(branches[0]);
    return request;
  }
  // Every path keeps a token of its own, for a node has at least one.
  size_t common = paths[0].size() - 1;
  for (const std::vector<int32_t>& path : paths) {
    const size_t limit = std::min(common, path.size() - 1);
    common =
        std::mismatch(path.begin(), path.begin() + limit, paths[0].begin()).first - path.begin();
  }
  if (common == 0) {
    return absl::InvalidArgumentError(
        "generate.branches begin with different tokens or are 1 token long; must begin alike and "
        "be at least 2 tokens to generate together");
  }
  request.nodes.push_back(
      TokenNode(-1, std::vector<int32_t>(paths[0].begin(), paths[0].begin() + common)));
  request.branch_of_node.push_back(-1);
  for (size_t i = 0; i < branches.size(); ++i) {
    request.nodes.push_back(
        TokenNode(0, std::vector<int32_t>(paths[i].begin() + common, paths[i].end())));
    request.nodes.back().generation = generation;
    request.branch_of_node.push_back(branches[i]);
  }
  return request;
}

// The last token is scored, for a request must ask for something.
SessionRequest Prefill(const SessionTree& tree, int branch) {
  std::vector<int32_t> path = tree.PathTokens(branch);
  PromptNode last = TokenNode(0, {path.back()});
  last.score = true;
  path.pop_back();
  SessionRequest request;
  request.nodes.push_back(TokenNode(-1, std::move(path)));
  request.nodes.push_back(std::move(last));
  request.branch_of_node.assign(2, -1);
  return request;
}

absl::StatusOr<SessionRequest> ScoreAfter(const SessionTree& tree, int branch,
                                          std::vector<PromptNode> continuations) {
  if (absl::Status exists = tree.CheckExists(branch); !exists.ok()) return exists;
  if (continuations.empty()) {
    return absl::InvalidArgumentError("score.continuations is 0 entries; must be at least 1");
  }
  SessionRequest request;
  request.nodes.push_back(TokenNode(-1, tree.PathTokens(branch)));
  for (PromptNode& continuation : continuations) {
    continuation.parent = 0;
    continuation.score = true;
    request.nodes.push_back(std::move(continuation));
  }
  request.branch_of_node.assign(request.nodes.size(), -1);
  return request;
}

}  // namespace espalier
