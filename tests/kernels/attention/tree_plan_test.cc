// What every plan must hold, whatever the variant: each (query, key) pair is covered exactly once,
// each row's result goes to one place, and the counters count what they say.
#include "kernels/attention/tree_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::Forest;
using testing::ForestKind;
using testing::kAllForestKinds;
using testing::RandomChance;
using testing::RandomForest;
using testing::RandomInt;
using testing::Rng;
using testing::VisibleSlots;

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

using Pair = std::pair<int32_t, int64_t>;  // (query, slot id)

RowInterval SeenBy(const TreePlan& plan, const PlanEntry& entry, int slot) {
  return entry.slot_rows < 0 ? entry.rows : plan.slot_rows[entry.slot_rows + slot];
}

std::vector<Pair> PairsOfPlan(const TreePlan& plan) {
  std::vector<Pair> pairs;
  for (const PlanPartition& partition : plan.partitions) {
    for (int32_t e = partition.entry_begin; e < partition.entry_end; ++e) {
      const PlanEntry& entry = plan.entries[e];
      for (int s = 0; s < entry.count; ++s) {
        const RowInterval rows = SeenBy(plan, entry, s);
        for (int32_t row = rows.begin; row < rows.end; ++row) {
          pairs.emplace_back(plan.query_of_row[row],
                             int64_t{entry.page} * plan.page_size + entry.first_slot + s);
        }
      }
    }
  }
  std::sort(pairs.begin(), pairs.end());
  return pairs;
}

std::vector<Pair> PairsOfShape(const TreeShape& shape) {
  std::vector<Pair> pairs;
  for (int i = 0; i < shape.num_queries(); ++i) {
    for (const int64_t slot : VisibleSlots(shape, i)) pairs.emplace_back(i, slot);
  }
  std::sort(pairs.begin(), pairs.end());
  return pairs;
}

void CheckEntries(const TreePlan& plan) {
  int64_t read = 0;
  const int most_rows = std::max(1, plan.options.tile_rows / plan.options.group_size);
  for (const PlanPartition& partition : plan.partitions) {
    ASSERT_LT(partition.entry_begin, partition.entry_end);
    ASSERT_LT(partition.rows.begin, partition.rows.end);
    ASSERT_LE(partition.rows.end - partition.rows.begin, most_rows);
    for (int32_t e = partition.entry_begin; e < partition.entry_end; ++e) {
      const PlanEntry& entry = plan.entries[e];
      read += entry.count;
      ASSERT_GT(entry.count, 0);
      ASSERT_GE(entry.first_slot, 0);
      ASSERT_LE(entry.first_slot + entry.count, plan.page_size);
      ASSERT_LT(entry.page, plan.num_pages);
      ASSERT_GE(entry.rows.begin, partition.rows.begin);
      ASSERT_LE(entry.rows.end, partition.rows.end);
      std::set<int32_t> rows_with_key;
      for (int s = 0; s < entry.count; ++s) {
        const RowInterval rows = SeenBy(plan, entry, s);
        ASSERT_LT(rows.begin, rows.end) << "a slot that nobody sees is in an entry";
        for (int32_t row = rows.begin; row < rows.end; ++row) rows_with_key.insert(row);
      }
      ASSERT_EQ(*rows_with_key.begin(), entry.rows.begin);
      ASSERT_EQ(*rows_with_key.rbegin(), entry.rows.end - 1);
      ASSERT_EQ(static_cast<int>(rows_with_key.size()), entry.rows.end - entry.rows.begin);
    }
  }
  EXPECT_EQ(plan.stats.read_kv_tokens, read);
}

// Slots that a kernel before the attention may still be writing: those of the queries' own tokens.
void CheckWrittenNow(const TreeShape& shape, const TreePlan& plan) {
  std::set<int64_t> own;
  for (int i = 0; i < shape.num_queries(); ++i) {
    const int node = shape.query_node[i];
    const int slot = shape.first_slot[node] + shape.query_offset[i];
    const int32_t page = shape.page_ids[shape.page_begin[node] + slot / shape.page_size];
    own.insert(int64_t{page} * shape.page_size + slot % shape.page_size);
  }
  for (const PlanEntry& entry : plan.entries) {
    for (int s = 0; s < entry.count; ++s) {
      const int64_t slot = int64_t{entry.page} * plan.page_size + entry.first_slot + s;
      ASSERT_TRUE(entry.written_now || !own.contains(slot)) << "slot " << slot;
    }
  }
}

// A row is written by one partition alone, or merged from all that touch it, in plan order.
void CheckTargets(const TreePlan& plan) {
  std::map<int32_t, std::vector<int32_t>> partials_of_row;
  std::vector<int> direct(plan.num_rows(), 0);
  std::set<int32_t> partials;
  for (const PlanPartition& partition : plan.partitions) {
    std::set<int32_t> touched;
    for (int32_t e = partition.entry_begin; e < partition.entry_end; ++e) {
      for (int32_t row = plan.entries[e].rows.begin; row < plan.entries[e].rows.end; ++row) {
        touched.insert(row);
      }
    }
    for (int32_t row = partition.rows.begin; row < partition.rows.end; ++row) {
      const int32_t target = plan.row_targets[partition.target_begin + row - partition.rows.begin];
      ASSERT_EQ(target == TreePlan::kUntouched, !touched.contains(row));
      if (target == TreePlan::kDirect) ++direct[row];
      if (target >= 0) {
        ASSERT_TRUE(partials.insert(target).second);
        partials_of_row[row].push_back(target);
      }
    }
  }
  ASSERT_EQ(static_cast<int64_t>(partials.size()), plan.stats.partial_rows);
  if (!partials.empty()) {
    ASSERT_EQ(*partials.begin(), 0);
    ASSERT_EQ(*partials.rbegin(), plan.stats.partial_rows - 1);
  }
  ASSERT_EQ(partials_of_row.size(), plan.merge_rows.size());
  ASSERT_EQ(plan.merge_begin.size(), plan.merge_rows.size() + 1);
  for (int32_t row = 0; row < plan.num_rows(); ++row) {
    ASSERT_EQ(direct[row], partials_of_row.contains(row) ? 0 : 1);
  }
  for (size_t i = 0; i < plan.merge_rows.size(); ++i) {
    const std::vector<int32_t> listed(plan.merge_partials.begin() + plan.merge_begin[i],
                                      plan.merge_partials.begin() + plan.merge_begin[i + 1]);
    ASSERT_GE(listed.size(), 2u);
    ASSERT_EQ(listed, partials_of_row[plan.merge_rows[i]]);
  }
}

void CheckPlan(const TreePlan& plan, const TreeShape& shape) {
  std::vector<int32_t> queries = plan.query_of_row;
  std::sort(queries.begin(), queries.end());
  std::vector<int32_t> all(shape.num_queries());
  std::iota(all.begin(), all.end(), 0);
  ASSERT_EQ(queries, all);

  const std::vector<Pair> pairs = PairsOfShape(shape);
  ASSERT_EQ(PairsOfPlan(plan), pairs);
  std::set<int64_t> slots;
  for (const auto& [query, slot] : pairs) slots.insert(slot);
  EXPECT_EQ(plan.stats.logical_kv_tokens, static_cast<int64_t>(pairs.size()));
  EXPECT_EQ(plan.stats.unique_kv_tokens, static_cast<int64_t>(slots.size()));

  CheckEntries(plan);
  CheckWrittenNow(shape, plan);
  CheckTargets(plan);
  std::vector<int32_t> order = plan.run_order;
  std::sort(order.begin(), order.end());
  std::vector<int32_t> partitions(plan.num_partitions());
  std::iota(partitions.begin(), partitions.end(), 0);
  ASSERT_EQ(order, partitions);
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

// A root of `root_tokens` and `width` leaves of `leaf_tokens`, each with a query at its end.
TreeShape FewShot(int root_tokens, int width, int leaf_tokens) {
  TreeShape shape;
  int32_t next_page = 0;
  const auto pages = [&](int tokens) {
    std::vector<int32_t> ids((tokens + shape.page_size - 1) / shape.page_size);
    for (int32_t& id : ids) id = next_page++;
    return ids;
  };
  const int root = shape.AddNode(-1, root_tokens, 0, pages(root_tokens));
  for (int i = 0; i < width; ++i) {
    shape.AddQuery(shape.AddNode(root, leaf_tokens, 0, pages(leaf_tokens)), leaf_tokens - 1);
  }
  return shape;
}

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

TEST(TreePlanVariants, PiecesOfWorkAreEven) {
  const TreeShape shape = FewShot(20000, 50, 200);
  TreePlanner planner;
  const PlanOptions options{.group_size = 4, .num_kv_heads = 8, .num_workers = 132};
  const TreePlan& plan = planner.Plan(shape, options);
  const auto cost = [&](const PlanPartition& partition) {
    int64_t sum = 0;
    for (int e = partition.entry_begin; e < partition.entry_end; ++e) {
      const PlanEntry& entry = plan.entries[e];
      sum += entry.count *
             (options.cost.token + int64_t{entry.rows.end - entry.rows.begin} * options.group_size);
    }
    return sum;
  };
  const int64_t highest = cost(plan.partitions[plan.run_order.front()]);
  const int64_t lowest = cost(plan.partitions[plan.run_order.back()]);
  EXPECT_GE(lowest, highest * 8 / 10);
  EXPECT_GE(plan.num_partitions() * 8, 128);
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
