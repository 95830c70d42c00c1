// Which KV slots hold the draft model's KV. It has a cache of its own with the target's pages, and
// computes what a branch's path lacks when the branch drafts: who never drafts costs it nothing.
#pragma once

#include <cstdint>
#include <vector>

namespace espalier {

class FilledSlots {
 public:
  FilledSlots(int num_pages, int page_size)
      : words_((static_cast<int64_t>(num_pages) * page_size + 63) / 64, 0) {}

  bool Has(int64_t slot) const { return (words_[slot / 64] >> (slot % 64) & 1) != 0; }
  void Add(int64_t slot) { words_[slot / 64] |= uint64_t{1} << (slot % 64); }
  void Remove(int64_t slot) { words_[slot / 64] &= ~(uint64_t{1} << (slot % 64)); }
  void Clear() { words_.assign(words_.size(), 0); }

 private:
  std::vector<uint64_t> words_;
};

}  // namespace espalier
