// Hands out KV page ids and counts their owners. Engine thread only.
// Invariant: free + used + retiring == num_pages, where a released page is *retiring* until every
// step submitted before its release is done.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace espalier {

class PagePool {
 public:
  // A point in the sequence of submitted steps. It has passed once every step submitted before it
  // is done.
  using Fence = uint64_t;

  explicit PagePool(int num_pages);

  // A page with one owner. Empty when the pool is: the caller evicts, then asks again.
  std::optional<int32_t> Acquire();
  // Adds the pages that the next `count` calls of Acquire give if nothing is released before, or
  // those that are free if they are fewer.
  void ListNext(int count, std::vector<int32_t>* pages) const;
  void AddOwner(int32_t page);
  // True when that was the last owner.
  bool Release(int32_t page) { return Release(page, fence()); }
  // For an owner that knows that no step submitted after `last_read` reads the page on its behalf:
  // the page is free as soon as the latest `last_read` of all its owners has passed.
  bool Release(int32_t page, Fence last_read);

  // Steps are numbered upwards and finish in order; a page released while steps are in flight is
  // reused only when the newest of them is done. With no step in flight it is free at once.
  void StepSubmitted(uint64_t step);
  void StepDone(uint64_t step);
  // The fence of now.
  Fence fence() const { return submitted_end_; }
  bool Passed(Fence fence) const { return fence <= done_end_; }

  int num_pages() const { return static_cast<int>(owners_.size()); }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_used() const { return num_pages() - num_free() - num_retiring(); }
  int num_retiring() const { return num_retiring_; }
  int owners(int32_t page) const { return owners_[page]; }
  void CheckInvariants() const;

 private:
  std::vector<int32_t> owners_;   // by page; 0: free or retiring
  std::vector<Fence> last_read_;  // by page, over the owners that have released it
  std::vector<int32_t> free_;     // a stack: the page last freed is the likeliest in cache
  // A ring of num_pages entries, oldest first. A page waits behind those before it even if its own
  // fence passes earlier; it never waits for a step submitted after its release.
  std::vector<int32_t> retiring_;
  int retiring_head_ = 0;
  int num_retiring_ = 0;
  uint64_t submitted_end_ = 0;  // one past the newest step submitted
  uint64_t done_end_ = 0;       // one past the newest step done
};

}  // namespace espalier
