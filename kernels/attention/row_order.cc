#include "kernels/attention/row_order.h"

#include <algorithm>
#include <utility>

namespace espalier {

void RowOrder::Build(const TreeShape& shape) {
  shape_ = &shape;
  const int num_nodes = shape.num_nodes();

  // Parents come first, so one pass up gives the sizes of subtrees and one down their places.
  // During the pass up, own_end counts the node's own queries and end those of its subtree.
  node_rows_.assign(num_nodes, {});
  for (const int32_t node : shape.query_node) ++node_rows_[node].own_end;
  for (int x = num_nodes - 1; x >= 0; --x) {
    node_rows_[x].end += node_rows_[x].own_end;
    if (shape.parent[x] >= 0) node_rows_[shape.parent[x]].end += node_rows_[x].end;
  }
  cursor_.resize(num_nodes);
  int32_t root_cursor = 0;
  for (int x = 0; x < num_nodes; ++x) {
    int32_t& next = shape.parent[x] < 0 ? root_cursor : cursor_[shape.parent[x]];
    NodeRows& rows = node_rows_[x];
    rows.begin = next;
    next += rows.end;
    rows.own_end += rows.begin;
    rows.end += rows.begin;
    cursor_[x] = rows.own_end;
  }
  PlaceQueries();
  ListDraftRows();
  ListSeenNodes();
}

void RowOrder::PlaceQueries() {
  const TreeShape& shape = *shape_;
  const int num_queries = shape.num_queries();
  query_of_row_.resize(num_queries);
  node_of_row_.resize(num_queries);
  offset_of_row_.resize(num_queries);
  for (int x = 0; x < shape.num_nodes(); ++x) cursor_[x] = node_rows_[x].begin;
  bool ascending = true;
  for (int i = 0; i < num_queries; ++i) {
    const int32_t node = shape.query_node[i];
    const int32_t row = cursor_[node]++;
    query_of_row_[row] = i;
    node_of_row_[row] = node;
    offset_of_row_[row] = shape.query_offset[i];
    ascending &= row == node_rows_[node].begin || offset_of_row_[row - 1] <= offset_of_row_[row];
  }
  if (ascending) return;
  for (int x = 0; x < shape.num_nodes(); ++x) {
    const auto begin = query_of_row_.begin() + node_rows_[x].begin;
    const auto end = query_of_row_.begin() + node_rows_[x].own_end;
    std::sort(begin, end, [&](int32_t a, int32_t b) {
      return std::pair(shape.query_offset[a], a) < std::pair(shape.query_offset[b], b);
    });
  }
  for (int row = 0; row < num_queries; ++row) {
    offset_of_row_[row] = shape.query_offset[query_of_row_[row]];
  }
}

void RowOrder::ListDraftRows() {
  const TreeShape& shape = *shape_;
  draft_rows_.resize(shape.draft_subtree_end.size());
  if (draft_rows_.empty()) return;
  for (int x = 0; x < shape.num_nodes(); ++x) {
    if (shape.draft_begin[x] < 0) continue;
    const int num_tokens = shape.num_tokens[x];
    first_own_row_.resize(num_tokens + 1);
    int32_t row = node_rows_[x].begin;
    for (int t = 0; t <= num_tokens; ++t) {
      while (row < node_rows_[x].own_end && offset_of_row_[row] < t) ++row;
      first_own_row_[t] = row;
    }
    const int32_t* subtree_end = shape.draft_subtree_end.data() + shape.draft_begin[x];
    RowInterval* rows = draft_rows_.data() + shape.draft_begin[x];
    for (int t = 0; t < num_tokens; ++t) {
      rows[t] = {first_own_row_[t], first_own_row_[subtree_end[t]]};
    }
  }
}

void RowOrder::ListSeenNodes() {
  const TreeShape& shape = *shape_;
  const int num_nodes = shape.num_nodes();
  const auto seen = [&](int x) {
    return node_rows_[x].end > node_rows_[x].begin && shape.num_tokens[x] > 0;
  };
  seen_in_subtree_.assign(num_nodes, 0);
  int32_t total = 0;
  for (int x = num_nodes - 1; x >= 0; --x) {
    seen_in_subtree_[x] += seen(x);
    total += seen(x);
    if (shape.parent[x] >= 0) seen_in_subtree_[shape.parent[x]] += seen_in_subtree_[x];
  }
  seen_nodes_.resize(total);
  int32_t root_cursor = 0;
  for (int x = 0; x < num_nodes; ++x) {
    int32_t& next = shape.parent[x] < 0 ? root_cursor : cursor_[shape.parent[x]];
    cursor_[x] = next;
    next += seen_in_subtree_[x];
    if (seen(x)) seen_nodes_[cursor_[x]++] = x;
  }
}

int RowOrder::SeenTokens(int node) const {
  const NodeRows& rows = node_rows_[node];
  if (rows.end > rows.own_end) return shape_->num_tokens[node];
  return rows.own_end > rows.begin ? offset_of_row_[rows.own_end - 1] + 1 : 0;
}

int32_t RowOrder::FirstOwnRowFrom(int node, int token) const {
  const auto begin = offset_of_row_.begin();
  const NodeRows& rows = node_rows_[node];
  return static_cast<int32_t>(std::lower_bound(begin + rows.begin, begin + rows.own_end, token) -
                              begin);
}

PlanStats RowOrder::CountTokens() const {
  const TreeShape& shape = *shape_;
  PlanStats stats;
  path_tokens_.resize(shape.num_nodes());
  for (int x = 0; x < shape.num_nodes(); ++x) {
    const int up = shape.parent[x];
    path_tokens_[x] = up < 0 ? 0 : path_tokens_[up] + shape.num_tokens[up];
  }
  for (const int32_t x : seen_nodes_) {
    const int seen_tokens = SeenTokens(x);
    if (shape.draft_begin[x] < 0) {
      stats.unique_kv_tokens += seen_tokens;
      continue;
    }
    for (int t = 0; t < seen_tokens; ++t) {
      const RowInterval rows = DraftRows(x, t);
      stats.unique_kv_tokens += rows.end > rows.begin;
      stats.logical_kv_tokens += rows.end - rows.begin;
    }
  }
  for (int row = 0; row < num_rows(); ++row) {
    const int node = node_of_row_[row];
    stats.logical_kv_tokens += path_tokens_[node];
    if (shape.draft_begin[node] < 0) stats.logical_kv_tokens += offset_of_row_[row] + 1;
  }
  return stats;
}

}  // namespace espalier
