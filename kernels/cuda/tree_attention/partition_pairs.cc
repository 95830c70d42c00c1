#include "kernels/cuda/tree_attention/partition_pairs.h"

#include <algorithm>

#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier {
namespace {

// A pair shares at least one stage of so many, and may differ in length by one of so many.
constexpr int kLeastSharedPart = 4;
constexpr int kMostExcessPart = 4;
// Pairs pay where each KV token is read at most so often, and only if they spare each worker so
// many stages (measured on an H100).
constexpr int kMostReads = 3;
constexpr int kLeastStagesSaved = 3;

struct Length {
  int64_t tokens = 0;
  int64_t groups = 0;
};

std::span<const PlanEntry> EntriesOf(const TreePlan& plan, int32_t place) {
  return plan.EntriesOf(plan.partitions[plan.run_order[place]]);
}

Length LengthOf(std::span<const PlanEntry> entries) {
  Length length;
  for (const PlanEntry& entry : entries) {
    length.tokens += entry.count;
    length.groups += entry.count / kGroupTokens;
  }
  return length;
}

int64_t CeilStages(int64_t tokens) { return (tokens + kStageTokens - 1) / kStageTokens; }

// Whole groups of the entries that both begin with.
int64_t SharedGroups(std::span<const PlanEntry> a, std::span<const PlanEntry> b) {
  int64_t groups = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (a[i].page != b[i].page || a[i].first_slot != b[i].first_slot || a[i].count != b[i].count) {
      break;
    }
    groups += a[i].count / kGroupTokens;
  }
  return groups;
}

}  // namespace

void PartitionPairs::FindNone(const TreePlan& plan) {
  pairs_.clear();
  num_empty_stages_ = 0;
  run_order_ = plan.run_order;
}

void PartitionPairs::FindIfTheyPay(const TreePlan& plan) {
  // Products bind where most reads are of what the cache holds, and keeping step costs them time.
  if (plan.stats.read_kv_tokens > kMostReads * plan.stats.unique_kv_tokens) return FindNone(plan);
  Find(plan);
  if (!Pay(plan)) FindNone(plan);
}

void PartitionPairs::Find(const TreePlan& plan) {
  FindNone(plan);
  ListCandidates(plan);
  is_paired_.assign(plan.num_partitions(), false);
  const auto begins_alike = [&](size_t i, size_t j) {
    return j < candidates_.size() && candidates_[i].first_slot == candidates_[j].first_slot;
  };
  for (size_t i = 0; i + 1 < candidates_.size(); ++i) {
    const int32_t places[2] = {candidates_[i].place, candidates_[i + 1].place};
    Pair pair;
    if (!begins_alike(i, i + 1) || !MakePair(plan, places[0], places[1], &pair)) continue;
    pair.shared.read_again = begins_alike(i, i + 2) || (i > 0 && begins_alike(i, i - 1));
    pairs_.push_back(pair);
    for (const int32_t place : places) is_paired_[place] = true;
    ++i;
  }
  if (!pairs_.empty()) PutPairsFirst(plan);
}

// Partitions that begin with what others read, too, by where that lies.
void PartitionPairs::ListCandidates(const TreePlan& plan) {
  candidates_.clear();
  for (int32_t place = 0; place < plan.num_partitions(); ++place) {
    const PlanEntry& first = EntriesOf(plan, place).front();
    if (!first.read_again) continue;
    candidates_.push_back(
        {.first_slot = int64_t{first.page} * plan.page_size + first.first_slot, .place = place});
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.first_slot != b.first_slot ? a.first_slot < b.first_slot : a.place < b.place;
  });
}

void PartitionPairs::PutPairsFirst(const TreePlan& plan) {
  std::sort(pairs_.begin(), pairs_.end(),
            [](const Pair& a, const Pair& b) { return a.places[0] < b.places[0]; });
  run_order_.clear();
  for (const Pair& pair : pairs_) {
    for (const int32_t place : pair.places) run_order_.push_back(plan.run_order[place]);
    num_empty_stages_ += pair.num_empty_stages;
  }
  for (int32_t place = 0; place < plan.num_partitions(); ++place) {
    if (!is_paired_[place]) run_order_.push_back(plan.run_order[place]);
  }
}

// Not with others beside pairs in more than a round of the workers: pairs are taken first, however
// little they cost.
bool PartitionPairs::Pay(const TreePlan& plan) const {
  const int64_t heads = plan.options.num_kv_heads;
  const int64_t workers = plan.options.num_workers;
  if (2 * num_pairs() < plan.num_partitions() && plan.num_partitions() * heads > workers) {
    return false;
  }
  int64_t stages_saved = 0;
  for (const Pair& pair : pairs_) stages_saved += pair.shared.count;
  return stages_saved * heads >= kLeastStagesSaved * workers;
}

bool PartitionPairs::MakePair(const TreePlan& plan, int32_t a, int32_t b, Pair* pair) {
  const std::span<const PlanEntry> entries[2] = {EntriesOf(plan, a), EntriesOf(plan, b)};
  const Length lengths[2] = {LengthOf(entries[0]), LengthOf(entries[1])};
  const int64_t shared = SharedGroups(entries[0], entries[1]) / kStageGroups;
  const int64_t longer = CeilStages(std::max(lengths[0].tokens, lengths[1].tokens));
  const int64_t shorter = CeilStages(std::min(lengths[0].tokens, lengths[1].tokens));
  if (shared == 0 || shared * kLeastSharedPart < longer ||
      (longer - shorter) * kMostExcessPart > longer) {
    return false;
  }
  const int64_t groups = std::min(lengths[0].groups, lengths[1].groups);
  *pair = {.places = {a, b},
           .num_stages = static_cast<int32_t>(longer),
           .num_empty_stages = static_cast<int32_t>(longer - shorter),
           .shared = {.count = static_cast<int32_t>(shared),
                      .turns = static_cast<int32_t>(groups / kStageGroups - shared),
                      .read_again = false}};
  return true;
}

SharedStages PartitionPairs::shared(int place) const {
  return place / 2 < num_pairs() ? pairs_[place / 2].shared : SharedStages();
}

int32_t PartitionPairs::NumStages(int place, int64_t num_tokens) const {
  if (place / 2 < num_pairs()) return pairs_[place / 2].num_stages;
  return static_cast<int32_t>(CeilStages(num_tokens));
}

}  // namespace espalier
