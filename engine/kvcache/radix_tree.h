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
// keeps the id, so an id always means "the path that ends here".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/kvcache/page_pool.h"

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
  // below it does or it is locked.
  NodeId Root(std::string_view salt);

  // Follows indexed nodes below `from` while they match `tokens`, splitting the last one so that
  // the match ends at a node's end. Filling nodes match by their tokens, filled or not.
  struct MatchResult {
    NodeId node;
    int matched = 0;  // tokens
  };
  MatchResult Match(NodeId from, std::span<const int32_t> tokens);

  void Lock(NodeId node);
  // When the last lock goes: a private node is merged into the index (the part that an indexed
  // sibling already holds is dropped, its pages freed) or freed if empty; an incompletely filled
  // node is cut back to its watermark.
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
  int Fill(NodeId node, int count, std::vector<int64_t>* slots);
  // Appends a token to a complete private node and returns its slot; empty when no page can be
  // had even by eviction.
  std::optional<int64_t> Append(NodeId leaf, int32_t token);
  // Drops the last tokens of a private node, so that `tokens` remain.
  void Truncate(NodeId leaf, int tokens);
  // Indexes a private node now (its branch forked or ended), if no indexed sibling begins with the
  // same token; otherwise it stays private until unlocked.
  void Publish(NodeId leaf);

  // Evicts unlocked leaves until `pages` are free; returns whether they are.
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

  struct NodeSnapshot {
    int parent;            // index into the snapshot, -1: root
    int num_tokens;
    int filled;
    int locks;
    int num_pages;
    bool indexed;
    std::vector<int32_t> head_tokens;  // the first few
  };
  std::vector<NodeSnapshot> Describe(std::string_view salt, int max_nodes, int head_tokens) const;

  void CheckInvariants() const;

 private:
  // (the implementer of this class fills in the members)
};

}  // namespace espalier
