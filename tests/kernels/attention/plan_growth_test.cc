// Plans of shapes that follow one another, as steps of decoding do: leaves grow, and now and then
// something else changes. What is extended must hold what a plan built anew holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "tests/support/plan_checks.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::CheckPlan;
using testing::Forest;
using testing::ForestKind;
using testing::kAllForestKinds;
using testing::RandomChance;
using testing::RandomForest;
using testing::RandomInt;
using testing::Rng;

const PlanOptions kManyWorkers = testing::ManyWorkers(/*group_size=*/4);

// A forest that can be changed from step to step.
class ChangingForest {
 public:
  struct Node {
    int32_t parent;
    int32_t tokens;
    int32_t first_slot;
    std::vector<int32_t> pages;
    std::vector<int32_t> subtree_end;  // of a draft
  };
  struct Query {
    int32_t node;
    int32_t offset;
  };

  explicit ChangingForest(int page_size) : page_size_(page_size) {}
  explicit ChangingForest(const Forest& forest)
      : page_size_(forest.shape.page_size), next_page_(forest.num_pages) {
    const TreeShape& shape = forest.shape;
    for (int x = 0; x < shape.num_nodes(); ++x) {
      Node node = {.parent = shape.parent[x],
                   .tokens = shape.num_tokens[x],
                   .first_slot = shape.first_slot[x],
                   .pages = {shape.page_ids.begin() + shape.page_begin[x],
                             shape.page_ids.begin() + shape.page_begin[x + 1]},
                   .subtree_end = {}};
      if (const int32_t draft = shape.draft_begin[x]; draft >= 0) {
        const auto begin = shape.draft_subtree_end.begin() + draft;
        node.subtree_end.assign(begin, begin + node.tokens);
      }
      nodes.push_back(std::move(node));
    }
    for (int i = 0; i < shape.num_queries(); ++i) {
      queries.push_back({.node = shape.query_node[i], .offset = shape.query_offset[i]});
    }
  }

  int AddNode(int parent, int tokens) {
    nodes.push_back(
        {.parent = parent, .tokens = 0, .first_slot = 0, .pages = {}, .subtree_end = {}});
    const int node = static_cast<int>(nodes.size()) - 1;
    Lengthen(node, tokens);
    return node;
  }
  void Lengthen(int node, int tokens) {
    Node& of = nodes[node];
    of.tokens += tokens;
    while (static_cast<int>(of.pages.size()) * page_size_ < of.first_slot + of.tokens) {
      of.pages.push_back(next_page_++);
    }
  }
  // Its query sits at its last token.
  void GrowLeaf(Query& query, int tokens) {
    Lengthen(query.node, tokens);
    query.offset += tokens;
  }
  int NewPage() { return next_page_++; }
  // So that no slot becomes that of two nodes, when one that began in its parent's page changes.
  void MoveToNewPages(int node) {
    for (int32_t& page : nodes[node].pages) page = NewPage();
  }

  bool IsDraft(int node) const { return !nodes[node].subtree_end.empty(); }
  bool HasDrafts() const {
    return std::ranges::any_of(nodes, [](const Node& node) { return !node.subtree_end.empty(); });
  }
  bool HasChildren(int node) const {
    return std::ranges::any_of(nodes, [&](const Node& other) { return other.parent == node; });
  }
  int NumQueries(int node) const {
    return static_cast<int>(
        std::ranges::count_if(queries, [&](const Query& query) { return query.node == node; }));
  }
  // A leaf that decodes.
  bool MayGrow(const Query& query) const {
    return !IsDraft(query.node) && !HasChildren(query.node) && NumQueries(query.node) == 1 &&
           query.offset == nodes[query.node].tokens - 1;
  }

  TreeShape Shape() const {
    TreeShape shape;
    shape.page_size = page_size_;
    for (const Node& node : nodes) {
      if (node.subtree_end.empty()) {
        shape.AddNode(node.parent, node.tokens, node.first_slot, node.pages);
      } else {
        shape.AddDraftNode(node.parent, node.first_slot, node.pages, node.subtree_end);
      }
    }
    for (const Query& query : queries) shape.AddQuery(query.node, query.offset);
    return shape;
  }

  std::vector<Node> nodes;
  std::vector<Query> queries;

 private:
  int page_size_;
  int32_t next_page_ = 0;
};

// A root and `width` leaves that decode.
ChangingForest Star(int root_tokens, int width, int leaf_tokens, int page_size = 16) {
  ChangingForest forest(page_size);
  const int root = forest.AddNode(-1, root_tokens);
  for (int i = 0; i < width; ++i) {
    forest.queries.push_back(
        {.node = forest.AddNode(root, leaf_tokens), .offset = leaf_tokens - 1});
  }
  return forest;
}

void GrowAll(ChangingForest& forest) {
  for (ChangingForest::Query& query : forest.queries) forest.GrowLeaf(query, 1);
}

void ExpectSameCounts(const TreePlan& plan, const TreeShape& shape) {
  TreePlanner fresh;
  const PlanStats& stats = fresh.Plan(shape, plan.options).stats;
  EXPECT_EQ(plan.stats.unique_kv_tokens, stats.unique_kv_tokens);
  EXPECT_EQ(plan.stats.logical_kv_tokens, stats.logical_kv_tokens);
}

// Of the busiest worker and the merge: what kDefault weighs.
int64_t CostOfPlan(const TreePlan& plan) {
  const PlanOptions& options = plan.options;
  int64_t costliest = 0;
  int64_t total = 0;
  for (const PlanPartition& partition : plan.partitions) {
    int64_t cost = 0;
    for (int32_t e = partition.entry_begin; e < partition.entry_end; ++e) {
      const PlanEntry& entry = plan.entries[e];
      const int64_t rows = entry.rows.end - entry.rows.begin;
      cost += entry.count * (options.cost.token + rows * options.group_size);
    }
    costliest = std::max(costliest, cost);
    total += cost;
  }
  return std::max(costliest, total * options.num_kv_heads / options.num_workers) +
         (plan.stats.partial_rows > 0 ? options.cost.merge : 0);
}

// Some leaves, by few tokens.
void GrowSome(Rng& rng, ChangingForest& forest) {
  const double share = RandomChance(rng, 0.5) ? 1.0 : 0.5;
  const int most = RandomChance(rng, 0.9) ? 1 : 40;
  for (ChangingForest::Query& query : forest.queries) {
    if (forest.MayGrow(query) && RandomChance(rng, share)) {
      forest.GrowLeaf(query, RandomInt(rng, 1, most));
    }
  }
}

// Something that a step of decoding does not do. May find nothing to change.
void ChangeSomething(Rng& rng, ChangingForest& forest) {
  const int node = RandomInt(rng, 0, static_cast<int>(forest.nodes.size()) - 1);
  const int query = RandomInt(rng, 0, static_cast<int>(forest.queries.size()) - 1);
  ChangingForest::Node& of = forest.nodes[node];
  switch (RandomInt(rng, 0, 7)) {
    case 0:  // fork, or a new root
      if (forest.IsDraft(node)) return;
      forest.queries.push_back({.node = forest.AddNode(RandomChance(rng, 0.9) ? node : -1, 3),
                                .offset = RandomInt(rng, 0, 2)});
      return;
    case 1:  // prune
      if (forest.queries.size() > 1) forest.queries.erase(forest.queries.begin() + query);
      return;
    case 2:  // different parent
      for (int above = node - 1; above >= 0; --above) {
        if (forest.IsDraft(above) || above == of.parent) continue;
        forest.MoveToNewPages(node);
        of.parent = above;
        return;
      }
      return;
    case 3:  // swapped page id
      if (!of.pages.empty()) of.pages[RandomInt(rng, 0, of.pages.size() - 1)] = forest.NewPage();
      return;
    case 4:  // changed query
      if (const int at = forest.queries[query].node; forest.NumQueries(at) == 1) {
        forest.queries[query].offset = RandomInt(rng, 0, forest.nodes[at].tokens - 1);
      }
      return;
    case 5:  // queries of other rows
      std::swap(forest.queries[query], forest.queries.front());
      return;
    case 6:  // a node grows, seen to its end by those below
      if (forest.IsDraft(node)) return;
      forest.MoveToNewPages(node);
      forest.Lengthen(node, RandomInt(rng, 1, 20));
      return;
    case 7:  // slots
      if (of.first_slot == 0) return;
      forest.MoveToNewPages(node);
      --of.first_slot;
      return;
  }
}

class PlanGrowthTest : public ::testing::TestWithParam<AttentionVariant> {};

TEST_P(PlanGrowthTest, PlansOfStepsThatFollowAreAsGoodAsFreshOnes) {
  int extended = 0;
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Rng rng(seed);
    constexpr std::array kPageSizes = {4, 16, 32};
    const ForestKind kind = kAllForestKinds[seed % std::size(kAllForestKinds)];
    ChangingForest forest(RandomForest(rng, kind, kPageSizes[RandomInt(rng, 0, 2)]));
    const PlanOptions options = {
        .variant = GetParam(),
        .group_size = RandomInt(rng, 1, 4),
        .num_kv_heads = RandomInt(rng, 1, 3),
        .num_workers = RandomInt(rng, 1, 12),
        .tile_rows = RandomInt(rng, 1, 128),
        .cost = {.min_piece = RandomChance(rng, 0.5) ? 1 : 4096,
                 .merge = RandomChance(rng, 0.5) ? 0 : int64_t{1} << RandomInt(rng, 0, 30)}};
    TreePlanner planner;
    for (int step = 0; step < 25; ++step) {
      SCOPED_TRACE(::testing::Message() << "step " << step);
      const TreeShape shape = forest.Shape();
      const TreePlan& plan = planner.Plan(shape, options);
      CheckPlan(plan, shape);
      ExpectSameCounts(plan, shape);
      if (HasFailure()) return;
      ASSERT_FALSE(plan.extended && forest.HasDrafts());
      extended += plan.extended;
      GrowSome(rng, forest);
      if (RandomChance(rng, 0.2)) ChangeSomething(rng, forest);
    }
  }
  if (GetParam() == AttentionVariant::kDefault) {
    EXPECT_GT(extended, 150 * 5);
  } else {
    EXPECT_EQ(extended, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, PlanGrowthTest,
                         ::testing::Values(AttentionVariant::kDefault, AttentionVariant::kNode));

TEST(PlanGrowth, LeavesOfAPlanThatIsCutGrowIntoNewPages) {
  ChangingForest forest = Star(4000, 50, 200);
  TreePlanner planner;
  int extended = 0;
  for (int step = 0; step < 60; ++step) {
    SCOPED_TRACE(::testing::Message() << "step " << step);
    const TreeShape shape = forest.Shape();
    const TreePlan& plan = planner.Plan(shape, kManyWorkers);
    ASSERT_GT(plan.stats.partial_rows, 0);
    ASSERT_NO_FATAL_FAILURE(CheckPlan(plan, shape));
    int written = 0;
    for (const PlanEntry& entry : plan.entries) written += entry.written_now;
    ASSERT_EQ(written, 50) << "the last page of each leaf";
    extended += plan.extended;
    GrowAll(forest);
  }
  EXPECT_GE(extended, 50);
}

// Leaves of one token below a long prompt are in the last piece alone, which grows fastest.
TEST(PlanGrowth, PiecesStayBalanced) {
  for (const ChangingForest& start : {Star(4000, 64, 1), Star(4000, 50, 200), Star(300, 200, 20)}) {
    ChangingForest forest = start;
    TreePlanner planner;
    int built = 0;
    for (int step = 0; step < 300; ++step) {
      const TreeShape shape = forest.Shape();
      const TreePlan& plan = planner.Plan(shape, kManyWorkers);
      built += !plan.extended;
      TreePlanner fresh;
      const int64_t best = CostOfPlan(fresh.Plan(shape, kManyWorkers));
      ASSERT_LE(CostOfPlan(plan), best + best / 8) << "step " << step;
      GrowAll(forest);
    }
    EXPECT_LT(built, 60);
  }
}

// By the change, whether the plan may be extended none the less.
TEST(PlanGrowth, ChangesAreNoticed) {
  const auto extended_after = [](const auto& change) {
    ChangingForest forest = Star(4000, 30, 40);
    TreePlanner planner;
    PlanOptions options = kManyWorkers;
    planner.Plan(forest.Shape(), options);
    GrowAll(forest);
    EXPECT_TRUE(planner.Plan(forest.Shape(), options).extended);
    GrowAll(forest);
    change(forest, options);
    const TreeShape shape = forest.Shape();
    const TreePlan& plan = planner.Plan(shape, options);
    CheckPlan(plan, shape);
    ExpectSameCounts(plan, shape);
    return plan.extended;
  };
  using Options = PlanOptions;
  EXPECT_TRUE(extended_after([](ChangingForest&, Options&) {}));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // fork
    forest.queries.push_back({.node = forest.AddNode(5, 1), .offset = 0});
  }));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // prune
    forest.nodes.pop_back();
    forest.queries.pop_back();
  }));
  EXPECT_FALSE(
      extended_after([](ChangingForest& forest, Options&) { forest.nodes[7].parent = 6; }));
  EXPECT_FALSE(
      extended_after([](ChangingForest& forest, Options&) { forest.nodes[7].parent = -1; }));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // swapped page size of slots
    forest.nodes[0].first_slot = 5;
    forest.Lengthen(0, 0);
  }));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // shrunk leaf
    forest.GrowLeaf(forest.queries[3], -4);
  }));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // shrunk root
    forest.nodes[0].tokens -= 1;
  }));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // grown root
    forest.Lengthen(0, 1);
  }));
  EXPECT_FALSE(extended_after(
      [](ChangingForest& forest, Options&) { std::swap(forest.queries[0], forest.queries[1]); }));
  EXPECT_FALSE(extended_after([](ChangingForest& forest, Options&) {  // a run of queries
    forest.queries.push_back({.node = 3, .offset = 7});
  }));
  EXPECT_FALSE(
      extended_after([](ChangingForest&, Options& options) { options.num_workers = 131; }));
  EXPECT_FALSE(extended_after(
      [](ChangingForest&, Options& options) { options.variant = AttentionVariant::kNode; }));
  // Pages are those of the new shape.
  EXPECT_TRUE(extended_after(
      [](ChangingForest& forest, Options&) { forest.nodes[0].pages[9] = forest.NewPage(); }));
}

// Queries of a run see one another's tokens one by one: that is not a leaf's growth.
TEST(PlanGrowth, RunsThatMoveOnArePlannedAnew) {
  ChangingForest forest = Star(4000, 30, 40);
  forest.queries.push_back({.node = 1, .offset = 38});
  TreePlanner planner;
  const auto plan_is_extended = [&] {
    const TreeShape shape = forest.Shape();
    const TreePlan& plan = planner.Plan(shape, kManyWorkers);
    CheckPlan(plan, shape);
    return plan.extended;
  };
  EXPECT_FALSE(plan_is_extended());
  for (size_t i = 1; i < 30; ++i) forest.GrowLeaf(forest.queries[i], 1);
  EXPECT_TRUE(plan_is_extended());
  forest.GrowLeaf(forest.queries.front(), 1);
  forest.queries.back().offset += 1;
  EXPECT_FALSE(plan_is_extended());
}

}  // namespace
}  // namespace espalier
