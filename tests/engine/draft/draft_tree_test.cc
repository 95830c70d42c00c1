#include "engine/draft/draft_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

namespace espalier {
namespace {

using Candidates = std::vector<std::pair<int32_t, float>>;

Candidates RandomCandidates(std::mt19937_64& rng, int count) {
  std::vector<double> weights(count);
  double sum = 0;
  for (double& w : weights) sum += w = std::exponential_distribution<double>()(rng);
  std::ranges::sort(weights, std::ranges::greater());
  Candidates candidates;
  const int32_t first = static_cast<int32_t>(rng() % 1000);
  for (int k = 0; k < count; ++k) {
    candidates.emplace_back(first + k, static_cast<float>(std::log(weights[k] / sum)));
  }
  return candidates;
}

struct Grown {
  DraftTree tree;
  std::map<std::vector<int32_t>, double> offered = {};  // probability by path
  int passes = 0;
};

std::vector<int32_t> PathOf(const DraftTree& tree, int token) {
  std::vector<int32_t> path;
  for (int i = token; i >= 0; i = tree.parent(i)) path.insert(path.begin(), tree.token(i));
  return path;
}

Grown Grow(const DraftShape& shape, uint64_t seed) {
  std::mt19937_64 rng(seed);
  Grown grown{.tree = DraftTree(shape)};
  DraftTree& tree = grown.tree;
  const auto offer = [&](int parent) {
    const Candidates candidates = RandomCandidates(rng, 20);
    const std::vector<int32_t> above = PathOf(tree, parent);
    const double probability = parent < 0 ? 1 : grown.offered.at(above);
    for (int k = 0; k < tree.fanout(); ++k) {
      std::vector<int32_t> path = above;
      path.push_back(candidates[k].first);
      grown.offered[path] = probability * std::exp(candidates[k].second);
    }
    tree.Offer(parent, candidates);
  };
  offer(-1);
  while (true) {
    const std::span<const int> frontier = tree.Expand(0);
    if (frontier.empty()) break;
    ++grown.passes;
    for (int token : std::vector<int>(frontier.begin(), frontier.end())) offer(token);
  }
  return grown;
}

TEST(DraftTreeTest, GrowsWithinItsLimits) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const DraftShape shape = {.depth = 1 + static_cast<int>(seed % 6),
                              .width = 1 + static_cast<int>(seed % 4)};
    const Grown grown = Grow(shape, seed);
    EXPECT_EQ(grown.tree.depth(), shape.depth);
    EXPECT_EQ(grown.passes, shape.depth - 1);
    EXPECT_EQ(grown.tree.num_expanded(), (shape.depth - 1) * shape.width);
    for (const auto& [path, probability] : grown.offered) {
      EXPECT_LE(static_cast<int>(path.size()), shape.depth);
    }
  }
}

TEST(DraftTreeTest, AStaticShapeIsFull) {
  const DraftShape shape = {.children = {4, 2, 1}};
  const Grown grown = Grow(shape, 3);
  std::map<size_t, int> by_depth;
  for (const auto& [path, probability] : grown.offered) ++by_depth[path.size()];
  EXPECT_EQ(by_depth, (std::map<size_t, int>{{1, 4}, {2, 8}, {3, 8}}));
  EXPECT_EQ(grown.tree.Select(100, 0).size(), 20);
}

TEST(DraftTreeTest, SelectsTheMostLikelyInDepthFirstOrder) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const DraftShape shape = {.depth = 5, .width = 4};
    const Grown grown = Grow(shape, seed);
    const int count = 1 + static_cast<int>(seed % 20);
    const DraftLayout layout = grown.tree.Select(count, 0);
    ASSERT_EQ(layout.size(), count);

    std::vector<double> best;
    for (const auto& [path, probability] : grown.offered) best.push_back(probability);
    std::ranges::sort(best, std::ranges::greater());
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += best[i];
    EXPECT_NEAR(layout.expected, sum, 1e-6);

    std::vector<std::vector<int32_t>> paths;
    for (int place = 0; place < count; ++place) {
      const int above = layout.parents[place];
      ASSERT_LT(above, place);
      std::vector<int32_t> path = above < 0 ? std::vector<int32_t>() : paths[above];
      path.push_back(layout.tokens[place]);
      EXPECT_TRUE(grown.offered.contains(path));
      EXPECT_EQ(layout.depths[place], static_cast<int>(path.size()));
      paths.push_back(path);
      // Exactly the descendants stand between a token and its subtree's end.
      for (int other = place + 1; other < count; ++other) {
        int at = other;
        while (at > place) at = layout.parents[at];
        EXPECT_EQ(at == place, other < layout.subtree_end[place]);
      }
      // Of siblings the likelier is first.
      for (int other = 0; other < place; ++other) {
        if (layout.parents[other] != above) continue;
        EXPECT_GE(grown.offered.at(paths[other]), grown.offered.at(path));
      }
    }
  }
}

TEST(DraftTreeTest, StopsWhereTheDraftModelIsUnsure) {
  const DraftShape shape = {.depth = 5, .width = 4};
  DraftTree tree(shape);
  tree.Offer(-1, Candidates{{1, std::log(0.5f)}, {2, std::log(0.3f)}, {3, std::log(0.1f)}});
  EXPECT_EQ(tree.Expand(0.2).size(), 2u);
  EXPECT_NEAR(tree.frontier_probability(), 0.8, 1e-6);
  EXPECT_EQ(tree.Select(10, 0.2).size(), 2);
  EXPECT_EQ(tree.Select(10, 0.6).size(), 0);
  EXPECT_TRUE(tree.Expand(0).empty());  // nothing was offered below them
}

TEST(DraftTreeTest, AChainIsATree) {
  const std::vector<int32_t> tokens = {7, 8, 9};
  const DraftLayout layout = DraftLayout::Chain(tokens);
  EXPECT_EQ(layout.tokens, tokens);
  EXPECT_EQ(layout.parents, (std::vector<int>{-1, 0, 1}));
  EXPECT_EQ(layout.depths, (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(layout.subtree_end, (std::vector<int32_t>{3, 3, 3}));
}

}  // namespace
}  // namespace espalier
