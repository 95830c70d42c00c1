// Replays recorded workloads through the radix tree as an engine would: a fork publishes the leaf
// and starts private children, a prune unlocks, a step appends to every leaf and plans the shape
// that the tree's accessors describe. The planner's unique and logical KV tokens, summed over all
// decode steps, must equal the totals that come with the traces. A sample is committed; the whole
// set is found through ESPALIER_WORKLOADS, a folder of "tree-workloads/1" files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/kvcache/page_pool.h"
#include "engine/kvcache/radix_tree.h"
#include "kernels/attention/tree_plan.h"
#include "tests/support/workload_trace.h"

namespace espalier {
namespace {

using testing::LoadWorkloadTraces;
using testing::TraceEvent;
using testing::TraceReplay;
using testing::TraceTotals;
using testing::WorkloadTrace;

enum class Text {
  kDistinct,  // no two tokens alike
  kRepeated,  // one token over and over: every sibling is a duplicate of every other, so that
              // publishing fails, finished branches merge and live nodes are split under way
};

class RadixReplay {
 public:
  RadixReplay(const WorkloadTrace& trace, Text text)
      : trace_(trace), text_(text), pool_(kPages), radix_(&pool_, kPageSize) {}

  TraceTotals Run() {
    Prefill();
    TraceTotals totals;
    TraceReplay replay(trace_);
    TreePlanner planner;
    while (replay.NextStep()) {
      for (const TraceEvent* event : replay.applied()) Apply(*event);
      for (const auto& [node, leaf] : leaves_) {
        if (!radix_.Append(leaf, NextToken())) {
          ADD_FAILURE() << "no page at step " << replay.step();
          return totals;
        }
      }
      if (!replay.applied().empty()) CheckPages(replay);
      const TreePlan& plan = planner.Plan(Shape(), {.num_workers = 2});
      const int64_t queries = plan.num_rows();
      totals.steps += 1;
      totals.sum_queries += queries;
      totals.sum_tree_tokens += plan.stats.unique_kv_tokens;
      totals.sum_path_tokens += plan.stats.logical_kv_tokens;
      totals.max_leaves = std::max(totals.max_leaves, queries);
    }
    for (const auto& [node, leaf] : leaves_) radix_.Unlock(leaf);
    EXPECT_EQ(radix_.num_locked_pages(), 0);
    EXPECT_TRUE(radix_.Reserve(kPages));
    radix_.CheckInvariants();
    return totals;
  }

 private:
  // Enough for what lives at once; what was pruned stays cached until its pages are needed.
  static constexpr int kPages = 3072;
  static constexpr int kPageSize = 16;

  int32_t NextToken() { return text_ == Text::kDistinct ? next_token_++ : 7; }

  void Prefill() {
    std::vector<int32_t> prompt(trace_.prompt_tokens);
    for (int32_t& token : prompt) token = NextToken();
    const NodeId node = radix_.InsertFilling(radix_.Root(""), prompt, /*filler=*/1);
    std::vector<int64_t> slots;
    ASSERT_EQ(radix_.Fill(node, trace_.prompt_tokens, &slots), trace_.prompt_tokens);
    leaves_[0] = node;
  }

  void Apply(const TraceEvent& event) {
    if (event.is_fork()) {
      const NodeId parent = leaves_.at(event.parent);
      leaves_.erase(event.parent);
      radix_.Publish(parent);
      for (int i = 0; i < event.num_children; ++i) {
        leaves_[event.first_child + i] = radix_.NewPrivate(parent);
      }
      radix_.Unlock(parent);
      return;
    }
    for (const int leaf : event.pruned) {
      radix_.Unlock(leaves_.at(leaf));
      leaves_.erase(leaf);
    }
  }

  // Every live node of the trace began on a fresh page, and nothing else is locked.
  void CheckPages(const TraceReplay& replay) {
    radix_.CheckInvariants();
    int pages = 0;
    for (const int node : replay.live_nodes()) {
      pages += (replay.num_tokens(node) + kPageSize - 1) / kPageSize;
    }
    EXPECT_EQ(radix_.num_locked_pages(), pages) << "step " << replay.step();
  }

  const TreeShape& Shape() {
    shape_.Clear();
    shape_.page_size = kPageSize;
    shape_index_.clear();
    for (const auto& [node, leaf] : leaves_) {
      shape_.AddQuery(ShapeNode(leaf), radix_.filled(leaf) - 1);
    }
    return shape_;
  }

  int ShapeNode(NodeId node) {
    const NodeId parent = radix_.parent(node);
    if (!parent.valid()) return -1;  // a root holds no tokens
    if (const auto found = shape_index_.find(node.index); found != shape_index_.end()) {
      return found->second;
    }
    const int above = ShapeNode(parent);
    return shape_index_[node.index] = shape_.AddNode(above, radix_.filled(node),
                                                     radix_.first_slot(node), radix_.pages(node));
  }

  const WorkloadTrace& trace_;
  const Text text_;
  PagePool pool_;
  RadixTree radix_;
  std::map<int, NodeId> leaves_;  // by trace node
  int32_t next_token_ = 0;
  TreeShape shape_;
  std::map<int32_t, int> shape_index_;  // by radix node
};

void ReplayFile(const std::string& path, size_t most_traces, Text text) {
  SCOPED_TRACE(path);
  const std::vector<WorkloadTrace> traces = LoadWorkloadTraces(path);
  ASSERT_FALSE(traces.empty());
  for (size_t i = 0; i < std::min(traces.size(), most_traces); ++i) {
    SCOPED_TRACE(traces[i].id);
    EXPECT_EQ(RadixReplay(traces[i], text).Run(), traces[i].expect);
  }
}

constexpr size_t kAll = static_cast<size_t>(-1);

TEST(WorkloadReplay, CommittedSample) {
  const std::string folder = std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/workloads/";
  for (const char* file : {"few_shot_sample", "keyword_sample", "set_sample"}) {
    for (Text text : {Text::kDistinct, Text::kRepeated}) {
      ReplayFile(folder + file + ".json", kAll, text);
    }
  }
}

class WorkloadReplaySet : public ::testing::TestWithParam<std::pair<const char*, size_t>> {};

TEST_P(WorkloadReplaySet, TotalsOfEveryTrace) {
  const char* folder = std::getenv("ESPALIER_WORKLOADS");
  if (folder == nullptr) {
    GTEST_SKIP() << "ESPALIER_WORKLOADS is not set: only the committed sample was replayed";
  }
  const auto& [file, most_traces] = GetParam();
  for (Text text : {Text::kDistinct, Text::kRepeated}) {
    ReplayFile(std::string(folder) + "/" + file + ".json", most_traces, text);
  }
}

INSTANTIATE_TEST_SUITE_P(Files, WorkloadReplaySet,
                         ::testing::Values(std::pair("few_shot", kAll),
                                           std::pair("sorting128ToT", size_t{10}),
                                           std::pair("docmergeToT", size_t{10}),
                                           std::pair("keywordToT", size_t{10}),
                                           std::pair("set128ToT", size_t{10})));

}  // namespace
}  // namespace espalier
