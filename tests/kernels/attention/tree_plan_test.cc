// What every plan must hold, whatever the variant, and what each variant promises.
#include "kernels/attention/tree_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "tests/support/forest_builder.h"
#include "tests/support/plan_checks.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::CheckPlan;
using testing::FewShot;
using testing::Forest;
using testing::ForestKind;
using testing::kAllForestKinds;
using testing::ManyWorkers;
using testing::RandomChance;
using testing::RandomForest;
using testing::RandomInt;
using testing::Rng;

constexpr AttentionVariant kAllVariants[] = {
    AttentionVariant::kSequence, AttentionVariant::kNode, AttentionVariant::kNodeChunk,
    AttentionVariant::kFlatten, AttentionVariant::kDefault};

PlanOptions RandomOptions(Rng& rng, AttentionVariant variant) {
  constexpr int kGroups[] = {1, 3, 4, 8};
  return {.variant = variant,
          .group_size = kGroups[RandomInt(rng, 0, 3)],
          .num_kv_heads = RandomInt(rng, 1, 3),
          .num_workers = RandomInt(rng, 1, 12),
          .tile_rows = RandomInt(rng, 1, 128),
          .block_tokens = RandomChance(rng, 0.5) ? 0 : RandomInt(rng, 1, 200),
          .cost = {.min_piece = RandomChance(rng, 0.5) ? 1 : 4096,
                   .merge = RandomChance(rng, 0.5) ? 0 : int64_t{1} << RandomInt(rng, 0, 40)}};
}

class TreePlanTest : public ::testing::TestWithParam<AttentionVariant> {};

TEST_P(TreePlanTest, CoversEachQueryKeyPairOnce) {
  TreePlanner planner;  // one for all shapes: nothing may survive from plan to plan
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    constexpr int kPageSizes[] = {16, 32, 64};
    const ForestKind kind = kAllForestKinds[seed % std::size(kAllForestKinds)];
    const Forest forest = RandomForest(rng, kind, kPageSizes[RandomInt(rng, 0, 2)]);
    CheckPlan(planner.Plan(forest.shape, RandomOptions(rng, GetParam())), forest.shape);
    if (HasFatalFailure()) return;
  }
}

TEST_P(TreePlanTest, HandlesAShapeWithoutQueries) {
  TreeShape shape;
  TreePlanner planner;
  EXPECT_EQ(planner.Plan(shape, {.variant = GetParam()}).num_partitions(), 0);
  const int32_t page = 0;
  shape.AddNode(-1, 5, 0, {&page, 1});
  const TreePlan& plan = planner.Plan(shape, {.variant = GetParam(), .num_workers = 4});
  EXPECT_EQ(plan.num_partitions(), 0);
  EXPECT_EQ(plan.stats.unique_kv_tokens, 0);
}

INSTANTIATE_TEST_SUITE_P(Variants, TreePlanTest, ::testing::ValuesIn(kAllVariants));

TEST(TreePlanVariants, ReadWhatTheyPromise) {
  const TreeShape shape = FewShot(1000, 20, 50);
  const int64_t unique = 1000 + 20 * 50;
  const int64_t logical = 20 * 1050;
  TreePlanner planner;
  const auto read = [&](AttentionVariant variant, int tile_rows) {
    return planner.Plan(shape, {.variant = variant, .num_workers = 4, .tile_rows = tile_rows})
        .stats.read_kv_tokens;
  };
  EXPECT_EQ(read(AttentionVariant::kSequence, 128), logical);
  for (const AttentionVariant variant : kAllVariants) {
    if (variant == AttentionVariant::kSequence) continue;
    EXPECT_EQ(read(variant, 128), unique);
  }
  // Two tiles of 10 rows: only the root is read twice.
  EXPECT_EQ(read(AttentionVariant::kDefault, 10), unique + 1000);
}

// All else may be read before the kernel before has ended.
TEST(TreePlanVariants, OnlyTheLastPageOfALeafIsWrittenNow) {
  TreePlanner planner;
  for (const AttentionVariant variant : kAllVariants) {
    const TreePlan& plan = planner.Plan(FewShot(1000, 20, 50), {.variant = variant});
    int written = 0;
    for (const PlanEntry& entry : plan.entries) written += entry.written_now;
    EXPECT_EQ(written, 20);
  }
}

TEST(TreePlanVariants, DefaultSpillsNothingOnOneWorkerAndLittleOnMany) {
  const TreeShape shape = FewShot(4000, 50, 200);
  TreePlanner planner;
  EXPECT_EQ(planner.Plan(shape, {}).stats.partial_rows, 0);
  const TreePlan& plan = planner.Plan(shape, {.num_kv_heads = 1, .num_workers = 8});
  EXPECT_GE(plan.num_partitions(), 8);
  // The wide root is cut into pieces that all rows touch; leaves are whole but for the cuts.
  EXPECT_LE(plan.stats.partial_rows, int64_t{50} * plan.num_partitions());
  EXPECT_EQ(plan.stats.read_kv_tokens, plan.stats.unique_kv_tokens);
}

TEST(TreePlanVariants, DefaultTakesFinerTilesWhereThatIsCheaperThanCutting) {
  TreePlanner planner;
  PlanOptions options{.group_size = 4, .num_kv_heads = 8, .num_workers = 132};
  options.cost = {.token = 288, .min_piece = 1, .merge = 80'000};
  // 16 tiles of 16 rows are 128 units for 132 workers; the short root is read 16 times, not 8.
  const TreeShape short_root = FewShot(256, 256, 32);
  const TreePlan& finer = planner.Plan(short_root, options);
  EXPECT_EQ(finer.stats.partial_rows, 0);
  EXPECT_EQ(finer.num_partitions(), 16);
  options.cost.merge = 0;
  EXPECT_GT(planner.Plan(short_root, options).stats.partial_rows, 0);
  // A long root is cut: reading it twice as often costs more than the merge.
  options.cost.merge = 80'000;
  const TreePlan& cut = planner.Plan(FewShot(20000, 256, 32), options);
  EXPECT_GT(cut.stats.partial_rows, 0);
  EXPECT_EQ(cut.stats.read_kv_tokens, 8 * 20000 + 256 * 32);
}

TEST(TreePlanVariants, DefaultTakesAsManyTilesAsFillTheWorkers) {
  struct Case {
    int width;
    int num_tiles;
    int num_partitions;
  };
  // 132 workers are 16 for each kv head. Branches of four packed rows: 32 would fit in a tile.
  for (const Case& c : {Case{.width = 400, .num_tiles = 16, .num_partitions = 16},
                        Case{.width = 200, .num_tiles = 8, .num_partitions = 16},
                        // Eight or sixteen would read the root too often.
                        Case{.width = 100, .num_tiles = 4, .num_partitions = 16},
                        // Two full rounds.
                        Case{.width = 950, .num_tiles = 32, .num_partitions = 32}}) {
    SCOPED_TRACE(c.width);
    TreePlanner planner;
    const TreePlan& plan = planner.Plan(FewShot(4000, c.width, 200), ManyWorkers(/*group_size=*/4));
    EXPECT_EQ(plan.num_partitions(), c.num_partitions);
    EXPECT_EQ(plan.stats.read_kv_tokens, c.num_tiles * 4000 + c.width * 200);
    EXPECT_EQ(plan.stats.partial_rows == 0, c.num_partitions == c.num_tiles);
  }
}

// Rows of the tiles of a root with `width` leaves, in order.
std::vector<int> DefaultTiles(int width, int tile_rows) {
  TreePlanner planner;
  const TreePlan& plan = planner.Plan(FewShot(10, width, 1), {.tile_rows = tile_rows});
  std::vector<int> tiles;
  for (const PlanPartition& partition : plan.partitions) {
    tiles.push_back(partition.rows.end - partition.rows.begin);
  }
  return tiles;
}

TEST(TreePlanVariants, DefaultEvensOutFewTiles) {
  EXPECT_EQ(DefaultTiles(50, 32), (std::vector<int>{25, 25}));
  std::vector<int> many(16, 20);
  many.push_back(1);
  EXPECT_EQ(DefaultTiles(321, 20), many) << "17 are not few";
  for (int tile_rows = 2; tile_rows <= 64; tile_rows += 2) {
    for (int width = 1; width <= 16 * tile_rows; width += 1 + width / 64) {
      SCOPED_TRACE(std::to_string(width) + " in tiles of " + std::to_string(tile_rows));
      const int num_tiles = (width + tile_rows - 1) / tile_rows;
      const int most = (width + num_tiles - 1) / num_tiles;
      std::vector<int> expected;
      for (int left = width; left > 0; left -= most) expected.push_back(std::min(left, most));
      ASSERT_EQ(DefaultTiles(width, tile_rows), expected);
    }
  }
}

TEST(TreePlanVariants, FlattenCutsEqualBlocks) {
  const TreeShape shape = FewShot(1000, 20, 50);
  TreePlanner planner;
  const TreePlan& plan =
      planner.Plan(shape, {.variant = AttentionVariant::kFlatten, .block_tokens = 128});
  EXPECT_EQ(plan.num_partitions(), 16);  // ceil(2000 / 128)
  for (const PlanPartition& partition : plan.partitions) {
    int tokens = 0;
    for (int e = partition.entry_begin; e < partition.entry_end; ++e) {
      tokens += plan.entries[e].count;
    }
    EXPECT_EQ(tokens, 125);
  }
}

int64_t CostOf(const PlanEntry& entry, const PlanOptions& options) {
  return entry.count *
         (options.cost.token + int64_t{entry.rows.end - entry.rows.begin} * options.group_size);
}

// Where a walk over the entries of a tile that is not cut would cut it in `num_pieces`.
std::vector<int32_t> NaiveCuts(const TreePlan& uncut, int64_t num_pieces) {
  int64_t total = 0;
  for (const PlanEntry& entry : uncut.entries) total += CostOf(entry, uncut.options);
  const int64_t share = (total + num_pieces - 1) / num_pieces;
  std::vector<int32_t> cuts;
  int32_t begin = 0;
  int64_t cost = 0;
  int64_t cut = share;
  for (int32_t e = 0; e < static_cast<int32_t>(uncut.entries.size()); ++e) {
    const int64_t entry_cost = CostOf(uncut.entries[e], uncut.options);
    if (cut < total && e > begin && 2 * cost + entry_cost > 2 * cut) {
      cuts.push_back(e);
      begin = e;
      cut += share;
    }
    cost += entry_cost;
  }
  return cuts;
}

TEST(TreePlanVariants, DefaultCutsATileBetweenThePagesClosestToEvenShares) {
  TreePlanner planner;
  int num_cuts = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const ForestKind kind = kAllForestKinds[seed % std::size(kAllForestKinds)];
    const Forest forest = RandomForest(rng, kind, 1 << RandomInt(rng, 2, 6));
    PlanOptions options = {.group_size = RandomInt(rng, 1, 8),
                           .tile_rows = 1 << 20,
                           .cost = {.token = RandomInt(rng, 1, 1000), .min_piece = 1}};
    const TreePlan uncut = planner.Plan(forest.shape, options);
    ASSERT_EQ(uncut.num_partitions(), 1);
    int64_t total = 0;
    for (const PlanEntry& entry : uncut.entries) total += CostOf(entry, options);
    options.num_workers = RandomInt(rng, 2, 40);
    const TreePlan& plan = planner.Plan(forest.shape, options);
    std::vector<int32_t> cuts;
    for (const PlanPartition& partition : plan.partitions) cuts.push_back(partition.entry_begin);
    cuts.erase(cuts.begin());
    ASSERT_EQ(cuts, NaiveCuts(uncut, std::min<int64_t>(options.num_workers, total)));
    ASSERT_EQ(plan.entries.size(), uncut.entries.size());
    num_cuts += static_cast<int>(cuts.size());
  }
  EXPECT_GT(num_cuts, 1000);
}

TEST(TreePlanVariants, PiecesOfWorkAreEven) {
  const TreeShape shape = FewShot(20000, 50, 200);
  TreePlanner planner;
  const PlanOptions options{.group_size = 4, .num_kv_heads = 8, .num_workers = 132};
  const TreePlan& plan = planner.Plan(shape, options);
  const auto cost = [&](const PlanPartition& partition) {
    int64_t sum = 0;
    for (int e = partition.entry_begin; e < partition.entry_end; ++e) {
      sum += CostOf(plan.entries[e], options);
    }
    return sum;
  };
  const int64_t highest = cost(plan.partitions[plan.run_order.front()]);
  const int64_t lowest = cost(plan.partitions[plan.run_order.back()]);
  EXPECT_GE(lowest, highest * 8 / 10);
  EXPECT_GE(plan.num_partitions() * 8, 128);
}

// Tokens until the last worker is done, units claimed in the plan's order, over an even share.
double Imbalance(const TreePlan& plan) {
  const PlanOptions& options = plan.options;
  std::vector<int64_t> workers(options.num_workers, 0);
  int64_t total = 0;
  for (const int32_t index : plan.run_order) {
    const PlanPartition& partition = plan.partitions[index];
    int64_t tokens = 0;
    for (int e = partition.entry_begin; e < partition.entry_end; ++e) {
      tokens += plan.entries[e].count;
    }
    for (int head = 0; head < options.num_kv_heads; ++head) {
      *std::ranges::min_element(workers) += tokens;
      total += tokens;
    }
  }
  return static_cast<double>(std::ranges::max(workers)) * options.num_workers /
         static_cast<double>(total);
}

// No few pieces begin a round of their own, and tiles that are a few more than a round are cut.
TEST(TreePlanVariants, DefaultKeepsAllWorkersBusy) {
  const PlanOptions options = ManyWorkers(/*group_size=*/4);
  TreePlanner planner;
  for (const int prompt : {2000, 4000, 15000}) {
    for (const int width : {20, 50, 100, 141, 183, 258, 300, 400, 549, 606, 900}) {
      SCOPED_TRACE(std::to_string(width) + " branches below " + std::to_string(prompt));
      EXPECT_LE(Imbalance(planner.Plan(FewShot(prompt, width, 200), options)), 1.15);
    }
  }
}

// Also where there is a tile for every worker without it.
TEST(TreePlanVariants, DefaultCutsALongBranchAmongManyShortOnes) {
  TreeShape shape = FewShot(100, 2000, 100);
  std::vector<int32_t> pages(200'000 / shape.page_size);
  std::iota(pages.begin(), pages.end(), 100'000);
  shape.AddQuery(shape.AddNode(-1, 200'000, 0, pages), 199'999);
  TreePlanner planner;
  const TreePlan& plan = planner.Plan(shape, ManyWorkers(/*group_size=*/16));
  EXPECT_LE(Imbalance(plan), 1.3);
  EXPECT_GE(plan.num_partitions() * 8, 8 * 132) << "of the kind that is meant";
}

// Many tiles over a long shared node: 1024 branches below 280k tokens.
TEST(TreePlanVariants, CountsLargeShapes) {
  const TreeShape shape = FewShot(250'000, 1024, 30);
  TreePlanner planner;
  const TreePlan& plan =
      planner.Plan(shape, {.group_size = 8, .num_kv_heads = 8, .num_workers = 132});
  EXPECT_EQ(plan.stats.logical_kv_tokens, int64_t{1024} * 250'030);
  EXPECT_EQ(plan.stats.unique_kv_tokens, 250'000 + 1024 * 30);
  // 16 rows a tile: 64 tiles, each of which reads the root.
  EXPECT_EQ(plan.stats.read_kv_tokens, 64 * 250'000 + 1024 * 30);
}

TEST(TreePlanDeathTest, RefusesMalformedShapes) {
  TreeShape shape = FewShot(20, 2, 5);
  TreePlanner planner;
  TreeShape bad = shape;
  bad.query_offset[0] = 5;
  EXPECT_DEATH(planner.Plan(bad, {}), "query_offset");
  bad = shape;
  bad.parent[1] = 1;
  EXPECT_DEATH(planner.Plan(bad, {}), "parent");
  bad = shape;
  bad.num_tokens[2] = 17;
  EXPECT_DEATH(planner.Plan(bad, {}), "page_begin");
}

}  // namespace
}  // namespace espalier
