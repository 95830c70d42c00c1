#include "tests/support/tree_runner.h"

#include "absl/time/clock.h"
#include "kernels/core/check.h"

namespace espalier {

const BranchResult& TreeResult::Branch(int node, int sample, int parent_branch) const {
  for (const auto& [id, branch] : branches) {
    if (branch.start.node == node && branch.start.sample == sample &&
        branch.start.parent_branch_id == parent_branch) {
      return branch;
    }
  }
  ESPALIER_CHECK(false && "no such branch");
}

class TreeCall::Sink : public OutputSink {
 public:
  void OnEvents() override {
    const std::lock_guard lock(mutex_);
    ++events_;
    changed_.notify_all();
  }
  // Returns when there were more notifications than `seen`, and how many there were.
  int64_t Await(int64_t seen) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return events_ > seen; });
    return events_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t events_ = 0;
};

absl::StatusOr<std::unique_ptr<TreeCall>> TreeCall::Start(Engine& engine, TreeRequest request) {
  auto call = std::make_unique<TreeCall>();
  call->sink_ = std::make_shared<Sink>();
  absl::StatusOr<TreeHandle> handle = engine.Submit(std::move(request), call->sink_);
  if (!handle.ok()) return handle.status();
  call->handle_ = *std::move(handle);
  return call;
}

TreeResult TreeCall::Wait() {
  TreeResult result;
  int64_t seen = 0;
  while (true) {
    seen = sink_->Await(seen);
    while (std::optional<TreeEvent> event = handle_.outbox->Pop()) {
      if (const auto* started = std::get_if<TreeStarted>(&*event)) {
        result.tree_id = started->tree_id;
        result.seed = started->seed;
      } else if (const auto* branch = std::get_if<BranchStarted>(&*event)) {
        result.branches[branch->branch_id].start = *branch;
      } else if (const auto* step = std::get_if<StepTokens>(&*event)) {
        result.steps.push_back({static_cast<int>(step->branches.size()), absl::Now()});
        for (const BranchTokens& tokens : step->branches) {
          BranchResult& to = result.branches.at(tokens.branch_id);
          to.text += tokens.text;
          to.tokens.insert(to.tokens.end(), tokens.token_ids.begin(), tokens.token_ids.end());
          to.logprobs.insert(to.logprobs.end(), tokens.logprobs.begin(), tokens.logprobs.end());
        }
      } else if (const auto* end = std::get_if<BranchFinished>(&*event)) {
        result.branches.at(end->branch_id).end = *end;
      } else if (const auto* scored = std::get_if<NodeScored>(&*event)) {
        result.scores.push_back(*scored);
      } else if (const auto* finished = std::get_if<TreeFinished>(&*event)) {
        result.status = finished->status;
        result.usage = finished->usage;
        return result;
      }
    }
  }
}

TreeResult RunTree(Engine& engine, TreeRequest request) {
  absl::StatusOr<std::unique_ptr<TreeCall>> call = TreeCall::Start(engine, std::move(request));
  if (!call.ok()) {
    TreeResult refused;
    refused.status = call.status();
    return refused;
  }
  return (*call)->Wait();
}

std::vector<int32_t> PathOf(const TreeRequest& request, const TreeResult& result,
                            const BranchResult& branch) {
  std::vector<int32_t> path;
  if (branch.start.parent_branch_id >= 0) {
    const BranchResult& parent = result.branches.at(branch.start.parent_branch_id);
    path = PathOf(request, result, parent);
    path.insert(path.end(), parent.tokens.begin(), parent.tokens.end());
  } else if (branch.start.node != 0) {
    path = std::get<std::vector<int32_t>>(request.nodes[0].content);
  }
  const auto& own = std::get<std::vector<int32_t>>(request.nodes[branch.start.node].content);
  path.insert(path.end(), own.begin(), own.end());
  return path;
}

}  // namespace espalier
