// Pairs of partitions: nothing lost, what a pair shares is the same in both and comes at the same
// places.
#include "kernels/cuda/tree_attention/partition_pairs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "kernels/cuda/tree_attention/device_plan.h"
#include "kernels/cuda/tree_attention/stage_order.h"
#include "tests/support/forest_builder.h"
#include "tests/support/plan_checks.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::FewShot;
using testing::ForestBuilder;
using testing::ManyWorkers;
using testing::RandomChance;
using testing::RandomInt;
using testing::Rng;

// The first slots of a partition's whole groups in the order of its stages: of those that the pair
// shares, and -1 for others. And that each of its slots is taken once.
std::vector<int64_t> SharedGroups(const TreePlan& plan, int32_t partition,
                                  const SharedStages& shared) {
  StageOrder order;
  const std::span<const PlanEntry> entries = plan.EntriesOf(plan.partitions[partition]);
  std::vector<std::vector<int>> times_taken;
  for (const PlanEntry& entry : entries) times_taken.emplace_back(entry.count, 0);
  std::vector<int64_t> groups;
  for (const EntryPart& part :
       order.Of(entries, plan.partitions[partition].rows, plan.options.group_size, shared)) {
    const PlanEntry& entry = entries[part.entry];
    for (int i = 0; i < part.count; ++i) ++times_taken[part.entry].at(part.offset + i);
    for (int i = 0; i + kGroupTokens <= part.count; i += kGroupTokens) {
      const int64_t slot =
          int64_t{entry.page} * plan.page_size + entry.first_slot + part.offset + i;
      groups.push_back(part.is_shared ? slot : -1);
    }
  }
  for (const std::vector<int>& times : times_taken) {
    EXPECT_EQ(times, std::vector<int>(times.size(), 1));
  }
  return groups;
}

void CheckPair(const TreePlan& plan, const PartitionPairs& pairs, int place) {
  const int32_t partitions[2] = {pairs.run_order()[place], pairs.run_order()[place + 1]};
  const SharedStages shared = pairs.shared(place);
  ASSERT_GT(shared.count, 0);
  const RowInterval rows[2] = {plan.partitions[partitions[0]].rows,
                               plan.partitions[partitions[1]].rows};
  EXPECT_TRUE(rows[0].end <= rows[1].begin || rows[1].end <= rows[0].begin);
  std::vector<int64_t> groups[2];
  for (int i = 0; i < 2; ++i) groups[i] = SharedGroups(plan, partitions[i], shared);
  const size_t both = std::min(groups[0].size(), groups[1].size());
  int num_shared = 0;
  for (size_t stage = 0; (stage + 1) * kStageGroups <= both; ++stage) {
    const auto of = [&](int i) {
      return std::vector(groups[i].begin() + stage * kStageGroups,
                         groups[i].begin() + (stage + 1) * kStageGroups);
    };
    ASSERT_EQ(of(0), of(1)) << "stage " << stage;
    ASSERT_EQ(std::ranges::count(of(0), -1) % kStageGroups, 0) << "of both kinds";
    num_shared += of(0).front() >= 0;
  }
  EXPECT_EQ(num_shared, shared.count);
  for (const std::vector<int64_t>& list : groups) {
    EXPECT_EQ(std::ranges::count(list, -1), std::ssize(list) - int64_t{num_shared} * kStageGroups);
  }
}

void CheckOrder(const TreePlan& plan, const PartitionPairs& pairs) {
  std::vector<int32_t> order(pairs.run_order().begin(), pairs.run_order().end());
  std::ranges::sort(order);
  std::vector<int32_t> all(plan.num_partitions());
  std::iota(all.begin(), all.end(), 0);
  ASSERT_EQ(order, all);
  std::map<int32_t, int> place_in_plan;
  for (int i = 0; i < plan.num_partitions(); ++i) place_in_plan[plan.run_order[i]] = i;
  for (int i = 2 * pairs.num_pairs() + 1; i < plan.num_partitions(); ++i) {
    ASSERT_LT(place_in_plan[pairs.run_order()[i - 1]], place_in_plan[pairs.run_order()[i]]);
  }
}

// Leaves below nodes below a root of a few stages.
TreeShape RandomTree(Rng& rng) {
  ForestBuilder tree(/*page_size=*/8 << RandomInt(rng, 0, 3));
  const int root = tree.AddNode(-1, RandomInt(rng, 1, 1500));
  for (int i = RandomInt(rng, 1, 6); i > 0; --i) {
    const int node = RandomChance(rng, 0.5) ? root : tree.AddNode(root, RandomInt(rng, 1, 400));
    const int most = RandomInt(rng, 1, 150);
    for (int j = RandomInt(rng, 1, 20); j > 0; --j) tree.AddLeaf(node, RandomInt(rng, 1, most));
  }
  return tree.Finish().shape;
}

TEST(PartitionPairs, ShareWhatBothHaveAtTheSamePlaces) {
  PartitionPairs pairs;
  TreePlanner planner;
  int num_pairs = 0;
  int num_with_turns = 0;
  for (uint64_t seed = 0; seed < 1000; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const TreeShape shape = RandomTree(rng);
    PlanOptions options = {.group_size = 1 << RandomInt(rng, 0, 3),
                           .num_kv_heads = RandomInt(rng, 1, 2),
                           .num_workers = RandomInt(rng, 1, 40),
                           .cost = {.token = 4000, .min_piece = 1}};
    options.tile_rows = std::min(options.group_size * RandomInt(rng, 1, 32), kMostPackedRows);
    const TreePlan& plan = planner.Plan(shape, options);
    pairs.Find(plan);
    CheckOrder(plan, pairs);
    int64_t empty = 0;
    for (int place = 0; place < plan.num_partitions(); ++place) {
      int64_t tokens = 0;
      for (const PlanEntry& entry : plan.EntriesOf(plan.partitions[pairs.run_order()[place]])) {
        tokens += entry.count;
      }
      const int64_t stages = (tokens + kStageTokens - 1) / kStageTokens;
      ASSERT_GE(pairs.NumStages(place, tokens), stages);
      empty += pairs.NumStages(place, tokens) - stages;
    }
    ASSERT_EQ(empty, pairs.num_empty_stages());
    for (int i = 0; i < pairs.num_pairs(); ++i) {
      CheckPair(plan, pairs, 2 * i);
      if (HasFatalFailure()) return;
      ++num_pairs;
      num_with_turns += pairs.shared(2 * i).turns > 0;
    }
  }
  EXPECT_GT(num_pairs, 300);
  EXPECT_GT(num_with_turns, 100);
}

int PairsThatPay(const TreeShape& shape) {
  TreePlanner planner;
  PartitionPairs pairs;
  pairs.FindIfTheyPay(planner.Plan(shape, ManyWorkers(/*group_size=*/4)));
  return pairs.num_pairs();
}

TEST(PartitionPairs, AreMadeWhereTheyPay) {
  EXPECT_GT(PairsThatPay(FewShot(20000, 50, 200)), 4);
  EXPECT_EQ(PairsThatPay(FewShot(4000, 20, 200)), 0) << "one tile";
  EXPECT_EQ(PairsThatPay(FewShot(1000, 50, 200)), 0) << "too few stages";
  EXPECT_EQ(PairsThatPay(FewShot(4000, 256, 1)), 0) << "products bind";
}

}  // namespace
}  // namespace espalier
