// Replays recorded workloads and compares the planner's unique and logical KV tokens, summed over
// all decode steps, with the totals that come with the traces. A sample is committed; the whole
// set is found through ESPALIER_WORKLOADS, a folder of "tree-workloads/1" files.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "tests/support/workload_trace.h"

namespace espalier {
namespace {

using testing::LoadWorkloadTraces;
using testing::TraceReplay;
using testing::TraceShapes;
using testing::TraceTotals;
using testing::WorkloadTrace;

// The planner's counters, over every step of the trace.
TraceTotals PlannedTotals(const WorkloadTrace& trace) {
  TraceTotals totals;
  TraceReplay replay(trace);
  TraceShapes shapes(/*page_size=*/16);
  TreePlanner planner;
  while (replay.NextStep()) {
    const TreePlan& plan = planner.Plan(shapes.ShapeOf(replay), {.num_workers = 2});
    const int64_t leaves = plan.num_rows();
    totals.steps += 1;
    totals.sum_queries += leaves;
    totals.sum_tree_tokens += plan.stats.unique_kv_tokens;
    totals.sum_path_tokens += plan.stats.logical_kv_tokens;
    totals.max_leaves = std::max(totals.max_leaves, leaves);
  }
  return totals;
}

void ReplayFile(const std::string& path, size_t most_traces) {
  SCOPED_TRACE(path);
  const std::vector<WorkloadTrace> traces = LoadWorkloadTraces(path);
  ASSERT_FALSE(traces.empty());
  for (size_t i = 0; i < std::min(traces.size(), most_traces); ++i) {
    SCOPED_TRACE(traces[i].id);
    EXPECT_EQ(PlannedTotals(traces[i]), traces[i].expect);
  }
}

constexpr size_t kAll = static_cast<size_t>(-1);

TEST(Workload, CommittedSample) {
  const std::string folder = std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/workloads/";
  for (const char* file : {"few_shot_sample", "keyword_sample", "set_sample"}) {
    ReplayFile(folder + file + ".json", kAll);
  }
}

class WorkloadSet : public ::testing::TestWithParam<std::pair<const char*, size_t>> {};

TEST_P(WorkloadSet, TotalsOfEveryTrace) {
  const char* folder = std::getenv("ESPALIER_WORKLOADS");
  if (folder == nullptr) {
    GTEST_SKIP() << "ESPALIER_WORKLOADS is not set: only the committed sample was replayed";
  }
  ReplayFile(std::string(folder) + "/" + GetParam().first + ".json", GetParam().second);
}

INSTANTIATE_TEST_SUITE_P(Files, WorkloadSet,
                         ::testing::Values(std::pair("few_shot", kAll),
                                           std::pair("sorting128ToT", size_t{10}),
                                           std::pair("docmergeToT", size_t{10}),
                                           std::pair("keywordToT", size_t{10}),
                                           std::pair("set128ToT", size_t{10})));

}  // namespace
}  // namespace espalier
