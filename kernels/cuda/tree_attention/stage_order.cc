#include "kernels/cuda/tree_attention/stage_order.h"

#include <algorithm>

#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier {
namespace {

constexpr int kHalfRows = kMostPackedRows / 2;
constexpr int kStageGroups = kStageTokens / kGroupTokens;

bool IsNarrow(RowInterval rows, int group_size) {
  return (rows.end - rows.begin) * group_size <= kHalfRows;
}

// 0: what both halves of a wide partition's rows see; 1: the lower, 2: the upper. In a narrow one
// 0: what others read, too; 1: what none does.
int KindOf(const PlanEntry& entry, RowInterval rows, int group_size) {
  if (IsNarrow(rows, group_size)) return entry.read_again ? 0 : 1;
  if ((entry.rows.end - rows.begin) * group_size <= kHalfRows) return 1;
  return (entry.rows.begin - rows.begin) * group_size >= kHalfRows ? 2 : 0;
}

}  // namespace

std::span<const EntryPart> StageOrder::Of(std::span<const PlanEntry> entries, RowInterval rows,
                                          int group_size) {
  parts_.clear();
  for (Kind& kind : kinds_) {
    kind.entries.clear();
    kind = {.entries = std::move(kind.entries)};
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    Kind& kind = kinds_[KindOf(entries[i], rows, group_size)];
    kind.entries.push_back(static_cast<int32_t>(i));
    kind.num_groups += entries[i].count / kGroupTokens;
  }
  // So few stages of it that what nobody else reads is asked for at once in any case.
  const bool few_shared = kinds_[0].num_groups < kStartStages * kStageGroups;
  if (few_shared && IsNarrow(rows, group_size)) return {};
  const auto is_all = [&](const Kind& kind) { return kind.entries.size() == entries.size(); };
  if (std::ranges::any_of(kinds_, is_all)) return {};

  // The whole stages, of each kind the i-th at (i + 1/2) of its number.
  while (true) {
    Kind* next = nullptr;
    for (Kind& kind : kinds_) {
      const int64_t stages = kind.num_groups / kStageGroups;
      if (kind.taken == stages) continue;
      const auto before = [](const Kind& a, const Kind& b) {
        return (2 * a.taken + 1) * (b.num_groups / kStageGroups) <
               (2 * b.taken + 1) * (a.num_groups / kStageGroups);
      };
      if (next == nullptr || before(kind, *next)) next = &kind;
    }
    if (next == nullptr) break;
    Take(entries, next, kStageGroups);
    ++next->taken;
  }
  for (Kind& kind : kinds_) Take(entries, &kind, kind.num_groups);
  return parts_;
}

// What follows of the kind, at most so many groups, and all that is of no group before the next.
void StageOrder::Take(std::span<const PlanEntry> entries, Kind* kind, int64_t groups) {
  while (kind->at < kind->entries.size()) {
    const int32_t index = kind->entries[kind->at];
    const int32_t left = entries[index].count - kind->offset;
    const int32_t in_groups = left / kGroupTokens;
    if (in_groups > 0 && groups == 0) return;
    const bool ends = in_groups <= groups;
    const int32_t count = ends ? left : static_cast<int32_t>(groups) * kGroupTokens;
    parts_.push_back({.entry = index, .offset = kind->offset, .count = count});
    groups -= ends ? in_groups : groups;
    kind->offset = ends ? 0 : kind->offset + count;
    kind->at += ends ? 1 : 0;
  }
}

}  // namespace espalier
