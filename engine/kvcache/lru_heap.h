// The nodes that may be evicted, oldest stamp first: a binary heap whose entries can be taken out
// by id. Stamps are distinct, so the order is one whatever the history. O(log n) a change;
// allocates only to grow.
#pragma once

#include <cstdint>
#include <vector>

namespace espalier {

class LruHeap {
 public:
  bool empty() const { return heap_.empty(); }
  int size() const { return static_cast<int>(heap_.size()); }
  bool Contains(int32_t id) const {
    return id < static_cast<int32_t>(position_.size()) && position_[id] >= 0;
  }
  int32_t Oldest() const { return heap_.front().id; }

  void Push(int32_t id, uint64_t stamp);
  void Erase(int32_t id);

  void CheckInvariants() const;

 private:
  struct Entry {
    uint64_t stamp;
    int32_t id;
  };

  void Place(int position, Entry entry);
  void SiftUp(int position, Entry entry);
  void SiftDown(int position, Entry entry);

  std::vector<Entry> heap_;
  std::vector<int32_t> position_;  // by id, into heap_; -1: absent
};

}  // namespace espalier
