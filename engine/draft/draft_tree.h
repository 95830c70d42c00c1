// The tokens that a draft model guesses below a branch's last token. It grows level by level: the
// draft model offers children for the tokens that were expanded last. What is verified is the most
// likely part of all that was offered (EAGLE-2's selection: a token's value is the product of the
// draft probabilities on its path, arXiv:2406.16858).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/speculative.h"

namespace espalier {

// Tokens to verify in depth-first order, the likelier subtree first. A token's place is its index.
struct DraftLayout {
  std::vector<int32_t> tokens;
  std::vector<int> parents;          // places; -1: the branch's last token
  std::vector<int> depths;           // from 1
  std::vector<int32_t> subtree_end;  // as TreeShape has it
  // The place that the token's KV has among the expanded ones; -1: it was not expanded.
  std::vector<int> expanded;
  double expected = 0;  // sum of the tokens' probabilities on their paths

  int size() const { return static_cast<int>(tokens.size()); }
  // One token below the other.
  static DraftLayout Chain(std::span<const int32_t> tokens);
};

class DraftTree {
 public:
  explicit DraftTree(const DraftShape& shape) : shape_(&shape) {}

  // Children that the tree may take of a token at the next level; 0: it is deep enough.
  int fanout() const;
  int depth() const { return depth_; }  // levels that have tokens
  // Offers children of one of the tokens expanded last, or, as the first call, of the branch's own
  // (`parent` is -1). The first fanout() are taken; returns their probability in sum, that of the
  // path above included.
  double Offer(int parent, std::span<const std::pair<int32_t, float>> candidates);
  // Closes the level. Returns the tokens that the draft model should go on from, likely first; none
  // when the tree is deep enough or they all fall below `min_probability`. They are expanded in
  // this order.
  std::span<const int> Expand(double min_probability);
  int num_expanded() const { return num_expanded_; }
  // What Expand gave last, and the sum of the probabilities of their paths.
  std::span<const int> frontier() const { return frontier_; }
  double frontier_probability() const;
  int num_offered() const { return static_cast<int>(offered_.size()); }

  int32_t token(int index) const { return offered_[index].token; }
  int parent(int index) const { return offered_[index].parent; }
  int depth(int index) const { return offered_[index].depth; }
  int expanded(int index) const { return offered_[index].expanded; }

  // The `count` most likely tokens of at least `min_probability`.
  DraftLayout Select(int count, double min_probability) const;

 private:
  struct Token {
    int32_t token = 0;
    int parent = -1;
    int depth = 0;
    double logprob = 0;  // of the path from the branch's last token
    int expanded = -1;
  };

  void Place(int index, int place_of_parent, std::span<const char> taken,
             DraftLayout* layout) const;

  const DraftShape* shape_;
  std::vector<Token> offered_;  // a parent before its children
  int depth_ = 0;
  int level_begin_ = 0;  // of the deepest level, into offered_
  std::vector<int> frontier_;
  int num_expanded_ = 0;
};

}  // namespace espalier
