// The tree that one session grows: branches of tokens, as its client knows them. Bookkeeping of
// tokens only; what has KV is the radix tree's business. Not thread-safe.
//
// A branch is a run of tokens below its parent, or at the start of a sequence. Ids count from 0 and
// are never used again. Only a leaf's tokens change; a branch with children is final until they are
// pruned. An operation that is refused changes nothing. Refusals name the branch, the value and the
// limit: NOT_FOUND for a branch that does not exist, FAILED_PRECONDITION for one in the wrong
// state, RESOURCE_EXHAUSTED for a session that is full, INVALID_ARGUMENT for the rest.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace espalier {

struct SessionLimits {
  int max_branches = 1024;       // alive at once
  int64_t max_tokens = 1 << 20;  // over all branches, each once
  int max_depth = 256;           // branches on a path
  int max_queued_commands = 64;
};

class SessionTree {
 public:
  static constexpr int kNoParent = -1;

  struct Branch {
    int parent = kNoParent;
    int begin = 0;  // tokens on the path above
    int depth = 1;  // branches on the path
    int children = 0;
    std::vector<int32_t> tokens;  // its own
    // Tokens on the path when an assistant's turn of a conversation was opened; -1: none is open.
    int turn_opened = -1;

    int end() const { return begin + static_cast<int>(tokens.size()); }
  };

  // `max_context`: tokens that a path may hold.
  SessionTree(const SessionLimits& limits, int max_context)
      : limits_(limits), max_context_(max_context) {}

  // A new branch with these tokens. Empty tokens need a parent.
  absl::StatusOr<int> Add(int parent, std::span<const int32_t> tokens);
  // Makes a leaf longer.
  absl::Status Extend(int branch, std::span<const int32_t> tokens);
  // `n` new empty branches below `branch`.
  absl::StatusOr<std::vector<int>> Fork(int branch, int n);
  // A new branch below `parent` with a copy of the tokens that `branch` adds to its own parent.
  absl::StatusOr<int> Join(int branch, int parent);
  // Drops the last `count` of a leaf's own tokens.
  absl::Status Rollback(int branch, int count);
  // Removes branches and all below them; returns what went, parents first.
  absl::StatusOr<std::vector<int>> Prune(std::span<const int> branches);

  absl::Status CheckExists(int branch) const;
  absl::Status CheckLeaf(int branch) const;
  // Whether so many branches of so many tokens together have room.
  absl::Status CheckRoom(int64_t branches, int64_t tokens) const;
  // From here on the branch's path ends in the assistant's turn.
  void OpenTurn(int branch);

  bool contains(int branch) const { return branches_.contains(branch); }
  // The branch must exist.
  const Branch& at(int branch) const { return branches_.at(branch); }
  const std::map<int, Branch>& branches() const { return branches_; }
  int64_t num_tokens() const { return num_tokens_; }
  // From the start of the sequence to the branch's end.
  std::vector<int32_t> PathTokens(int branch) const;
  // Whether `branch` is `ancestor` or below it.
  bool IsBelow(int branch, int ancestor) const;

  void CheckInvariants() const;

 private:
  absl::Status CheckPath(int begin, size_t tokens) const;
  int NewBranch(int parent, std::span<const int32_t> tokens);

  const SessionLimits limits_;
  const int max_context_;
  std::map<int, Branch> branches_;
  int next_id_ = 0;
  int64_t num_tokens_ = 0;
};

}  // namespace espalier
