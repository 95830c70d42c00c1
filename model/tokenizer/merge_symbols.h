// The merge loop of byte-pair encoding: repeatedly joins the neighbours whose merge ranks best,
// the leftmost of equals first, until no neighbours can be joined. A heap over a linked list, so
// n symbols cost O(n log n) whatever the text is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace espalier {

// A run of bytes of the text. A symbol that was joined to its left neighbour has no bytes left.
struct MergeSymbol {
  uint32_t begin;
  uint32_t bytes;
  int32_t id;    // -1: not in the vocabulary
  int32_t next;  // index of the right neighbour; -1: none
  int32_t prev;
  bool frozen;  // takes part in no merge
};

struct Merge {
  int32_t rank;  // lower is earlier
  int32_t id;    // of the joined symbol
};

// Appends a symbol and links it to the last one.
inline void AppendSymbol(std::vector<MergeSymbol>* symbols, uint32_t begin, uint32_t bytes,
                         int32_t id, bool frozen = false) {
  const int32_t index = static_cast<int32_t>(symbols->size());
  if (index > 0) symbols->back().next = index;
  symbols->push_back(
      {.begin = begin, .bytes = bytes, .id = id, .next = -1, .prev = index - 1, .frozen = frozen});
}

// A possible merge; stale once either side has changed, which shows in the total size.
struct MergeCandidate {
  Merge merge;
  int32_t left;
  int32_t right;
  uint32_t bytes;
};

// `find_merge(left, right)` gives the merge of two neighbouring symbols, or nothing. Afterwards
// the survivors are the list that starts at symbols[0]. `heap` is scratch space.
template <typename FindMerge>
void MergeSymbols(std::vector<MergeSymbol>& symbols, std::vector<MergeCandidate>& heap,
                  FindMerge find_merge) {
  const auto later = [](const MergeCandidate& a, const MergeCandidate& b) {
    return a.merge.rank != b.merge.rank ? a.merge.rank > b.merge.rank : a.left > b.left;
  };
  const auto candidate = [&](int32_t left, int32_t right) -> std::optional<MergeCandidate> {
    if (left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen) return {};
    const std::optional<Merge> merge = find_merge(symbols[left], symbols[right]);
    if (!merge.has_value()) return {};
    return MergeCandidate{.merge = *merge,
                          .left = left,
                          .right = right,
                          .bytes = symbols[left].bytes + symbols[right].bytes};
  };
  const auto push = [&](int32_t left, int32_t right) {
    if (const auto found = candidate(left, right)) {
      heap.push_back(*found);
      std::push_heap(heap.begin(), heap.end(), later);
    }
  };

  heap.clear();
  for (int32_t right = 1; right < static_cast<int32_t>(symbols.size()); ++right) {
    if (const auto found = candidate(right - 1, right)) heap.push_back(*found);
  }
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    const MergeCandidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    MergeSymbol& left = symbols[best.left];
    MergeSymbol& right = symbols[best.right];
    if (left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != best.bytes) continue;
    left.bytes = best.bytes;
    left.id = best.merge.id;
    left.next = right.next;
    right.bytes = 0;
    if (left.next >= 0) symbols[left.next].prev = best.left;
    push(left.prev, best.left);
    push(best.left, left.next);
  }
}

}  // namespace espalier
