#include "kernels/attention/shape_growth.h"

#include <algorithm>

namespace espalier {

void ShapeGrowth::Remember(const RowOrder& order) {
  const TreeShape& shape = order.shape();
  followed_ = std::ranges::all_of(shape.draft_begin, [](int32_t begin) { return begin < 0; });
  if (!followed_) return;
  last_.page_size = shape.page_size;
  last_.parent = shape.parent;
  last_.num_tokens = shape.num_tokens;
  last_.first_slot = shape.first_slot;
  last_.draft_begin = shape.draft_begin;
  last_.query_node = shape.query_node;
  last_.query_offset = shape.query_offset;
  has_one_row_.resize(shape.num_nodes());
  is_above_.resize(shape.num_nodes());
  for (int x = 0; x < shape.num_nodes(); ++x) {
    const NodeRows& rows = order.rows(x);
    is_above_[x] = rows.end > rows.own_end;
    has_one_row_[x] = rows.own_end == rows.begin + 1 && !is_above_[x];
  }
}

bool ShapeGrowth::Follow(const TreeShape& shape) {
  followed_ = followed_ && HasSameTree(shape) && HasSameLengths(shape) && ListGrown(shape);
  if (!followed_) return false;
  last_.num_tokens = shape.num_tokens;
  last_.query_offset = shape.query_offset;
  return true;
}

bool ShapeGrowth::HasSameTree(const TreeShape& shape) const {
  return shape.page_size == last_.page_size && shape.parent == last_.parent &&
         shape.first_slot == last_.first_slot && shape.draft_begin == last_.draft_begin &&
         shape.query_node == last_.query_node;
}

bool ShapeGrowth::HasSameLengths(const TreeShape& shape) const {
  bool same = true;
  for (int x = 0; x < shape.num_nodes(); ++x) {
    same &= shape.num_tokens[x] == last_.num_tokens[x] || !is_above_[x];
  }
  return same;
}

bool ShapeGrowth::ListGrown(const TreeShape& shape) {
  grown_.clear();
  for (int i = 0; i < shape.num_queries(); ++i) {
    const int32_t tokens = shape.query_offset[i] - last_.query_offset[i];
    if (tokens == 0) continue;
    const int32_t node = shape.query_node[i];
    if (tokens < 0 || !has_one_row_[node]) return false;
    grown_.push_back({.node = node, .tokens = tokens});
  }
  return true;
}

}  // namespace espalier
