// RadixTree::CheckInvariants: recomputes from the nodes alone whatever is kept up to date
// elsewhere.
#include <algorithm>

#include "engine/kvcache/radix_tree.h"
#include "kernels/core/check.h"

namespace espalier {

void RadixTree::CheckInvariants() const {
  pool_->CheckInvariants();
  evictable_.CheckInvariants();

  std::vector<int32_t> owners(pool_->num_pages(), 0);
  std::vector<int32_t> locked_owners(pool_->num_pages(), 0);
  std::vector<int32_t> last_writers(pool_->num_pages(), 0);
  int in_use = 0, evictable = 0, indexed = 0, roots = 0;

  for (int32_t index = 0; index < static_cast<int32_t>(nodes_.size()); ++index) {
    const Node& node = nodes_[index];
    if (!node.in_use) {
      ESPALIER_CHECK(node.pages.empty());
      ESPALIER_CHECK(node.tokens.empty());
      ESPALIER_CHECK(!node.locked());
      ESPALIER_CHECK(!evictable_.Contains(index));
      continue;
    }
    ++in_use;
    ESPALIER_CHECK(node.stamp <= clock_);
    ESPALIER_CHECK(node.last_read <= pool_->fence());

    // Links.
    int locked_children = 0;
    int32_t previous = -1;
    for (int32_t child = node.first_child; child >= 0; child = nodes_[child].next_sibling) {
      ESPALIER_CHECK(nodes_[child].in_use);
      ESPALIER_CHECK(nodes_[child].parent == index);
      ESPALIER_CHECK(nodes_[child].prev_sibling == previous);
      ESPALIER_CHECK(nodes_[child].begin == node.begin + node.num_tokens());
      if (nodes_[child].locked()) ++locked_children;
      previous = child;
    }
    ESPALIER_CHECK(node.last_child == previous);

    // Locks. Exactly one for each locked child, so no node is unlocked below a locked one's path.
    ESPALIER_CHECK(node.locks >= 0);
    ESPALIER_CHECK(node.locked_children == locked_children);

    // Index.
    if (node.is_root()) {
      ++roots;
      ESPALIER_CHECK(node.tokens.empty());
      ESPALIER_CHECK(node.begin == 0);
      ESPALIER_CHECK(!node.indexed);
      const auto found = roots_.find(node.salt);
      ESPALIER_CHECK(found != roots_.end());
      ESPALIER_CHECK(found->second == index);
    } else if (node.indexed) {
      ++indexed;
      ESPALIER_CHECK(!node.tokens.empty());
      ESPALIER_CHECK(FindChild(node.parent, node.tokens.front()) == index);
    } else {
      ESPALIER_CHECK(node.locked());  // an unlocked node is in the index or gone
    }

    // Watermark.
    ESPALIER_CHECK(node.filled >= 0);
    ESPALIER_CHECK(node.filled <= node.num_tokens());
    if (node.filled > 0) ESPALIER_CHECK(PathComplete(index));
    if (node.complete()) {
      ESPALIER_CHECK(node.filler == 0);
    } else {
      ESPALIER_CHECK(node.locked());
    }

    // Slots: as many pages as the filled tokens touch.
    const int slots = node.filled == 0 ? 0 : node.first_slot + node.filled;
    ESPALIER_CHECK(node.first_slot >= 0);
    ESPALIER_CHECK(node.first_slot < page_size_);
    ESPALIER_CHECK(node.filled > 0 || node.first_slot == 0);
    ESPALIER_CHECK(static_cast<int>(node.pages.size()) == (slots + page_size_ - 1) / page_size_);
    for (int32_t page : node.pages) {
      ++owners[page];
      if (node.locked()) ++locked_owners[page];
    }
    // Who may still write into its last page: a private leaf or a filling node. Never two.
    const bool appends = !node.is_root() && (!node.indexed || !node.complete());
    if (appends && slots % page_size_ != 0) ++last_writers[node.pages.back()];

    // Eviction.
    const bool may_go = !node.is_root() && node.is_leaf() && !node.locked();
    ESPALIER_CHECK(evictable_.Contains(index) == may_go);
    if (may_go) ++evictable;
  }

  ESPALIER_CHECK(in_use + free_nodes_.size() == nodes_.size());
  ESPALIER_CHECK(evictable_.size() == evictable);
  ESPALIER_CHECK(static_cast<int>(index_.size()) == indexed);
  ESPALIER_CHECK(static_cast<int>(roots_.size()) == roots);

  int locked_pages = 0;
  for (int32_t page = 0; page < pool_->num_pages(); ++page) {
    ESPALIER_CHECK(pool_->owners(page) == owners[page]);
    ESPALIER_CHECK(locked_owners_[page] == locked_owners[page]);
    ESPALIER_CHECK(last_writers[page] <= 1);
    if (locked_owners[page] > 0) ++locked_pages;
  }
  ESPALIER_CHECK(num_locked_pages_ == locked_pages);
  ESPALIER_CHECK(pool_->num_free() + num_cached_pages() + num_locked_pages() +
                     pool_->num_retiring() ==
                 pool_->num_pages());
}

}  // namespace espalier
