// A regular expression over a vocabulary: which tokens may follow. Where a branch stands is one
// number, a pure function of its tokens. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/constraint/byte_automaton.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// The bytes of every token, sorted: with the lengths of common prefixes a trie without pointers.
// Immutable.
class SortedVocabulary {
 public:
  struct Entry {
    std::string bytes;
    int32_t token;
    size_t shared;  // bytes that it has in common with the entry before
  };
  // Tokens without bytes, special ones among them, are left out.
  explicit SortedVocabulary(const Tokenizer& tokenizer);

  std::span<const Entry> entries() const { return entries_; }
  std::span<const int32_t> eos() const { return eos_; }
  int size() const { return size_; }  // tokens of the tokenizer

 private:
  std::vector<Entry> entries_;
  std::vector<int32_t> eos_;
  int size_;
};

// Bit token % 64 of word token / 64 is set where the token is allowed.
using TokenMask = std::vector<uint64_t>;

class TokenConstraint {
 public:
  // Compiles on the caller's thread. INVALID_ARGUMENT says what is wrong with the pattern, or which
  // of AutomatonLimits it exceeds.
  static absl::StatusOr<std::shared_ptr<const TokenConstraint>> Compile(
      absl::string_view pattern, std::shared_ptr<const SortedVocabulary> vocabulary);

  int initial() const { return automaton_.initial(); }
  // The state behind `token`, which the state's mask allows and which is no end-of-generation
  // token.
  int Advance(int state, int32_t token) const;
  // End-of-generation tokens are allowed where the text so far matches. The mask outlives the cache
  // that it came from.
  std::shared_ptr<const TokenMask> Mask(int state) const;
  // The text is a match, and no longer one is.
  bool complete(int state) const {
    return automaton_.accepts(state) && !automaton_.continues(state);
  }
  // Neither a token nor an end fits: possible where some byte has no token.
  bool stuck(int state) const;

 private:
  TokenConstraint(ByteAutomaton automaton, std::shared_ptr<const SortedVocabulary> vocabulary);

  TokenMask ComputeMask(int state) const;

  const ByteAutomaton automaton_;
  const std::shared_ptr<const SortedVocabulary> vocabulary_;
  std::vector<const std::string*> token_bytes_;  // [vocabulary] null: no bytes
  mutable std::mutex mutex_;
  mutable absl::flat_hash_map<int, std::shared_ptr<const TokenMask>> masks_;  // by state
};

}  // namespace espalier
