// A step's forest and its queries, as flat arrays. The scheduler fills it; the planner reads it.
//
// Nodes: parents come before their children. A node is `num_tokens` KV tokens that start at slot
// `first_slot` of its first page; a root's parent is -1. num_tokens counts the tokens whose KV this
// very step stores. A node may be empty (0 tokens, 0 pages): a namespace's root is.
// Queries: query i sits at token `query_offset[i]` of node `query_node[i]`. It sees every token of
// the node's ancestors and, of its own node, tokens [0, query_offset[i]] in a plain node, or its
// ancestors-or-self within the draft tree in a draft node.
// Draft nodes hold a tree of tokens in depth-first order: token t is seen by the tokens
// [t, subtree_end[t]). A draft node has no children.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace espalier {

struct TreeShape {
  int page_size = 16;

  std::vector<int32_t> parent;            // [num_nodes]
  std::vector<int32_t> num_tokens;        // [num_nodes]
  std::vector<int32_t> first_slot;        // [num_nodes], in [0, page_size)
  std::vector<int32_t> page_begin = {0};  // [num_nodes + 1], into page_ids
  std::vector<int32_t> page_ids;
  std::vector<int32_t> draft_begin;  // [num_nodes], into draft_subtree_end, -1: plain node
  std::vector<int32_t> draft_subtree_end;

  std::vector<int32_t> query_node;    // [num_queries]
  std::vector<int32_t> query_offset;  // [num_queries]

  int num_nodes() const { return static_cast<int>(parent.size()); }
  int num_queries() const { return static_cast<int>(query_node.size()); }

  // Keeps the capacity, so that a step allocates nothing once the arrays have grown.
  void Clear();
  // Returns the node's index. Copies the page ids.
  int AddNode(int parent_node, int tokens, int first_slot_in_page, std::span<const int32_t> pages);
  // As AddNode for a draft tree; subtree_end has one entry a token.
  int AddDraftNode(int parent_node, int first_slot_in_page, std::span<const int32_t> pages,
                   std::span<const int32_t> subtree_end);
  void AddQuery(int node, int offset);

  // Aborts (ESPALIER_CHECK) on the first rule above that is broken.
  void CheckWellFormed() const;

  bool operator==(const TreeShape&) const = default;
};

}  // namespace espalier
