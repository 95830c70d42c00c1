// Notices that a step's shape is that of the step before, but for leaves that have grown: what most
// steps of decoding are, and what a plan need not be built anew for.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention/row_order.h"
#include "kernels/attention/tree_shape.h"

namespace espalier {

class ShapeGrowth {
 public:
  // A plain node that one query alone sees, its own, and by how many tokens the query has moved on.
  struct Leaf {
    int32_t node;
    int32_t tokens;
  };

  // The shape that `order` is of. One with drafts is not followed.
  void Remember(const RowOrder& order);
  void Forget() { followed_ = false; }

  // Whether queries see in `shape` what they saw in the shape before and, in some leaves, tokens
  // behind that; page ids may all differ. Forgets unless it is so.
  bool Follow(const TreeShape& shape);
  const std::vector<Leaf>& grown() const { return grown_; }  // of the last Follow

 private:
  bool HasSameTree(const TreeShape& shape) const;
  bool HasSameLengths(const TreeShape& shape) const;
  bool ListGrown(const TreeShape& shape);

  bool followed_ = false;
  TreeShape last_;                 // but for its pages
  std::vector<char> has_one_row_;  // by node: a leaf that may grow
  std::vector<char> is_above_;     // by node: queries of nodes below see all its tokens
  std::vector<Leaf> grown_;
};

}  // namespace espalier
