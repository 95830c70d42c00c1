#include "engine/draft/draft_tree.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace espalier {

DraftLayout DraftLayout::Chain(std::span<const int32_t> tokens) {
  DraftLayout layout;
  const int size = static_cast<int>(tokens.size());
  layout.tokens.assign(tokens.begin(), tokens.end());
  layout.parents.resize(size);
  std::iota(layout.parents.begin(), layout.parents.end(), -1);
  layout.depths.resize(size);
  std::iota(layout.depths.begin(), layout.depths.end(), 1);
  layout.subtree_end.assign(size, size);
  layout.expanded.assign(size, -1);
  return layout;
}

int DraftTree::fanout() const {
  if (shape_->children.empty()) return depth_ < shape_->depth ? shape_->width : 0;
  return depth_ < static_cast<int>(shape_->children.size()) ? shape_->children[depth_] : 0;
}

double DraftTree::Offer(int parent, std::span<const std::pair<int32_t, float>> candidates) {
  const double above = parent < 0 ? 0 : offered_[parent].logprob;
  const size_t count = std::min(candidates.size(), static_cast<size_t>(fanout()));
  double probability = 0;
  for (const auto& [token, logprob] : candidates.first(count)) {
    offered_.push_back(
        {.token = token, .parent = parent, .depth = depth_ + 1, .logprob = above + logprob});
    probability += std::exp(above + logprob);
  }
  return probability;
}

std::span<const int> DraftTree::Expand(double min_probability) {
  frontier_.clear();
  const int level_begin = std::exchange(level_begin_, static_cast<int>(offered_.size()));
  if (level_begin == level_begin_) return frontier_;
  ++depth_;
  if (fanout() == 0) return frontier_;
  for (int i = level_begin; i < level_begin_; ++i) {
    if (std::exp(offered_[i].logprob) >= min_probability) frontier_.push_back(i);
  }
  std::ranges::stable_sort(frontier_, std::ranges::greater(),
                           [this](int i) { return offered_[i].logprob; });
  if (shape_->children.empty() && frontier_.size() > static_cast<size_t>(shape_->width)) {
    frontier_.resize(shape_->width);
  }
  for (int i : frontier_) offered_[i].expanded = num_expanded_++;
  return frontier_;
}

double DraftTree::frontier_probability() const {
  double sum = 0;
  for (int i : frontier_) sum += std::exp(offered_[i].logprob);
  return sum;
}

DraftLayout DraftTree::Select(int count, double min_probability) const {
  // A child is never likelier than its parent, and of equally likely ones the parent is earlier: so
  // the selection is a tree.
  std::vector<int> order(offered_.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [this](int i) { return offered_[i].logprob; });
  std::vector<char> taken(offered_.size(), 0);
  DraftLayout layout;
  for (int i : order) {
    const double probability = std::exp(offered_[i].logprob);
    if (count-- <= 0 || probability < min_probability) break;
    taken[i] = 1;
    layout.expected += probability;
  }
  for (int i : order) {
    if (taken[i] && offered_[i].parent < 0) Place(i, -1, taken, &layout);
  }
  return layout;
}

void DraftTree::Place(int index, int place_of_parent, std::span<const char> taken,
                      DraftLayout* layout) const {
  const int place = layout->size();
  layout->tokens.push_back(offered_[index].token);
  layout->parents.push_back(place_of_parent);
  layout->depths.push_back(offered_[index].depth);
  layout->subtree_end.push_back(0);
  layout->expanded.push_back(offered_[index].expanded);
  // Children were offered likely first.
  for (size_t i = index + 1; i < offered_.size(); ++i) {
    if (taken[i] && offered_[i].parent == index) {
      Place(static_cast<int>(i), place, taken, layout);
    }
  }
  layout->subtree_end[place] = static_cast<int32_t>(layout->size());
}

}  // namespace espalier
