// Finds the pieces that a text starts with. Built once, then read by any thread.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/container/flat_hash_map.h"

namespace espalier {

class PieceTrie {
 public:
  // A later piece of the same spelling wins. An empty piece is never found.
  void Insert(std::string_view piece, int32_t id);

  bool empty() const { return edges_.empty(); }

  // Calls `visit(bytes, id)` for every piece that `text` starts with, shortest first.
  template <typename Visit>
  void ForEachPrefix(std::string_view text, Visit visit) const {
    uint32_t node = kRoot;
    for (size_t i = 0; i < text.size(); ++i) {
      const auto edge = edges_.find(EdgeKey(node, text[i]));
      if (edge == edges_.end()) return;
      node = edge->second.child;
      if (edge->second.id >= 0) visit(i + 1, edge->second.id);
    }
  }

  struct Match {
    size_t bytes = 0;  // 0: nothing matched
    int32_t id = -1;
  };
  Match LongestPrefix(std::string_view text) const;

 private:
  static constexpr uint32_t kRoot = 0;
  struct Edge {
    uint32_t child;
    int32_t id = -1;  // of the piece that ends here; -1: none
  };
  static uint64_t EdgeKey(uint32_t node, char byte) {
    return uint64_t{node} << 8 | static_cast<unsigned char>(byte);
  }

  // One table of edges instead of node objects: a vocabulary has far more nodes than branchings.
  absl::flat_hash_map<uint64_t, Edge> edges_;
};

}  // namespace espalier
