// The order of a partition's KV: nothing lost, stages of one kind, kinds spread evenly.
#include "kernels/cuda/tree_attention/stage_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cuda/tree_attention/device_plan.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::RandomChance;
using testing::RandomInt;
using testing::Rng;

constexpr int kHalfRows = kMostPackedRows / 2;

// Of wide partitions; of narrow ones kBoth is what others read, too, and kLower what none does.
enum Kind { kBoth, kLower, kUpper };

struct Case {
  explicit Case(Rng& rng)
      : group(1 << RandomInt(rng, 0, 3)),
        first_row(RandomInt(rng, 0, 1000)),
        narrow(RandomChance(rng, 0.4)) {
    const int page_size = 16 << RandomInt(rng, 0, 2);
    const int most_rows = NumRows();
    const double shared = RandomChance(rng, 0.3) ? 0.0 : 0.3;
    for (int i = RandomInt(rng, 1, 300); i > 0; --i) {
      const int begin = RandomChance(rng, shared) ? 0 : RandomInt(rng, 0, most_rows - 1);
      const int end =
          RandomChance(rng, shared) ? most_rows : std::min(most_rows, begin + RandomInt(rng, 1, 3));
      const int count = RandomChance(rng, 0.6) ? page_size : RandomInt(rng, 1, page_size);
      entries.push_back({.page = i,
                         .first_slot = 0,
                         .count = count,
                         .rows = {first_row + begin, first_row + std::max(end, begin + 1)},
                         .slot_rows = -1,
                         .read_again = RandomChance(rng, shared),
                         .written_now = false});
    }
  }
  int NumRows() const { return (narrow ? kHalfRows : kMostPackedRows) / group; }
  RowInterval Rows() const { return {first_row, first_row + NumRows()}; }
  Kind KindOf(const PlanEntry& entry) const {
    if (narrow) return entry.read_again ? kBoth : kLower;
    if ((entry.rows.end - first_row) * group <= kHalfRows) return kLower;
    return (entry.rows.begin - first_row) * group >= kHalfRows ? kUpper : kBoth;
  }
  std::vector<int64_t> GroupsOfKinds() const {
    std::vector<int64_t> groups(3);
    for (const PlanEntry& entry : entries) groups[KindOf(entry)] += entry.count / kGroupTokens;
    return groups;
  }

  // Whether the order of the entries will do.
  bool IsInOrder() const {
    std::vector<int> entries_of_kind(3);
    for (const PlanEntry& entry : entries) ++entries_of_kind[KindOf(entry)];
    if (std::ranges::count(entries_of_kind, 0) == 2) return true;
    return narrow && GroupsOfKinds()[kBoth] < kStartStages * kStageGroups;
  }

  int group;
  int32_t first_row;
  bool narrow;
  std::vector<PlanEntry> entries;
};

TEST(StageOrder, TakesEverySlotOnceAndSpreadsStagesOfOneKind) {
  StageOrder order;
  int num_narrow = 0;
  int num_wide = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const Case c(rng);
    const std::span<const EntryPart> parts = order.Of(c.entries, c.Rows(), c.group, {});
    ASSERT_EQ(parts.empty(), c.IsInOrder());
    if (parts.empty()) continue;
    ++(c.narrow ? num_narrow : num_wide);

    std::vector<int> taken(c.entries.size(), 0);
    std::vector<Kind> groups;
    for (const EntryPart& part : parts) {
      const PlanEntry& entry = c.entries[part.entry];
      ASSERT_EQ(part.offset, taken[part.entry]);
      taken[part.entry] += part.count;
      const bool is_last = taken[part.entry] == entry.count;
      ASSERT_TRUE(is_last || part.count % kGroupTokens == 0);
      groups.insert(groups.end(), part.count / kGroupTokens, c.KindOf(entry));
    }
    for (size_t i = 0; i < taken.size(); ++i) ASSERT_EQ(taken[i], c.entries[i].count);

    std::vector<int64_t> stages = c.GroupsOfKinds();
    for (int64_t& count : stages) count /= kStageGroups;
    const int64_t num_stages = std::accumulate(stages.begin(), stages.end(), int64_t{0});
    std::vector<int64_t> seen(3, 0);
    for (int64_t s = 0; s < num_stages; ++s) {
      const Kind kind = groups[s * kStageGroups];
      for (int i = 1; i < kStageGroups; ++i) ASSERT_EQ(groups[s * kStageGroups + i], kind);
      ++seen[kind];
      for (int k = 0; k < 3; ++k) {
        const double even = static_cast<double>((s + 1) * stages[k]) / num_stages;
        ASSERT_LE(std::abs(seen[k] - even), 2) << "kind " << k << " after stage " << s;
      }
    }
    EXPECT_EQ(seen, stages);
  }
  EXPECT_GT(num_narrow, 80);
  EXPECT_GT(num_wide, 150);
}

}  // namespace
}  // namespace espalier
