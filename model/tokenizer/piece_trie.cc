#include "model/tokenizer/piece_trie.h"

namespace espalier {

void PieceTrie::Insert(std::string_view piece, int32_t id) {
  uint32_t node = kRoot;
  Edge* last = nullptr;
  for (const char byte : piece) {
    const uint32_t fresh = static_cast<uint32_t>(edges_.size() + 1);
    last = &edges_.try_emplace(EdgeKey(node, byte), Edge{.child = fresh}).first->second;
    node = last->child;
  }
  if (last != nullptr) last->id = id;
}

PieceTrie::Match PieceTrie::LongestPrefix(std::string_view text) const {
  Match longest;
  ForEachPrefix(text, [&](size_t bytes, int32_t id) { longest = {.bytes = bytes, .id = id}; });
  return longest;
}

}  // namespace espalier
