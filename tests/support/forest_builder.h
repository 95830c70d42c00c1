// Forests made node by node, for tests that need one of a given kind rather than a random one.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/attention/tree_shape.h"
#include "tests/support/random_forest.h"

namespace espalier::testing {

// Nodes begin at a page of their own; page ids count up from 0.
class ForestBuilder {
 public:
  ForestBuilder() = default;
  explicit ForestBuilder(int page_size) { forest_.shape.page_size = page_size; }

  int AddNode(int parent, int tokens) {
    return forest_.shape.AddNode(parent, tokens, 0, NewPages(tokens));
  }
  // With a query at its end.
  void AddLeaf(int parent, int tokens) {
    forest_.shape.AddQuery(AddNode(parent, tokens), tokens - 1);
  }
  // The node's last `tokens` are queries.
  void AddRun(int parent, int prefix, int tokens) {
    const int node = AddNode(parent, prefix + tokens);
    for (int t = prefix; t < prefix + tokens; ++t) forest_.shape.AddQuery(node, t);
  }
  // A random draft tree, all of whose tokens are queries.
  void AddDraft(Rng& rng, int parent, int tokens) {
    std::vector<int> depth(tokens, 0);
    for (int t = 1; t < tokens; ++t) depth[t] = RandomInt(rng, 0, depth[t - 1] + 1);
    std::vector<int32_t> subtree_end(tokens);
    for (int t = 0; t < tokens; ++t) {
      subtree_end[t] = t + 1;
      while (subtree_end[t] < tokens && depth[subtree_end[t]] > depth[t]) ++subtree_end[t];
    }
    const int node = forest_.shape.AddDraftNode(parent, 0, NewPages(tokens), subtree_end);
    for (int t = 0; t < tokens; ++t) forest_.shape.AddQuery(node, t);
  }

  // Two pages more are nobody's.
  Forest Finish() {
    forest_.num_pages += 2;
    return std::move(forest_);
  }

 private:
  std::vector<int32_t> NewPages(int tokens) {
    const int page = forest_.shape.page_size;
    std::vector<int32_t> ids((tokens + page - 1) / page);
    for (int32_t& id : ids) id = forest_.num_pages++;
    return ids;
  }

  Forest forest_;
};

// A root of `root_tokens` and `width` leaves of `leaf_tokens`, each with a query at its end.
inline TreeShape FewShot(int root_tokens, int width, int leaf_tokens) {
  ForestBuilder builder;
  const int root = builder.AddNode(-1, root_tokens);
  for (int i = 0; i < width; ++i) builder.AddLeaf(root, leaf_tokens);
  return builder.Finish().shape;
}

}  // namespace espalier::testing
