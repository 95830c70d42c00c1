#include "tests/support/plan_checks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "tests/support/random_forest.h"

namespace espalier::testing {
namespace {

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
  int32_t next_entry = 0;
  int32_t highest_page = -1;
  const int most_rows = std::max(1, plan.options.tile_rows / plan.options.group_size);
  for (const PlanPartition& partition : plan.partitions) {
    ASSERT_EQ(partition.entry_begin, next_entry);
    ASSERT_LT(partition.entry_begin, partition.entry_end);
    next_entry = partition.entry_end;
    ASSERT_LT(partition.rows.begin, partition.rows.end);
    ASSERT_LE(partition.rows.end - partition.rows.begin, most_rows);
    for (int32_t e = partition.entry_begin; e < partition.entry_end; ++e) {
      const PlanEntry& entry = plan.entries[e];
      read += entry.count;
      ASSERT_GT(entry.count, 0);
      ASSERT_GE(entry.first_slot, 0);
      ASSERT_LE(entry.first_slot + entry.count, plan.page_size);
      highest_page = std::max(highest_page, entry.page);
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
  ASSERT_EQ(next_entry, static_cast<int32_t>(plan.entries.size()));
  EXPECT_EQ(plan.num_pages, highest_page + 1);
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

// Slots that several partitions read are worth keeping in a cache.
void CheckReadAgain(const TreePlan& plan) {
  std::map<int64_t, int> reads;
  const auto for_each_slot = [&](const auto& visit) {
    for (const PlanEntry& entry : plan.entries) {
      for (int s = 0; s < entry.count; ++s) {
        visit(entry, int64_t{entry.page} * plan.page_size + entry.first_slot + s);
      }
    }
  };
  for_each_slot([&](const PlanEntry&, int64_t slot) { ++reads[slot]; });
  for_each_slot([&](const PlanEntry& entry, int64_t slot) {
    ASSERT_TRUE(entry.read_again || reads[slot] == 1) << "slot " << slot;
  });
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

}  // namespace

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
  CheckReadAgain(plan);
  CheckTargets(plan);
  std::vector<int32_t> order = plan.run_order;
  std::sort(order.begin(), order.end());
  std::vector<int32_t> partitions(plan.num_partitions());
  std::iota(partitions.begin(), partitions.end(), 0);
  ASSERT_EQ(order, partitions);
}

}  // namespace espalier::testing
