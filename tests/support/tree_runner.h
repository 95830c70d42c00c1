// Runs a request on an engine and collects what its client would see.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"

namespace espalier {

struct BranchResult {
  BranchStarted start;
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  BranchFinished end;
};

// When the client had a step's tokens, and how many branches moved.
struct StepTime {
  int branches = 0;
  absl::Time time;
};

struct TreeResult {
  std::string tree_id;
  uint64_t seed = 0;
  std::map<int, BranchResult> branches;  // by branch id
  std::vector<NodeScored> scores;
  std::vector<StepTime> steps;
  absl::Status status;
  Usage usage;

  // The only branch of a node's sample below a parent branch.
  const BranchResult& Branch(int node, int sample = 0, int parent_branch = -1) const;
};

// A client that reads at once. Submitted trees run at the same time.
class TreeCall {
 public:
  static absl::StatusOr<std::unique_ptr<TreeCall>> Start(Engine& engine, TreeRequest request);
  const std::string& tree_id() const { return handle_.tree_id; }
  // Waits for the end.
  TreeResult Wait();

 private:
  class Sink;
  TreeHandle handle_;
  std::shared_ptr<Sink> sink_;
};

TreeResult RunTree(Engine& engine, TreeRequest request);

// The path that a branch continues, as prompt tokens, of a request by token ids.
std::vector<int32_t> PathOf(const TreeRequest& request, const TreeResult& result,
                            const BranchResult& branch);

}  // namespace espalier
