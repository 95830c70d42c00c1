#include "kernels/attention/tree_shape.h"

#include "kernels/core/check.h"

namespace espalier {
namespace {

// Subtrees of a depth-first token order are nested: a token's subtree ends within its parent's.
void CheckDraftTree(std::span<const int32_t> subtree_end, std::vector<int32_t>* open) {
  const int32_t num_tokens = static_cast<int32_t>(subtree_end.size());
  open->clear();
  for (int32_t t = 0; t < num_tokens; ++t) {
    while (!open->empty() && open->back() <= t) open->pop_back();
    const int32_t limit = open->empty() ? num_tokens : open->back();
    ESPALIER_CHECK(subtree_end[t] > t);
    ESPALIER_CHECK(subtree_end[t] <= limit);
    open->push_back(subtree_end[t]);
  }
}

}  // namespace

void TreeShape::Clear() {
  parent.clear();
  num_tokens.clear();
  first_slot.clear();
  page_begin.assign(1, 0);
  page_ids.clear();
  draft_begin.clear();
  draft_subtree_end.clear();
  query_node.clear();
  query_offset.clear();
}

int TreeShape::AddNode(int parent_node, int tokens, int first_slot_in_page,
                       std::span<const int32_t> pages) {
  parent.push_back(parent_node);
  num_tokens.push_back(tokens);
  first_slot.push_back(first_slot_in_page);
  page_ids.insert(page_ids.end(), pages.begin(), pages.end());
  page_begin.push_back(static_cast<int32_t>(page_ids.size()));
  draft_begin.push_back(-1);
  return num_nodes() - 1;
}

int TreeShape::AddDraftNode(int parent_node, int first_slot_in_page, std::span<const int32_t> pages,
                            std::span<const int32_t> subtree_end) {
  const int node =
      AddNode(parent_node, static_cast<int>(subtree_end.size()), first_slot_in_page, pages);
  draft_begin[node] = static_cast<int32_t>(draft_subtree_end.size());
  draft_subtree_end.insert(draft_subtree_end.end(), subtree_end.begin(), subtree_end.end());
  return node;
}

void TreeShape::AddQuery(int node, int offset) {
  query_node.push_back(node);
  query_offset.push_back(offset);
}

void TreeShape::CheckWellFormed() const {
  const size_t nodes = parent.size();
  ESPALIER_CHECK(page_size > 0);
  ESPALIER_CHECK(num_tokens.size() == nodes);
  ESPALIER_CHECK(first_slot.size() == nodes);
  ESPALIER_CHECK(draft_begin.size() == nodes);
  ESPALIER_CHECK(page_begin.size() == nodes + 1);
  ESPALIER_CHECK(page_begin.front() == 0);
  ESPALIER_CHECK(page_begin.back() == static_cast<int64_t>(page_ids.size()));
  ESPALIER_CHECK(query_offset.size() == query_node.size());

  thread_local std::vector<int32_t> open;  // keeps its capacity between steps
  for (int x = 0; x < num_nodes(); ++x) {
    ESPALIER_CHECK(parent[x] >= -1);
    ESPALIER_CHECK(parent[x] < x);
    ESPALIER_CHECK(parent[x] < 0 || draft_begin[parent[x]] < 0);
    ESPALIER_CHECK(num_tokens[x] >= 0);
    ESPALIER_CHECK(first_slot[x] >= 0);
    ESPALIER_CHECK(first_slot[x] < page_size);
    const int64_t slots = num_tokens[x] == 0 ? 0 : int64_t{first_slot[x]} + num_tokens[x];
    ESPALIER_CHECK((int64_t{page_begin[x + 1]} - page_begin[x]) * page_size >= slots);
    if (draft_begin[x] >= 0) {
      ESPALIER_CHECK(draft_begin[x] + int64_t{num_tokens[x]} <=
                     static_cast<int64_t>(draft_subtree_end.size()));
      CheckDraftTree(std::span(draft_subtree_end).subspan(draft_begin[x], num_tokens[x]), &open);
    }
  }
  int32_t lowest_page = 0;
  for (const int32_t page : page_ids) lowest_page = page < lowest_page ? page : lowest_page;
  ESPALIER_CHECK(lowest_page == 0);
  for (int i = 0; i < num_queries(); ++i) {
    ESPALIER_CHECK(query_node[i] >= 0);
    ESPALIER_CHECK(query_node[i] < num_nodes());
    ESPALIER_CHECK(query_offset[i] >= 0);
    ESPALIER_CHECK(query_offset[i] < num_tokens[query_node[i]]);
  }
}

}  // namespace espalier
