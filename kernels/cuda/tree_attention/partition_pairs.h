// Which partitions the two blocks of a cluster run side by side, because they begin with the same
// KV: it is then brought to both at once. No CUDA headers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/tree_plan.h"

namespace espalier {

// What of a partition's KV makes stages that both of its pair have, all of whole groups. These are
// the first groups of its entries, and take turns with others, of which both have `turns` at least.
struct SharedStages {
  int32_t count = 0;  // 0: the partition is in no pair
  int32_t turns = 0;
  bool read_again = false;  // by partitions beside the pair, too
};

class PartitionPairs {
 public:
  // Pairs partitions that share at least a quarter of their stages and are of about the same
  // length, if at all so many that it pays.
  void FindIfTheyPay(const TreePlan& plan);
  void Find(const TreePlan& plan);
  // Keeps the plan's order.
  void FindNone(const TreePlan& plan);

  // A permutation of the plan's run order: pairs, two neighbours each, costliest first; then
  // others.
  std::span<const int32_t> run_order() const { return run_order_; }
  int num_pairs() const { return static_cast<int>(pairs_.size()); }
  // Of the partition at `place` of the run order.
  SharedStages shared(int place) const;
  // Stages that a partition of `num_tokens` there has, those without tokens at its end included.
  int32_t NumStages(int place, int64_t num_tokens) const;
  // Stages of all partitions that have no tokens.
  int64_t num_empty_stages() const { return num_empty_stages_; }

 private:
  struct Candidate {
    int64_t first_slot;  // of all slots
    int32_t place;       // in the plan's run order
  };
  struct Pair {
    int32_t places[2];         // in the plan's run order
    int32_t num_stages;        // of each, with those
    int32_t num_empty_stages;  // of the shorter
    SharedStages shared;
  };
  void ListCandidates(const TreePlan& plan);
  static bool MakePair(const TreePlan& plan, int32_t a, int32_t b, Pair* pair);
  bool Pay(const TreePlan& plan) const;
  void PutPairsFirst(const TreePlan& plan);

  std::vector<Candidate> candidates_;
  std::vector<Pair> pairs_;
  std::vector<int32_t> run_order_;
  std::vector<bool> is_paired_;  // [place in the plan's run order]
  int64_t num_empty_stages_ = 0;
};

}  // namespace espalier
