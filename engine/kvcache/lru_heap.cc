#include "engine/kvcache/lru_heap.h"

#include "kernels/core/check.h"

namespace espalier {

void LruHeap::Push(int32_t id, uint64_t stamp) {
  ESPALIER_CHECK(!Contains(id));
  if (id >= static_cast<int32_t>(position_.size())) position_.resize(id + 1, -1);
  heap_.emplace_back();
  SiftUp(size() - 1, {.stamp = stamp, .id = id});
}

void LruHeap::Erase(int32_t id) {
  ESPALIER_CHECK(Contains(id));
  const int hole = position_[id];
  position_[id] = -1;
  const Entry last = heap_.back();
  heap_.pop_back();
  if (last.id == id) return;
  if (hole > 0 && last.stamp < heap_[(hole - 1) / 2].stamp) {
    SiftUp(hole, last);
  } else {
    SiftDown(hole, last);
  }
}

void LruHeap::Place(int position, Entry entry) {
  heap_[position] = entry;
  position_[entry.id] = position;
}

void LruHeap::SiftUp(int position, Entry entry) {
  while (position > 0) {
    const int above = (position - 1) / 2;
    if (heap_[above].stamp < entry.stamp) break;
    Place(position, heap_[above]);
    position = above;
  }
  Place(position, entry);
}

void LruHeap::SiftDown(int position, Entry entry) {
  for (;;) {
    int below = 2 * position + 1;
    if (below >= size()) break;
    if (below + 1 < size() && heap_[below + 1].stamp < heap_[below].stamp) ++below;
    if (entry.stamp < heap_[below].stamp) break;
    Place(position, heap_[below]);
    position = below;
  }
  Place(position, entry);
}

void LruHeap::CheckInvariants() const {
  for (int i = 0; i < size(); ++i) {
    ESPALIER_CHECK(position_[heap_[i].id] == i);
    if (i > 0) ESPALIER_CHECK(heap_[(i - 1) / 2].stamp < heap_[i].stamp);
  }
}

}  // namespace espalier
