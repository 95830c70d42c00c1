#include "engine/session/session_tree.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace espalier {

absl::Status SessionTree::CheckExists(int branch) const {
  if (contains(branch)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("branch ", branch, " does not exist in this session"));
}

absl::Status SessionTree::CheckLeaf(int branch) const {
  if (absl::Status exists = CheckExists(branch); !exists.ok()) return exists;
  const int children = at(branch).children;
  if (children == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "branch ", branch, " has ", children, " children; must be a leaf, for its tokens to change"));
}

absl::Status SessionTree::CheckRoom(int64_t branches, int64_t tokens) const {
  const int64_t all_branches = static_cast<int64_t>(branches_.size()) + branches;
  if (all_branches > limits_.max_branches) {
    return absl::ResourceExhaustedError(absl::StrCat("the session would have ", all_branches,
                                                     " branches; must be at most ",
                                                     limits_.max_branches));
  }
  if (num_tokens_ + tokens > limits_.max_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the session would have ", num_tokens_ + tokens,
                     " tokens over all branches; must be at most ", limits_.max_tokens));
  }
  return absl::OkStatus();
}

absl::Status SessionTree::CheckPath(int begin, size_t tokens) const {
  const int64_t end = begin + static_cast<int64_t>(tokens);
  if (end <= max_context_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the path would be ", end, " tokens; the context has ", max_context_));
}

int SessionTree::NewBranch(int parent, std::span<const int32_t> tokens) {
  Branch branch;
  branch.parent = parent;
  branch.tokens.assign(tokens.begin(), tokens.end());
  if (parent != kNoParent) {
    Branch& above = branches_.at(parent);
    ++above.children;
    branch.begin = above.end();
    branch.depth = above.depth + 1;
    branch.turn_opened = above.turn_opened;
  }
  num_tokens_ += static_cast<int64_t>(tokens.size());
  branches_.emplace(next_id_, std::move(branch));
  return next_id_++;
}

absl::StatusOr<int> SessionTree::Add(int parent, std::span<const int32_t> tokens) {
  absl::Status status;
  if (parent != kNoParent) {
    status = CheckExists(parent);
    if (!status.ok()) return status;
    const int depth = at(parent).depth + 1;
    if (depth > limits_.max_depth) {
      return absl::InvalidArgumentError(absl::StrCat("the branch would be at depth ", depth,
                                                     "; must be at most ", limits_.max_depth));
    }
  } else if (tokens.empty()) {
    return absl::InvalidArgumentError("a branch without a parent is 0 tokens; must be at least 1");
  }
  status.Update(CheckPath(parent == kNoParent ? 0 : at(parent).end(), tokens.size()));
  status.Update(CheckRoom(1, static_cast<int64_t>(tokens.size())));
  if (!status.ok()) return status;
  return NewBranch(parent, tokens);
}

absl::Status SessionTree::Extend(int branch, std::span<const int32_t> tokens) {
  if (absl::Status leaf = CheckLeaf(branch); !leaf.ok()) return leaf;
  Branch& b = branches_.at(branch);
  absl::Status status = CheckPath(b.end(), tokens.size());
  status.Update(CheckRoom(0, static_cast<int64_t>(tokens.size())));
  if (!status.ok()) return status;
  b.tokens.insert(b.tokens.end(), tokens.begin(), tokens.end());
  num_tokens_ += static_cast<int64_t>(tokens.size());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> SessionTree::Fork(int branch, int n) {
  if (absl::Status exists = CheckExists(branch); !exists.ok()) return exists;
  if (n < 1 || n > limits_.max_branches) {
    return absl::InvalidArgumentError(
        absl::StrCat("fork.n is ", n, "; must be from 1 to ", limits_.max_branches));
  }
  if (absl::Status room = CheckRoom(n, 0); !room.ok()) return room;
  std::vector<int> forks;
  for (int i = 0; i < n; ++i) {
    absl::StatusOr<int> added = Add(branch, {});
    if (!added.ok()) return added.status();  // only the first can be refused: for its depth
    forks.push_back(*added);
  }
  return forks;
}

absl::StatusOr<int> SessionTree::Join(int branch, int parent) {
  if (absl::Status exists = CheckExists(branch); !exists.ok()) return exists;
  return Add(parent, std::vector<int32_t>(at(branch).tokens));
}

absl::Status SessionTree::Rollback(int branch, int count) {
  if (absl::Status leaf = CheckLeaf(branch); !leaf.ok()) return leaf;
  Branch& b = branches_.at(branch);
  // A sequence keeps its first token: an empty path continues nothing.
  const int own = static_cast<int>(b.tokens.size()) - (b.parent == kNoParent ? 1 : 0);
  if (count < 1 || count > own) {
    return absl::InvalidArgumentError(absl::StrCat("rollback.tokens is ", count,
                                                   "; must be from 1 to ", own, ", what branch ",
                                                   branch, " can lose of its own tokens"));
  }
  b.tokens.resize(b.tokens.size() - count);
  num_tokens_ -= count;
  if (b.turn_opened > b.end()) b.turn_opened = -1;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> SessionTree::Prune(std::span<const int> branches) {
  for (int branch : branches) {
    if (absl::Status exists = CheckExists(branch); !exists.ok()) return exists;
  }
  std::vector<int> gone;
  for (const auto& [id, branch] : branches_) {
    // Children have larger ids than their parents.
    if (std::ranges::find(branches, id) != branches.end() ||
        std::ranges::binary_search(gone, branch.parent)) {
      gone.push_back(id);
    }
  }
  for (int id : gone) {
    const Branch& branch = branches_.at(id);
    if (contains(branch.parent)) --branches_.at(branch.parent).children;
    num_tokens_ -= static_cast<int64_t>(branch.tokens.size());
    branches_.erase(id);
  }
  return gone;
}

void SessionTree::OpenTurn(int branch) {
  Branch& b = branches_.at(branch);
  b.turn_opened = b.end();
}

std::vector<int32_t> SessionTree::PathTokens(int branch) const {
  std::vector<int32_t> path(at(branch).end());
  for (int id = branch; id != kNoParent; id = at(id).parent) {
    const Branch& b = at(id);
    std::ranges::copy(b.tokens, path.begin() + b.begin);
  }
  return path;
}

bool SessionTree::IsBelow(int branch, int ancestor) const {
  while (branch > ancestor && contains(branch)) branch = at(branch).parent;
  return branch == ancestor;
}

void SessionTree::CheckInvariants() const {
  int64_t tokens = 0;
  std::map<int, int> children;
  for (const auto& [id, branch] : branches_) {
    ESPALIER_CHECK(id < next_id_);
    tokens += static_cast<int64_t>(branch.tokens.size());
    ESPALIER_CHECK(branch.end() <= max_context_);
    if (branch.parent == kNoParent) {
      ESPALIER_CHECK(branch.begin == 0 && branch.depth == 1);
      continue;
    }
    ESPALIER_CHECK(branch.parent < id && contains(branch.parent));
    ESPALIER_CHECK(branch.begin == at(branch.parent).end());
    ESPALIER_CHECK(branch.depth == at(branch.parent).depth + 1);
    ++children[branch.parent];
  }
  for (const auto& [id, branch] : branches_) ESPALIER_CHECK(branch.children == children[id]);
  ESPALIER_CHECK(tokens == num_tokens_);
  ESPALIER_CHECK(static_cast<int>(branches_.size()) <= limits_.max_branches);
}

}  // namespace espalier
