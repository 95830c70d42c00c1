// Match, split and merge: how nodes enter the index and how they are found and cut in it.
#include <algorithm>
#include <cstring>

#include "engine/kvcache/radix_tree.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

// Tokens that `a` and `b` share at their beginning. Blocks go through memcmp, which is vectorised.
int CommonPrefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  constexpr size_t kBlock = 64;
  const size_t size = std::min(a.size(), b.size());
  size_t shared = 0;
  while (shared + kBlock <= size &&
         std::memcmp(&a[shared], &b[shared], kBlock * sizeof(int32_t)) == 0) {
    shared += kBlock;
  }
  while (shared < size && a[shared] == b[shared]) ++shared;
  return static_cast<int>(shared);
}

}  // namespace

RadixTree::MatchResult RadixTree::Match(NodeId from, std::span<const int32_t> tokens) {
  int32_t at = IndexOf(from);
  size_t matched = 0;
  while (matched < tokens.size()) {
    int32_t child = FindChild(at, tokens[matched]);
    if (child < 0) break;
    const int shared = CommonPrefix(nodes_[child].tokens, tokens.subspan(matched));
    if (shared < nodes_[child].num_tokens()) child = Split(child, shared);
    Touch(child);
    matched += shared;
    at = child;
  }
  return {.node = IdOf(at), .matched = static_cast<int>(matched)};
}

int32_t RadixTree::Split(int32_t lower_index, int k) {
  const int32_t upper_index = NewNode();
  Node& upper = nodes_[upper_index];
  Node& lower = nodes_[lower_index];
  const int32_t parent = lower.parent;
  Unlink(lower_index);

  upper.tokens.assign(lower.tokens.begin(), lower.tokens.begin() + k);
  lower.tokens.erase(lower.tokens.begin(), lower.tokens.begin() + k);
  upper.begin = lower.begin;
  lower.begin += k;
  upper.filled = std::min(k, lower.filled);
  lower.filled -= upper.filled;
  if (!upper.complete()) upper.filler = lower.filler;
  upper.stamp = lower.stamp;
  upper.last_read = lower.last_read;
  lower.dropped_at = 0;
  SplitPages(upper, lower);

  upper.indexed = lower.indexed;
  upper.locked_children = lower.locked() ? 1 : 0;
  Link(upper_index, parent);
  Link(lower_index, upper_index);
  return upper_index;
}

void RadixTree::SplitPages(Node& upper, Node& lower) {
  upper.first_slot = lower.first_slot;
  if (lower.filled == 0) {
    // All slots are the upper half's, the rest of its last page too: the lower half has none yet
    // and starts on a fresh page.
    upper.pages = std::move(lower.pages);
    lower.pages.clear();
    lower.first_slot = 0;
    return;
  }
  const int boundary = upper.first_slot + upper.filled;
  const int first_lower_page = boundary / page_size_;
  const bool shared = boundary % page_size_ != 0;
  const auto begin = lower.pages.begin();
  upper.pages.assign(begin, begin + first_lower_page + (shared ? 1 : 0));
  lower.pages.erase(begin, begin + first_lower_page);
  lower.first_slot = boundary % page_size_;
  if (shared) {
    pool_->AddOwner(lower.pages.front());
    if (lower.locked()) AddLockedOwner(lower.pages.front());
  }
}

void RadixTree::DropFront(int32_t index, int k) {
  Node& node = nodes_[index];
  ESPALIER_CHECK(node.complete());
  node.tokens.erase(node.tokens.begin(), node.tokens.begin() + k);
  node.begin += k;
  node.filled -= k;
  const int boundary = node.first_slot + k;
  const auto kept =
      node.tokens.empty() ? node.pages.end() : node.pages.begin() + boundary / page_size_;
  for (auto page = node.pages.begin(); page != kept; ++page) {
    pool_->Release(*page, node.last_read);
  }
  node.pages.erase(node.pages.begin(), kept);
  node.first_slot = node.tokens.empty() ? 0 : boundary % page_size_;
}

void RadixTree::Publish(NodeId leaf) {
  const int32_t index = IndexOf(leaf);
  Node& node = nodes_[index];
  ESPALIER_CHECK(!node.is_root());
  if (node.indexed || node.tokens.empty()) return;
  node.indexed = index_.emplace(ChildKey(node.parent, node.tokens.front()), index).second;
}

void RadixTree::Settle(int32_t index) {
  Node& node = nodes_[index];
  for (int32_t page : node.pages) RemoveLockedOwner(page);
  node.stamp = ++clock_;
  node.last_read = pool_->fence();
  if (node.is_root()) {
    if (node.is_leaf()) FreeRoot(index);
    return;
  }
  if (node.indexed && node.filled > 0) {
    node.tokens.resize(node.filled);
    node.filler = 0;
    Refresh(index);
    return;
  }
  const int32_t parent = node.parent;
  const bool was_indexed = node.indexed;
  Unlink(index);
  if (was_indexed) {
    FreeNode(index);  // nothing filled, so nothing filled below either
    return;
  }
  node.tokens.resize(node.filled);
  node.filler = 0;
  Graft(index, parent);
}

void RadixTree::Graft(int32_t subtree, int32_t below) {
  to_graft_.assign(1, {subtree, below});
  while (!to_graft_.empty()) {
    auto [index, parent] = to_graft_.back();
    to_graft_.pop_back();
    // Walk down the indexed nodes that hold the same tokens, dropping what they hold.
    for (;;) {
      if (nodes_[index].tokens.empty()) {
        while (!nodes_[index].is_leaf()) {
          const int32_t child = nodes_[index].first_child;
          Unlink(child);
          to_graft_.emplace_back(child, parent);
        }
        FreeNode(index);
        break;
      }
      int32_t twin = FindChild(parent, nodes_[index].tokens.front());
      if (twin < 0) {
        nodes_[index].indexed = true;
        Link(index, parent);
        Refresh(parent);
        Refresh(index);
        break;
      }
      Touch(twin);
      const int shared = CommonPrefix(nodes_[index].tokens, nodes_[twin].tokens);
      const bool whole_leaf = nodes_[index].is_leaf() && shared == nodes_[index].num_tokens();
      if (whole_leaf || shared > nodes_[twin].filled) {
        FreeSubtree(index);
        break;
      }
      if (shared < nodes_[twin].num_tokens()) twin = Split(twin, shared);
      DropFront(index, shared);
      parent = twin;
    }
  }
}

}  // namespace espalier
