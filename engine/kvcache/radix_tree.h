// One radix tree, keyed token by token, of live and cached KV nodes; one root a namespace (cache
// salt). Bookkeeping only: slots are numbers, KvCache owns the memory. Engine thread only.
//
// A node is a run of tokens with one parent; its KV sits in `pages`, from `first_slot` of the
// first. `filled` of its tokens have KV (or will have when the current step's rows have run);
// filled < num_tokens only while somebody fills it.
//   indexed node: found by Match.
//   private node: a live branch's leaf, not found by Match; grows by Append; Publish indexes it.
// A lock on a node locks its whole path. Unlocked leaves are evicted, least recently used first.
//
// NodeIds stay valid while the node is locked (by anyone). When Match splits a node, the LOWER half
// keeps the id, so an id always means "the path that ends here". Spans that accessors return are
// valid until the next call that is not const.
//
// The tree owns every used page of the pool, so that free + cached + locked + retiring == all. A
// node that a step reads must be locked when that step is submitted to the pool.
// README.md beside this file draws split, fork and merge.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/kvcache/lru_heap.h"
#include "engine/kvcache/page_pool.h"
#include "kernels/core/check.h"

namespace espalier {

struct NodeId {
  int32_t index = -1;
  uint32_t generation = 0;
  bool valid() const { return index >= 0; }
  bool operator==(const NodeId&) const = default;
};

class RadixTree {
 public:
  RadixTree(PagePool* pool, int page_size);
  ~RadixTree();

  // The root of a namespace, created on first use. A root has no tokens. It lives while anything
  // below it does or it is locked. (A root that nobody has locked yet stays until then.)
  NodeId Root(std::string_view salt);

  // Follows indexed nodes below `from` while they match `tokens`, splitting the last one so that
  // the match ends at a node's end. Filling nodes match by their tokens, filled or not.
  struct MatchResult {
    NodeId node;
    int matched = 0;  // tokens
  };
  MatchResult Match(NodeId from, std::span<const int32_t> tokens);

  void Lock(NodeId node);
  // When the last lock goes: an incompletely filled node is cut back to its watermark and removed
  // if nothing is left; a private node is merged into the index with whatever is cached below it
  // (the part that indexed siblings already hold is dropped, its pages freed; what would come to
  // hang below tokens that a sibling has not filled yet is dropped too).
  void Unlock(NodeId node);

  // A new indexed child with these tokens and no KV yet, locked once. Call Match first: no indexed
  // child of `parent` may start with tokens[0]. `filler` is who fills it, never 0.
  NodeId InsertFilling(NodeId parent, std::span<const int32_t> tokens, uint64_t filler);
  // A new private child, empty, locked once.
  NodeId NewPrivate(NodeId parent);
  // A new private child that holds these tokens, unfilled, locked once (used where sharing is off).
  NodeId NewPrivateFilling(NodeId parent, std::span<const int32_t> tokens, uint64_t filler);

  // The first token without KV on the path to `tail`; empty when the path is complete.
  struct Unfilled {
    NodeId node;
    int offset = 0;       // in the node
    int remaining = 0;    // in the node
    uint64_t filler = 0;  // 0: orphaned
  };
  std::optional<Unfilled> FirstUnfilled(NodeId tail) const;
  void SetFiller(NodeId node, uint64_t filler);
  // `filler` gave up: every node that it fills on the path to `tail` becomes an orphan.
  void Orphan(NodeId tail, uint64_t filler);
  // Gives slots to up to `count` further tokens of a filling node, in order, and raises its
  // watermark; evicts if needed. Returns how many it could serve. Appends slot ids to `slots`.
  // Everything above the node must be complete: its KV is made from theirs.
  int Fill(NodeId node, int count, std::vector<int64_t>* slots);
  // Appends a token to a complete private node and returns its slot; empty when no page can be
  // had even by eviction (see Reserve). Drops what is cached below the leaf; nothing locked may be
  // there.
  std::optional<int64_t> Append(NodeId leaf, int32_t token);
  // Drops the last tokens of a private node, so that `tokens` remain; also what is cached below
  // it. Steps in flight may still read the dropped slots. So, until they are done, the next Append
  // splits the node at its end and goes on in the lower half (which keeps the id and is empty
  // then) on a fresh page; after that it re-uses them, for the page has no other owner.
  void Truncate(NodeId leaf, int tokens);
  // Puts `tokens` in place of as many of a complete private node's from `offset` on: its owner has
  // moved their KV there.
  void Replace(NodeId leaf, int offset, std::span<const int32_t> tokens);
  // Indexes a private node now (its branch forked or ended), if no indexed sibling begins with the
  // same token; otherwise it stays private until unlocked.
  void Publish(NodeId leaf);

  // Evicts unlocked leaves until `pages` are free; returns whether they are. Evicts nothing if all
  // cached pages would not do, and no more than needed if the rest is retiring: when this is
  // false and pages are retiring, the end of the steps in flight may help.
  bool Reserve(int pages);
  // Forgets every unlocked node of a namespace.
  void DropNamespace(std::string_view salt);

  NodeId parent(NodeId node) const;  // invalid for a root
  std::span<const int32_t> tokens(NodeId node) const;
  std::span<const int32_t> pages(NodeId node) const;
  int first_slot(NodeId node) const;
  int filled(NodeId node) const;
  int path_tokens(NodeId node) const;  // tokens from the root to the node's end
  int64_t slot(NodeId node, int offset) const;

  // Pages by state: used by a locked node, used by unlocked nodes only.
  int num_locked_pages() const;
  int num_cached_pages() const;

  // Parents come before their children. Empty if the namespace holds nothing.
  struct NodeSnapshot {
    NodeId id;
    int parent;  // index into the snapshot, -1: root
    int num_tokens;
    int filled;
    int locks;  // on the node itself, plus one for each locked child
    int num_pages;
    bool indexed;
    std::vector<int32_t> head_tokens;  // the first few
  };
  std::vector<NodeSnapshot> Describe(std::string_view salt, int max_nodes, int head_tokens) const;

  // Everything that must hold between calls; O(all nodes and pages), for tests.
  void CheckInvariants() const;

 private:
  struct Node {
    uint32_t generation = 0;
    bool in_use = false;
    bool indexed = false;
    int32_t parent = -1;
    // Every child, indexed or private, oldest first.
    int32_t first_child = -1;
    int32_t last_child = -1;
    int32_t prev_sibling = -1;
    int32_t next_sibling = -1;

    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    int32_t first_slot = 0;
    int32_t filled = 0;
    int32_t begin = 0;    // tokens on the path above
    uint64_t filler = 0;  // 0 once filled

    int32_t locks = 0;  // taken on this very node
    int32_t locked_children = 0;
    uint64_t stamp = 0;              // of the last use, a counter
    PagePool::Fence last_read = 0;   // of an unlocked node: no step after this reads it
    PagePool::Fence dropped_at = 0;  // of a private node: Truncate left slots that steps may read
    std::string salt;                // of a root

    int num_tokens() const { return static_cast<int>(tokens.size()); }
    bool complete() const { return filled == num_tokens(); }
    bool locked() const { return locks > 0 || locked_children > 0; }
    bool is_root() const { return parent < 0; }
    bool is_leaf() const { return first_child < 0; }
  };

  // Nodes are addressed by index inside; indices and ids are checked at the public border.
  int32_t IndexOf(NodeId id) const;
  const Node& Get(NodeId id) const { return nodes_[IndexOf(id)]; }
  NodeId IdOf(int32_t index) const { return {index, nodes_[index].generation}; }

  int32_t NewNode();
  int32_t NewChild(NodeId parent, std::span<const int32_t> tokens, uint64_t filler, bool indexed);
  // Takes a detached, childless node out of use and releases its pages.
  void FreeNode(int32_t index);
  void FreeRoot(int32_t index);
  // Frees a detached node and everything below it. All of it must be unlocked.
  void FreeSubtree(int32_t index);
  void DropChildren(int32_t index);

  void Link(int32_t index, int32_t parent);
  void Unlink(int32_t index);
  int32_t FindChild(int32_t parent, int32_t token) const;  // indexed ones; -1: none

  // Splits after `k` tokens; `index` becomes the lower half. Returns the upper half.
  int32_t Split(int32_t index, int k);
  void SplitPages(Node& upper, Node& lower);
  void DropFront(int32_t index, int k);
  // What Unlock does to a node that is no longer locked.
  void Settle(int32_t index);
  // Puts a detached, unlocked subtree into the index below `parent`.
  void Graft(int32_t index, int32_t parent);
  // True when every token above `index`'s first has KV.
  bool PathComplete(int32_t index) const;

  void Touch(int32_t index);
  // Enters or takes out of the evictable leaves, as the node's state asks.
  void Refresh(int32_t index);
  void Evict(int32_t index);

  // The page gets `index` as its owner.
  bool AcquirePage(int32_t index);
  void AddLockedOwner(int32_t page);
  void RemoveLockedOwner(int32_t page);
  void ReleasePages(Node& node, int kept);

  static uint64_t ChildKey(int32_t parent, int32_t token) {
    return static_cast<uint64_t>(parent) << 32 | static_cast<uint32_t>(token);
  }

  PagePool* pool_;
  int page_size_;
  std::vector<Node> nodes_;
  std::vector<int32_t> free_nodes_;
  std::map<std::string, int32_t, std::less<>> roots_;  // by salt
  absl::flat_hash_map<uint64_t, int32_t> index_;       // indexed children by ChildKey
  LruHeap evictable_;                                  // unlocked leaves
  uint64_t clock_ = 0;                                 // stamps
  std::vector<int32_t> locked_owners_;                 // by page
  int num_locked_pages_ = 0;
  std::vector<std::pair<int32_t, int32_t>> to_graft_;  // scratch: subtree, parent
};

// Inline, for a step calls these several times a row.

inline int32_t RadixTree::IndexOf(NodeId id) const {
  ESPALIER_CHECK(id.index >= 0);
  ESPALIER_CHECK(id.index < static_cast<int32_t>(nodes_.size()));
  ESPALIER_CHECK(nodes_[id.index].in_use);
  ESPALIER_CHECK(nodes_[id.index].generation == id.generation);
  return id.index;
}

inline NodeId RadixTree::parent(NodeId id) const {
  const int32_t parent = Get(id).parent;
  return parent < 0 ? NodeId{} : IdOf(parent);
}

inline std::span<const int32_t> RadixTree::tokens(NodeId id) const { return Get(id).tokens; }

inline std::span<const int32_t> RadixTree::pages(NodeId id) const { return Get(id).pages; }

inline int RadixTree::first_slot(NodeId id) const { return Get(id).first_slot; }

inline int RadixTree::filled(NodeId id) const { return Get(id).filled; }

inline int RadixTree::path_tokens(NodeId id) const { return Get(id).begin + Get(id).num_tokens(); }

}  // namespace espalier
