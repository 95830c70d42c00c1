#include "engine/constraint/constraint_cache.h"

#include <algorithm>

namespace espalier {
namespace {

// Patterns that are remembered; each may hold some MiB.
constexpr size_t kMaxPatterns = 32;

}  // namespace

ConstraintCache::Constraint ConstraintCache::Find(const std::string& pattern) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::ranges::find(recent_, pattern, &std::pair<std::string, Constraint>::first);
  if (found == recent_.end()) return nullptr;
  recent_.splice(recent_.begin(), recent_, found);
  return found->second;
}

absl::StatusOr<std::shared_ptr<const TokenConstraint>> ConstraintCache::Get(
    const std::string& pattern) {
  if (Constraint known = Find(pattern)) return known;
  std::call_once(sorted_,
                 [this] { vocabulary_ = std::make_shared<const SortedVocabulary>(*tokenizer_); });
  // Two threads may compile the same pattern; neither holds up the others meanwhile.
  absl::StatusOr<Constraint> compiled = TokenConstraint::Compile(pattern, vocabulary_);
  if (!compiled.ok()) return compiled.status();
  const std::lock_guard lock(mutex_);
  recent_.emplace_front(pattern, *compiled);
  if (recent_.size() > kMaxPatterns) recent_.pop_back();
  return compiled;
}

}  // namespace espalier
