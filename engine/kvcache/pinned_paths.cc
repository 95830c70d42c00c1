#include "engine/kvcache/pinned_paths.h"

#include <algorithm>
#include <tuple>

namespace espalier {

std::optional<NodeId> PinnedPaths::Find(std::string_view name_space,
                                        std::span<const int32_t> tokens) {
  NodeId node = radix_->Match(radix_->Root(name_space), tokens).node;
  // What is being filled may yet fail, and must then be forgotten.
  while (const auto unfilled = radix_->FirstUnfilled(node)) node = radix_->parent(unfilled->node);
  if (!radix_->parent(node).valid()) return std::nullopt;
  return node;
}

void PinnedPaths::Update(const PinUpdate& update) {
  Owner& owner = owners_[update.owner];
  owner.priority = update.priority;
  owner.stamp = ++clock_;
  owner.expires = update.expires;
  // New locks first: what an old pin held is not to be let go in between.
  std::vector<NodeId> replaced;
  for (const auto& [key, tokens] : update.pin) {
    const std::optional<NodeId> node = Find(update.name_space, tokens);
    if (const auto old = owner.pins.find(key); old != owner.pins.end()) {
      replaced.push_back(old->second);
      owner.pins.erase(old);
    }
    if (!node) continue;
    radix_->Lock(*node);
    owner.pins.emplace(key, *node);
  }
  for (int key : update.unpin) {
    const auto old = owner.pins.find(key);
    if (old == owner.pins.end()) continue;
    replaced.push_back(old->second);
    owner.pins.erase(old);
  }
  for (NodeId node : replaced) radix_->Unlock(node);
  if (owner.pins.empty()) owners_.erase(update.owner);
}

void PinnedPaths::Release(Owner& owner) {
  for (const auto& [key, node] : owner.pins) radix_->Unlock(node);
}

void PinnedPaths::UnpinAll(std::string_view owner) {
  const auto found = owners_.find(owner);
  if (found == owners_.end()) return;
  Release(found->second);
  owners_.erase(found);
}

void PinnedPaths::Clear() {
  for (auto& [name, owner] : owners_) Release(owner);
  owners_.clear();
}

bool PinnedPaths::ReleaseOne() {
  if (owners_.empty()) return false;
  const auto victim = std::ranges::min_element(owners_, {}, [](const auto& entry) {
    return std::tuple(entry.second.priority, entry.second.stamp);
  });
  std::map<int, NodeId>& pins = victim->second.pins;
  const auto newest = std::prev(pins.end());
  radix_->Unlock(newest->second);
  pins.erase(newest);
  if (pins.empty()) owners_.erase(victim);
  return true;
}

void PinnedPaths::Expire(absl::Time now) {
  for (auto next = owners_.begin(); next != owners_.end();) {
    const auto owner = next++;
    if (owner->second.expires > now) continue;
    Release(owner->second);
    owners_.erase(owner);
  }
}

absl::Time PinnedPaths::NextExpiry() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [name, owner] : owners_) next = std::min(next, owner.expires);
  return next;
}

int PinnedPaths::num_pins() const {
  int count = 0;
  for (const auto& [name, owner] : owners_) count += static_cast<int>(owner.pins.size());
  return count;
}

}  // namespace espalier
