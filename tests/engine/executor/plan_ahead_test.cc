#include "engine/executor/plan_ahead.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::RandomChance;
using testing::RandomInt;
using testing::Rng;

bool operator==(const PlanEntry& a, const PlanEntry& b) {
  return a.page == b.page && a.first_slot == b.first_slot && a.count == b.count &&
         a.rows == b.rows && a.slot_rows == b.slot_rows && a.read_again == b.read_again &&
         a.written_now == b.written_now;
}
bool operator==(const PlanPartition& a, const PlanPartition& b) {
  return a.rows == b.rows && a.entry_begin == b.entry_begin && a.entry_end == b.entry_end &&
         a.target_begin == b.target_begin;
}

template <typename T>
bool Same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const T& x, const T& y) { return x == y; });
}

void ExpectSamePlan(const TreePlan& got, const TreePlan& want) {
  EXPECT_EQ(got.page_size, want.page_size);
  EXPECT_EQ(got.num_pages, want.num_pages);
  EXPECT_TRUE(Same(got.query_of_row, want.query_of_row));
  EXPECT_TRUE(Same(got.entries, want.entries));
  EXPECT_TRUE(Same(got.slot_rows, want.slot_rows));
  EXPECT_TRUE(Same(got.partitions, want.partitions));
  EXPECT_TRUE(Same(got.row_targets, want.row_targets));
  EXPECT_TRUE(Same(got.run_order, want.run_order));
  EXPECT_TRUE(Same(got.merge_rows, want.merge_rows));
  EXPECT_TRUE(Same(got.merge_begin, want.merge_begin));
  EXPECT_TRUE(Same(got.merge_partials, want.merge_partials));
  EXPECT_EQ(got.stats.unique_kv_tokens, want.stats.unique_kv_tokens);
  EXPECT_EQ(got.stats.logical_kv_tokens, want.stats.logical_kv_tokens);
  EXPECT_EQ(got.stats.partial_rows, want.stats.partial_rows);
}

// A tree that decodes: leaves grow, sometimes one forks, ends, or another begins to fill.
class GrowingTree {
 public:
  GrowingTree(Rng& rng, int page_size) : rng_(rng), page_size_(page_size) {
    AddNode(-1, RandomInt(rng, 1, 200));
    for (int i = RandomInt(rng, 1, 8); i > 0; --i) AddNode(0, RandomInt(rng, 1, 40));
  }

  void Grow() {
    for (size_t node = 0; node < nodes_.size(); ++node) {
      if (IsLeaf(static_cast<int>(node))) Lengthen(nodes_[node], 1);
    }
  }
  // The pages that nodes begin next, in order.
  std::vector<int32_t> NextPages(int count) const {
    std::vector<int32_t> pages;
    for (int i = 0; i < count; ++i) pages.push_back(PageId(next_page_ + i));
    return pages;
  }
  void Change() {
    const int leaf = RandomInt(rng_, 0, static_cast<int>(nodes_.size()) - 1);
    if (!IsLeaf(leaf)) return;
    AddNode(leaf, RandomInt(rng_, 1, 3));
    AddNode(leaf, 1);
  }

  // One query at the end of each leaf; with `prefill` a run of them.
  TreeShape Shape(bool prefill) const {
    TreeShape shape;
    shape.page_size = page_size_;
    for (const Node& node : nodes_) shape.AddNode(node.parent, node.tokens, 0, node.pages);
    for (size_t node = 0; node < nodes_.size(); ++node) {
      if (!IsLeaf(static_cast<int>(node))) continue;
      const int last = nodes_[node].tokens - 1;
      for (int offset = prefill ? std::max(0, last - 2) : last; offset <= last; ++offset) {
        shape.AddQuery(static_cast<int>(node), offset);
      }
    }
    return shape;
  }

 private:
  struct Node {
    int parent;
    int tokens;
    std::vector<int32_t> pages;
  };

  void AddNode(int parent, int tokens) {
    nodes_.push_back({.parent = parent, .tokens = 0, .pages = {}});
    Lengthen(nodes_.back(), tokens);
  }
  // In no order.
  static int32_t PageId(int64_t i) { return static_cast<int32_t>(i * 7919 % 100'003); }
  void Lengthen(Node& node, int tokens) {
    node.tokens += tokens;
    while (static_cast<int>(node.pages.size()) * page_size_ < node.tokens) {
      node.pages.push_back(PageId(next_page_++));
    }
  }
  bool IsLeaf(int node) const {
    return std::none_of(nodes_.begin(), nodes_.end(),
                        [&](const Node& other) { return other.parent == node; });
  }

  Rng& rng_;
  const int page_size_;
  std::vector<Node> nodes_;
  int64_t next_page_ = 1;
};

TEST(PlanAheadTest, PlansAreTheSameWhetherGuessedOrNot) {
  int64_t hits = 0;
  int64_t pages_begun = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Rng rng(seed);
    const PlanOptions options = {
        .variant = static_cast<AttentionVariant>(RandomInt(rng, 0, 4)),
        .group_size = RandomInt(rng, 1, 8),
        .num_kv_heads = RandomInt(rng, 1, 8),
        .num_workers = RandomInt(rng, 1, 132),
    };
    GrowingTree tree(rng, 16 << RandomInt(rng, 0, 2));
    PlanAhead ahead(options);
    TreePlanner planner;
    size_t pages_before = 0;
    const TreePlan* prepared = nullptr;
    for (int step = 0; step < 50; ++step) {
      const TreeShape shape = tree.Shape(/*prefill=*/RandomChance(rng, 0.05));
      const TreePlan& plan = ahead.Plan(shape);
      ExpectSamePlan(plan, planner.Plan(shape, options));
      if (HasFailure()) return;
      if (ahead.came_true()) {
        EXPECT_EQ(&plan, prepared);
        ++hits;
        pages_begun += shape.page_ids.size() > pages_before;
      }
      pages_before = shape.page_ids.size();
      std::vector<int32_t> next_pages = tree.NextPages(shape.num_queries());
      if (RandomChance(rng, 0.05)) next_pages.clear();
      if (RandomChance(rng, 0.05)) std::ranges::reverse(next_pages);
      prepared = ahead.Prepare(shape, next_pages);
      tree.Grow();
      if (RandomChance(rng, 0.1)) tree.Change();
    }
  }
  EXPECT_GT(hits, 60 * 25);
  EXPECT_GT(pages_begun, 100);
}

// A prompt, and below it questions of which each grows a branch.
std::vector<TreeNode> FewShot(Rng& rng, int max_tokens) {
  std::vector<TreeNode> nodes(1);
  nodes[0].tokens.resize(RandomInt(rng, 1, 100));
  for (int i = RandomInt(rng, 1, 20); i > 0; --i) {
    nodes[0].children.push_back(static_cast<int>(nodes.size()));
    TreeNode& node = nodes.emplace_back();
    node.parent = 0;
    node.tokens.assign(RandomInt(rng, 1, 40), i);
    node.max_tokens = max_tokens;
    node.generation.emplace().ignore_eos = true;
  }
  return nodes;
}

// While branches go on, pages are begun as the scheduler said.
TEST(PlanAheadTest, GuessesEveryStepOfBranchesThatGoOn) {
  constexpr int kTokens = 40;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Rng rng(seed);
    FakeTokenizer tokenizer(256);
    PagePool pool(1000);
    RadixTree radix(&pool, 16);
    Scheduler scheduler({.max_batch_tokens = 2048}, &pool, &radix);
    // Two trees, the second some steps later, so that branches do not begin their pages together.
    const auto submit = [&](const char* id) {
      scheduler.Submit(std::make_unique<DecodeTree>(
          DecodeTreeInit{.tree_id = id,
                         .cache_salt = id,
                         .seed = seed,
                         .deadline = std::nullopt,
                         .nodes = FewShot(rng, kTokens),
                         .outbox = std::make_shared<Outbox>(99, nullptr),
                         .tokenizer = &tokenizer,
                         .submitted = absl::UnixEpoch()}));
    };
    submit("first");
    PlanAhead ahead({});
    const int second_at = RandomInt(rng, 5, 15);
    for (int step = 0; step < kTokens; ++step) {
      if (step == second_at) submit("second");
      const StepBatch* batch = scheduler.Schedule(absl::UnixEpoch());
      ASSERT_NE(batch, nullptr);
      ahead.Plan(batch->shape);
      // A prompt's step, and the one after, cannot be guessed.
      const bool filled = step < 2 || (step >= second_at && step < second_at + 2);
      EXPECT_EQ(ahead.came_true(), !filled) << "step " << step;
      ahead.Prepare(batch->shape, batch->next_pages);
      std::vector<Sample> samples(batch->tasks.size());
      for (Sample& sample : samples) sample.token = RandomInt(rng, 0, 100);
      scheduler.Commit(samples, std::vector<uint8_t>(batch->num_rows(), 0), absl::UnixEpoch());
      scheduler.Emit();
    }
    scheduler.CancelAll(absl::CancelledError("the end"), absl::UnixEpoch());
  }
}

}  // namespace
}  // namespace espalier
