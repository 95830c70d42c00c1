// Random forests with queries, for tests of the planner and of attention, and the definition of
// what a query sees, written as plainly as it can be.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/attention/tree_shape.h"

namespace espalier::testing {

using Rng = std::mt19937_64;

// Uniform in [low, high].
int RandomInt(Rng& rng, int low, int high);
bool RandomChance(Rng& rng, double probability);

struct Forest {
  TreeShape shape;
  int num_pages = 0;  // page ids are below; some pages are nobody's
};

enum class ForestKind {
  kChain,    // one child each
  kStar,     // one root, many leaves
  kComb,     // a spine with a leaf at each vertebra
  kSingles,  // a random tree of one-token nodes
  kMixed,    // random trees, several roots, empty roots, drafts, prefill runs
};
inline constexpr ForestKind kAllForestKinds[] = {ForestKind::kChain, ForestKind::kStar,
                                                 ForestKind::kComb, ForestKind::kSingles,
                                                 ForestKind::kMixed};

// Lengths favour 1 and page size - 1, + 0, + 1. Some children go on in their parent's last page,
// as the lower half of a split node does. Has at least one query; queries are in random order.
Forest RandomForest(Rng& rng, ForestKind kind, int page_size);

// The slot ids (page * page_size + slot) of the keys that a query sees, from the root down.
std::vector<int64_t> VisibleSlots(const TreeShape& shape, int query);

}  // namespace espalier::testing
