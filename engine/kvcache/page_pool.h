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
  explicit PagePool(int num_pages);

  // A page with one owner. Empty when the pool is: the caller evicts, then asks again.
  std::optional<int32_t> Acquire();
  void AddOwner(int32_t page);
  // True when that was the last owner.
  bool Release(int32_t page);

  // Steps are numbered upwards; a page released while steps are in flight is reused only when the
  // newest of them is done. With no step in flight it is free at once.
  void StepSubmitted(uint64_t step);
  void StepDone(uint64_t step);

  int num_pages() const;
  int num_free() const;
  int num_used() const;
  int num_retiring() const;
  int owners(int32_t page) const;
  void CheckInvariants() const;

 private:
  // (the implementer of this class fills in the members)
};

}  // namespace espalier
