#include "kernels/cuda/tree_attention/stage_order.h"

#include <algorithm>

#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier {
namespace {

constexpr int kHalfRows = kMostPackedRows / 2;

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

void StageOrder::Kind::Clear() {
  parts.clear();
  num_groups = 0;
  at = 0;
  taken = 0;
}

void StageOrder::Kind::Add(const EntryPart& part) {
  parts.push_back(part);
  num_groups += part.count / kGroupTokens;
}

std::span<const EntryPart> StageOrder::Of(std::span<const PlanEntry> entries, RowInterval rows,
                                          int group_size, const SharedStages& shared) {
  parts_.clear();
  SortByKind(entries, rows, group_size, int64_t{shared.count} * kStageGroups);
  if (shared.count == 0) {
    // So few stages of it that what nobody else reads is asked for at once in any case.
    const bool few_shared = kinds_[0].num_groups < kStartStages * kStageGroups;
    if (few_shared && IsNarrow(rows, group_size)) return {};
    const auto is_all = [&](const Kind& kind) { return kind.parts.size() == entries.size(); };
    if (std::ranges::any_of(kinds_, is_all)) return {};
  }

  // Each kind's i-th stage at (i + 1/2) of its number.
  for (int64_t others = 0; shared_.taken < shared.count || others < shared.turns;) {
    if ((2 * shared_.taken + 1) * shared.turns <= (2 * others + 1) * shared.count) {
      Take(&shared_, kStageGroups);
      ++shared_.taken;
    } else {
      TakeStage();
      ++others;
    }
  }
  while (TakeStageOfOneKind()) {
  }
  for (Kind& kind : kinds_) Take(&kind, kind.num_groups);
  return parts_;
}

void StageOrder::SortByKind(std::span<const PlanEntry> entries, RowInterval rows, int group_size,
                            int64_t shared_groups) {
  for (Kind& kind : kinds_) kind.Clear();
  shared_.Clear();
  for (size_t i = 0; i < entries.size(); ++i) {
    EntryPart part = {.entry = static_cast<int32_t>(i),
                      .offset = 0,
                      .count = entries[i].count,
                      .is_shared = false};
    const int64_t left = shared_groups - shared_.num_groups;
    if (left > 0) {
      EntryPart first = part;
      first.is_shared = true;
      if (left < part.count / kGroupTokens) first.count = static_cast<int32_t>(left) * kGroupTokens;
      shared_.Add(first);
      part.offset = first.count;
      part.count -= first.count;
      if (part.count == 0) continue;
    }
    kinds_[KindOf(entries[i], rows, group_size)].Add(part);
  }
}

// False: no kind has as much left.
bool StageOrder::TakeStageOfOneKind() {
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
  if (next == nullptr) return false;
  Take(next, kStageGroups);
  ++next->taken;
  return true;
}

// One that there is: of what kinds have left, in the end.
void StageOrder::TakeStage() {
  if (TakeStageOfOneKind()) return;
  int64_t groups = kStageGroups;
  for (Kind& kind : kinds_) groups = Take(&kind, groups);
}

// What follows of the kind, at most so many groups, and all that is of no group before the next.
// How many groups it lacked.
int64_t StageOrder::Take(Kind* kind, int64_t groups) {
  while (kind->at < kind->parts.size()) {
    EntryPart& part = kind->parts[kind->at];
    const int32_t in_groups = part.count / kGroupTokens;
    if (in_groups > 0 && groups == 0) break;
    const bool ends = in_groups <= groups;
    EntryPart taken = part;
    if (!ends) taken.count = static_cast<int32_t>(groups) * kGroupTokens;
    parts_.push_back(taken);
    groups -= taken.count / kGroupTokens;
    part.offset += taken.count;
    part.count -= taken.count;
    if (ends) ++kind->at;
  }
  return groups;
}

}  // namespace espalier
