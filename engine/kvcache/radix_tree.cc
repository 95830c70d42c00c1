// Nodes, locks, slots and eviction. What splits and merges nodes is in radix_tree_index.cc.
#include "engine/kvcache/radix_tree.h"

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"

namespace espalier {

RadixTree::RadixTree(PagePool* pool, int page_size)
    : pool_(pool), page_size_(page_size), locked_owners_(pool->num_pages(), 0) {
  ESPALIER_CHECK(page_size > 0);
}

RadixTree::~RadixTree() {
  for (const Node& node : nodes_) {
    for (int32_t page : node.pages) pool_->Release(page);
  }
}

// ---- nodes

int32_t RadixTree::NewNode() {
  int32_t index;
  if (free_nodes_.empty()) {
    index = static_cast<int32_t>(nodes_.size());
    nodes_.emplace_back();
  } else {
    index = free_nodes_.back();
    free_nodes_.pop_back();
  }
  nodes_[index].in_use = true;
  return index;
}

void RadixTree::FreeNode(int32_t index) {
  Node& node = nodes_[index];
  ESPALIER_CHECK(node.is_leaf());
  ESPALIER_CHECK(!node.locked());
  if (evictable_.Contains(index)) evictable_.Erase(index);
  for (int32_t page : node.pages) pool_->Release(page, node.last_read);
  const uint32_t generation = node.generation + 1;
  node = Node();
  node.generation = generation;
  free_nodes_.push_back(index);
}

void RadixTree::FreeRoot(int32_t index) {
  roots_.erase(nodes_[index].salt);
  FreeNode(index);
}

void RadixTree::FreeSubtree(int32_t index) {
  DropChildren(index);
  FreeNode(index);
}

void RadixTree::DropChildren(int32_t index) {
  // Depth first without recursion: a path can have as many nodes as tokens.
  int32_t at = index;
  for (;;) {
    if (!nodes_[at].is_leaf()) {
      at = nodes_[at].first_child;
    } else if (at == index) {
      return;
    } else {
      const int32_t parent = nodes_[at].parent;
      Unlink(at);
      FreeNode(at);
      at = parent;
    }
  }
}

void RadixTree::Link(int32_t index, int32_t parent) {
  Node& node = nodes_[index];
  Node& above = nodes_[parent];
  node.parent = parent;
  node.prev_sibling = above.last_child;
  (above.is_leaf() ? above.first_child : nodes_[above.last_child].next_sibling) = index;
  above.last_child = index;
  if (node.indexed) {
    const bool first_of_its_token =
        index_.emplace(ChildKey(parent, node.tokens.front()), index).second;
    ESPALIER_CHECK(first_of_its_token);
  }
}

void RadixTree::Unlink(int32_t index) {
  Node& node = nodes_[index];
  Node& above = nodes_[node.parent];
  if (node.indexed) index_.erase(ChildKey(node.parent, node.tokens.front()));
  (node.prev_sibling < 0 ? above.first_child : nodes_[node.prev_sibling].next_sibling) =
      node.next_sibling;
  (node.next_sibling < 0 ? above.last_child : nodes_[node.next_sibling].prev_sibling) =
      node.prev_sibling;
  node.parent = node.prev_sibling = node.next_sibling = -1;
}

int32_t RadixTree::FindChild(int32_t parent, int32_t token) const {
  const auto found = index_.find(ChildKey(parent, token));
  return found == index_.end() ? -1 : found->second;
}

NodeId RadixTree::Root(std::string_view salt) {
  if (const auto found = roots_.find(salt); found != roots_.end()) return IdOf(found->second);
  const int32_t index = NewNode();
  nodes_[index].salt = salt;
  roots_.emplace(std::string(salt), index);
  return IdOf(index);
}

int32_t RadixTree::NewChild(NodeId parent_id, std::span<const int32_t> tokens, uint64_t filler,
                            bool indexed) {
  const int32_t parent = IndexOf(parent_id);
  const int32_t index = NewNode();
  Node& node = nodes_[index];
  node.indexed = indexed;
  node.tokens.assign(tokens.begin(), tokens.end());
  node.filler = filler;
  node.begin = nodes_[parent].begin + nodes_[parent].num_tokens();
  Link(index, parent);
  Lock(IdOf(index));
  return index;
}

NodeId RadixTree::InsertFilling(NodeId parent, std::span<const int32_t> tokens, uint64_t filler) {
  ESPALIER_CHECK(!tokens.empty());
  ESPALIER_CHECK(filler != 0);
  ESPALIER_CHECK(FindChild(IndexOf(parent), tokens.front()) < 0);
  return IdOf(NewChild(parent, tokens, filler, /*indexed=*/true));
}

NodeId RadixTree::NewPrivate(NodeId parent) {
  return IdOf(NewChild(parent, {}, /*filler=*/0, /*indexed=*/false));
}

NodeId RadixTree::NewPrivateFilling(NodeId parent, std::span<const int32_t> tokens,
                                    uint64_t filler) {
  ESPALIER_CHECK(!tokens.empty());
  ESPALIER_CHECK(filler != 0);
  return IdOf(NewChild(parent, tokens, filler, /*indexed=*/false));
}

// ---- locks

void RadixTree::Lock(NodeId id) {
  int32_t index = IndexOf(id);
  bool was_locked = nodes_[index].locked();
  ++nodes_[index].locks;
  // A locked node counts once in its parent, so most locks end here.
  while (!was_locked) {
    for (int32_t page : nodes_[index].pages) AddLockedOwner(page);
    Refresh(index);
    index = nodes_[index].parent;
    if (index < 0) break;
    was_locked = nodes_[index].locked();
    ++nodes_[index].locked_children;
  }
}

void RadixTree::Unlock(NodeId id) {
  int32_t index = IndexOf(id);
  ESPALIER_CHECK(nodes_[index].locks > 0);
  --nodes_[index].locks;
  while (index >= 0 && !nodes_[index].locked()) {
    // The parent still counts this child as locked, so that it outlives the child's settling.
    const int32_t parent = nodes_[index].parent;
    Settle(index);
    if (parent >= 0) --nodes_[parent].locked_children;
    index = parent;
  }
}

void RadixTree::AddLockedOwner(int32_t page) {
  if (locked_owners_[page]++ == 0) ++num_locked_pages_;
}

void RadixTree::RemoveLockedOwner(int32_t page) {
  ESPALIER_CHECK(locked_owners_[page] > 0);
  if (--locked_owners_[page] == 0) --num_locked_pages_;
}

// ---- filling

std::optional<RadixTree::Unfilled> RadixTree::FirstUnfilled(NodeId tail) const {
  int32_t first = -1;
  for (int32_t at = IndexOf(tail); at >= 0; at = nodes_[at].parent) {
    if (!nodes_[at].complete()) first = at;
  }
  if (first < 0) return std::nullopt;
  const Node& node = nodes_[first];
  return Unfilled{.node = IdOf(first),
                  .offset = node.filled,
                  .remaining = node.num_tokens() - node.filled,
                  .filler = node.filler};
}

void RadixTree::SetFiller(NodeId id, uint64_t filler) {
  Node& node = nodes_[IndexOf(id)];
  ESPALIER_CHECK(!node.complete());
  node.filler = filler;
}

void RadixTree::Orphan(NodeId tail, uint64_t filler) {
  for (int32_t at = IndexOf(tail); at >= 0; at = nodes_[at].parent) {
    if (nodes_[at].filler == filler) nodes_[at].filler = 0;
  }
}

bool RadixTree::PathComplete(int32_t index) const {
  // KV is only ever made below complete nodes, so the nearest token above speaks for the rest.
  for (int32_t at = nodes_[index].parent; at >= 0; at = nodes_[at].parent) {
    if (nodes_[at].num_tokens() > 0) return nodes_[at].complete();
  }
  return true;
}

int RadixTree::Fill(NodeId id, int count, std::vector<int64_t>* slots) {
  const int32_t index = IndexOf(id);
  ESPALIER_CHECK(count >= 0);
  ESPALIER_CHECK(nodes_[index].locked());
  ESPALIER_CHECK(PathComplete(index));
  Node& node = nodes_[index];
  const int wanted = std::min(count, node.num_tokens() - node.filled);
  int served = 0;
  while (served < wanted) {
    const int end = node.first_slot + node.filled;
    const int capacity = static_cast<int>(node.pages.size()) * page_size_;
    if (end == capacity) {
      if (!AcquirePage(index)) break;
      continue;
    }
    const int run = std::min(capacity - end, wanted - served);
    const int64_t first = int64_t{node.pages.back()} * page_size_ + end % page_size_;
    for (int i = 0; i < run; ++i) slots->push_back(first + i);
    node.filled += run;
    served += run;
  }
  if (node.complete()) node.filler = 0;
  return served;
}

std::optional<int64_t> RadixTree::Append(NodeId id, int32_t token) {
  const int32_t index = IndexOf(id);
  ESPALIER_CHECK(!nodes_[index].is_root());
  ESPALIER_CHECK(!nodes_[index].indexed);
  ESPALIER_CHECK(nodes_[index].complete());
  ESPALIER_CHECK(PathComplete(index));
  DropChildren(index);
  const int end = nodes_[index].first_slot + nodes_[index].filled;
  const bool page_full = end == static_cast<int>(nodes_[index].pages.size()) * page_size_;
  const bool slots_in_use = !page_full && !pool_->Passed(nodes_[index].dropped_at);
  if (page_full || slots_in_use) {
    if (!Reserve(1)) return std::nullopt;
    if (slots_in_use) Split(index, nodes_[index].num_tokens());
    AcquirePage(index);
  }
  Node& node = nodes_[index];
  node.tokens.push_back(token);
  ++node.filled;
  return slot(id, node.filled - 1);
}

void RadixTree::Truncate(NodeId id, int tokens) {
  const int32_t index = IndexOf(id);
  Node& node = nodes_[index];
  ESPALIER_CHECK(!node.is_root());
  ESPALIER_CHECK(!node.indexed);
  ESPALIER_CHECK(tokens >= 0 && tokens <= node.num_tokens());
  if (tokens == node.num_tokens()) return;
  DropChildren(index);
  node.tokens.resize(tokens);
  if (node.filled > tokens) {
    node.filled = tokens;
    const int kept_slots = tokens == 0 ? 0 : node.first_slot + tokens;
    ReleasePages(node, (kept_slots + page_size_ - 1) / page_size_);
    if (tokens == 0) node.first_slot = 0;
    node.dropped_at = pool_->fence();
  }
  if (node.complete()) node.filler = 0;
}

void RadixTree::Replace(NodeId id, int offset, std::span<const int32_t> tokens) {
  Node& node = nodes_[IndexOf(id)];
  ESPALIER_CHECK(!node.indexed);
  ESPALIER_CHECK(node.complete());
  ESPALIER_CHECK(node.is_leaf());
  ESPALIER_CHECK(offset >= 0 && offset + static_cast<int>(tokens.size()) <= node.num_tokens());
  std::ranges::copy(tokens, node.tokens.begin() + offset);
}

// ---- pages

bool RadixTree::AcquirePage(int32_t index) {
  if (!Reserve(1)) return false;
  const int32_t page = *pool_->Acquire();
  nodes_[index].pages.push_back(page);
  AddLockedOwner(page);
  return true;
}

void RadixTree::ReleasePages(Node& node, int kept) {
  while (static_cast<int>(node.pages.size()) > kept) {
    RemoveLockedOwner(node.pages.back());
    pool_->Release(node.pages.back());
    node.pages.pop_back();
  }
}

bool RadixTree::Reserve(int pages) {
  if (pages > pool_->num_free() + pool_->num_retiring() + num_cached_pages()) return false;
  while (pool_->num_free() < pages) {
    if (evictable_.empty()) return false;
    const int32_t oldest = evictable_.Oldest();
    // Enough pages are coming, and this node's would have to wait just like them.
    if (pool_->num_free() + pool_->num_retiring() >= pages &&
        !pool_->Passed(nodes_[oldest].last_read)) {
      return false;
    }
    Evict(oldest);
  }
  return true;
}

void RadixTree::Evict(int32_t index) {
  const int32_t parent = nodes_[index].parent;
  Unlink(index);
  FreeNode(index);
  const Node& above = nodes_[parent];
  if (above.is_root() && above.is_leaf() && !above.locked()) {
    FreeRoot(parent);
  } else {
    Refresh(parent);
  }
}

void RadixTree::DropNamespace(std::string_view salt) {
  const auto found = roots_.find(salt);
  if (found == roots_.end()) return;
  const int32_t root = found->second;
  std::vector<int32_t> nodes = {root};
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (int32_t child = nodes_[nodes[i]].first_child; child >= 0;
         child = nodes_[child].next_sibling) {
      nodes.push_back(child);
    }
  }
  // Children come after their parents, so backwards every unlocked node is a leaf by its turn.
  for (size_t i = nodes.size() - 1; i > 0; --i) {
    if (nodes_[nodes[i]].locked()) continue;
    Unlink(nodes[i]);
    FreeNode(nodes[i]);
  }
  if (nodes_[root].is_leaf() && !nodes_[root].locked()) FreeRoot(root);
}

void RadixTree::Touch(int32_t index) {
  nodes_[index].stamp = ++clock_;
  if (!evictable_.Contains(index)) return;
  evictable_.Erase(index);
  evictable_.Push(index, clock_);
}

void RadixTree::Refresh(int32_t index) {
  const Node& node = nodes_[index];
  const bool evictable = !node.is_root() && node.is_leaf() && !node.locked();
  if (evictable == evictable_.Contains(index)) return;
  if (evictable) {
    evictable_.Push(index, node.stamp);
  } else {
    evictable_.Erase(index);
  }
}

// ---- accessors

int64_t RadixTree::slot(NodeId id, int offset) const {
  const Node& node = Get(id);
  ESPALIER_CHECK(offset >= 0 && offset < node.filled);
  const int at = node.first_slot + offset;
  return int64_t{node.pages[at / page_size_]} * page_size_ + at % page_size_;
}

int RadixTree::num_locked_pages() const { return num_locked_pages_; }

int RadixTree::num_cached_pages() const { return pool_->num_used() - num_locked_pages_; }

std::vector<RadixTree::NodeSnapshot> RadixTree::Describe(std::string_view salt, int max_nodes,
                                                         int head_tokens) const {
  std::vector<NodeSnapshot> snapshots;
  const auto found = roots_.find(salt);
  if (found == roots_.end() || max_nodes <= 0) return snapshots;
  const auto add = [&](int32_t index, int parent) {
    const Node& node = nodes_[index];
    const int head = std::min(head_tokens, node.num_tokens());
    snapshots.push_back({.id = IdOf(index),
                         .parent = parent,
                         .num_tokens = node.num_tokens(),
                         .filled = node.filled,
                         .locks = node.locks + node.locked_children,
                         .num_pages = static_cast<int>(node.pages.size()),
                         .indexed = node.indexed,
                         .head_tokens = {node.tokens.begin(), node.tokens.begin() + head}});
  };
  add(found->second, -1);
  for (int i = 0; i < static_cast<int>(snapshots.size()); ++i) {
    for (int32_t child = nodes_[snapshots[i].id.index].first_child; child >= 0;
         child = nodes_[child].next_sibling) {
      if (static_cast<int>(snapshots.size()) == max_nodes) return snapshots;
      add(child, i);
    }
  }
  return snapshots;
}

}  // namespace espalier
