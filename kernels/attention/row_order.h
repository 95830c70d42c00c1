// The depth-first order of a shape's queries, and which rows see which tokens. The planner's first
// half: everything here is independent of variant and machine.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "kernels/attention/tree_shape.h"

namespace espalier {

// Rows at and below a node: its own queries are [begin, own_end), those of its descendants
// [own_end, end).
struct NodeRows {
  int32_t begin = 0;
  int32_t own_end = 0;
  int32_t end = 0;
};

class RowOrder {
 public:
  // Borrows `shape` until the next call.
  void Build(const TreeShape& shape);

  const TreeShape& shape() const { return *shape_; }
  int num_rows() const { return static_cast<int>(node_of_row_.size()); }
  const NodeRows& rows(int node) const { return node_rows_[node]; }
  int node_of_row(int row) const { return node_of_row_[row]; }
  int offset_of_row(int row) const { return offset_of_row_[row]; }
  const std::vector<int32_t>& query_of_row() const { return query_of_row_; }

  // Nodes with a token that some query sees, depth first; rows(node).begin never decreases.
  const std::vector<int32_t>& seen_nodes() const { return seen_nodes_; }
  // Index into seen_nodes of the first one after `node`'s subtree; `index` is node's own.
  int AfterSubtree(int index) const { return index + seen_in_subtree_[seen_nodes_[index]]; }

  // The node's tokens from the first to the last that a query sees.
  int SeenTokens(int node) const;
  // The rows that see token `token` of a draft node.
  RowInterval DraftRows(int node, int token) const {
    return draft_rows_[shape_->draft_begin[node] + token];
  }
  // The first own row in [begin, own_end) whose query is at `token` or after.
  int32_t FirstOwnRowFrom(int node, int token) const;

  // The unique and logical token counts; the rest is zero.
  PlanStats CountTokens() const;

 private:
  void PlaceQueries();
  void ListDraftRows();
  void ListSeenNodes();

  const TreeShape* shape_ = nullptr;
  std::vector<NodeRows> node_rows_;
  std::vector<int32_t> query_of_row_;
  std::vector<int32_t> node_of_row_;
  std::vector<int32_t> offset_of_row_;
  std::vector<RowInterval> draft_rows_;  // as the shape's draft_subtree_end
  std::vector<int32_t> first_own_row_;   // of a draft node, at or behind each token
  std::vector<int32_t> seen_nodes_;
  std::vector<int32_t> seen_in_subtree_;
  std::vector<int32_t> cursor_;               // next free place below each node
  mutable std::vector<int64_t> path_tokens_;  // tokens above each node
};

}  // namespace espalier
