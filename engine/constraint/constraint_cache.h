// Compiled constraints of the last patterns that were asked for. Thread-safe; compiles on the
// caller's thread.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/constraint/token_constraint.h"

namespace espalier {

class ConstraintCache {
 public:
  // The tokenizer outlives the cache and whatever came from it.
  explicit ConstraintCache(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}

  // INVALID_ARGUMENT as of TokenConstraint::Compile.
  absl::StatusOr<std::shared_ptr<const TokenConstraint>> Get(const std::string& pattern);

 private:
  using Constraint = std::shared_ptr<const TokenConstraint>;

  Constraint Find(const std::string& pattern);

  const Tokenizer* const tokenizer_;
  std::once_flag sorted_;
  std::shared_ptr<const SortedVocabulary> vocabulary_;  // made when it is first needed
  std::mutex mutex_;
  std::list<std::pair<std::string, Constraint>> recent_;  // the latest used first
};

}  // namespace espalier
