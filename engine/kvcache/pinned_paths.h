// Paths that sessions keep in the cache between their commands: each pin locks what the cache holds
// of a path. Pins give way: an owner's go when its time is over, and whenever pages run out. What
// is unlocked stays cached until it is evicted. Engine thread only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/kvcache/radix_tree.h"

namespace espalier {

// One change to an owner's pins. A pin is known by its key; to pin again is to replace.
struct PinUpdate {
  std::string owner;
  std::string name_space;  // of the radix tree
  int priority = 0;
  std::vector<std::pair<int, std::vector<int32_t>>> pin;  // key, tokens of the whole path
  std::vector<int> unpin;
  absl::Time expires = absl::InfiniteFuture();  // of all the owner's pins
};

class PinnedPaths {
 public:
  explicit PinnedPaths(RadixTree* radix) : radix_(radix) {}

  void Update(const PinUpdate& update);
  void UnpinAll(std::string_view owner);
  void Clear();
  // Lets one pin go: of the lowest priority, of the owner that was idle the longest, the newest
  // branch's. False when there is none.
  bool ReleaseOne();
  void Expire(absl::Time now);
  // When Expire has something to do next; infinitely late when never.
  absl::Time NextExpiry() const;
  int num_pins() const;

 private:
  struct Owner {
    int priority = 0;
    uint64_t stamp = 0;  // of the last update, a counter
    absl::Time expires;
    std::map<int, NodeId> pins;
  };

  // The longest beginning of the path whose KV is complete.
  std::optional<NodeId> Find(std::string_view name_space, std::span<const int32_t> tokens);
  void Release(Owner& owner);

  RadixTree* const radix_;
  std::map<std::string, Owner, std::less<>> owners_;
  uint64_t clock_ = 0;
};

}  // namespace espalier
