#include "engine/constraint/token_constraint.h"

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"

namespace espalier {
namespace {

// Of the masks that one constraint remembers.
constexpr size_t kMaskCacheBytes = 2u << 20;

size_t SharedPrefix(absl::string_view a, absl::string_view b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

}  // namespace

SortedVocabulary::SortedVocabulary(const Tokenizer& tokenizer)
    : eos_(tokenizer.eos()), size_(tokenizer.vocab_size()) {
  for (int32_t token = 0; token < size_; ++token) {
    std::string bytes = tokenizer.TokenBytes(token, /*special=*/false);
    const bool ends = std::ranges::find(eos_, token) != eos_.end();
    if (!bytes.empty() && !ends) entries_.push_back({std::move(bytes), token, 0});
  }
  std::ranges::sort(entries_, {}, &Entry::bytes);
  for (size_t i = 1; i < entries_.size(); ++i) {
    entries_[i].shared = SharedPrefix(entries_[i - 1].bytes, entries_[i].bytes);
  }
}

TokenConstraint::TokenConstraint(ByteAutomaton automaton,
                                 std::shared_ptr<const SortedVocabulary> vocabulary)
    : automaton_(std::move(automaton)),
      vocabulary_(std::move(vocabulary)),
      token_bytes_(vocabulary_->size(), nullptr) {
  for (const SortedVocabulary::Entry& entry : vocabulary_->entries()) {
    token_bytes_[entry.token] = &entry.bytes;
  }
}

absl::StatusOr<std::shared_ptr<const TokenConstraint>> TokenConstraint::Compile(
    absl::string_view pattern, std::shared_ptr<const SortedVocabulary> vocabulary) {
  const absl::StatusOr<RegexTree> tree = ParseRegex(pattern);
  if (!tree.ok()) return tree.status();
  absl::StatusOr<ByteAutomaton> automaton = ByteAutomaton::Compile(*tree, {});
  if (!automaton.ok()) return automaton.status();
  std::shared_ptr<const TokenConstraint> constraint(
      new TokenConstraint(*std::move(automaton), std::move(vocabulary)));
  if (constraint->complete(constraint->initial())) {
    return absl::InvalidArgumentError("only the empty text matches the pattern");
  }
  if (constraint->stuck(constraint->initial())) {
    return absl::InvalidArgumentError("no token of the vocabulary begins a match of the pattern");
  }
  return constraint;
}

int TokenConstraint::Advance(int state, int32_t token) const {
  ESPALIER_CHECK(token >= 0 && static_cast<size_t>(token) < token_bytes_.size());
  ESPALIER_CHECK(token_bytes_[token] != nullptr);
  for (const char byte : *token_bytes_[token]) {
    state = automaton_.Advance(state, static_cast<uint8_t>(byte));
    ESPALIER_CHECK(state != ByteAutomaton::kDead);
  }
  return state;
}

std::shared_ptr<const TokenMask> TokenConstraint::Mask(int state) const {
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = masks_.find(state); known != masks_.end()) return known->second;
  }
  // Two threads may compute the same mask; neither holds up the others meanwhile.
  auto mask = std::make_shared<const TokenMask>(ComputeMask(state));
  const std::lock_guard lock(mutex_);
  if ((masks_.size() + 1) * mask->size() * sizeof(uint64_t) > kMaskCacheBytes) masks_.clear();
  return masks_.try_emplace(state, std::move(mask)).first->second;
}

bool TokenConstraint::stuck(int state) const {
  if (automaton_.accepts(state)) return false;
  return std::ranges::all_of(*Mask(state), [](uint64_t word) { return word == 0; });
}

// Follows each token from where the one before it left the prefix that they share.
TokenMask TokenConstraint::ComputeMask(int state) const {
  TokenMask mask((static_cast<size_t>(vocabulary_->size()) + 63) / 64, 0);
  const auto allow = [&mask](int32_t token) { mask[token / 64] |= uint64_t{1} << (token % 64); };
  std::vector<int> path = {state};  // behind each byte of the entry that lived so far
  for (const SortedVocabulary::Entry& entry : vocabulary_->entries()) {
    // Whatever shares the byte at which an earlier one died is dead as well.
    if (entry.shared >= path.size()) continue;
    path.resize(entry.shared + 1);
    while (path.size() <= entry.bytes.size()) {
      const int next =
          automaton_.Advance(path.back(), static_cast<uint8_t>(entry.bytes[path.size() - 1]));
      if (next == ByteAutomaton::kDead) break;
      path.push_back(next);
    }
    if (path.size() > entry.bytes.size()) allow(entry.token);
  }
  if (automaton_.accepts(state)) {
    for (int32_t token : vocabulary_->eos()) allow(token);
  }
  return mask;
}

}  // namespace espalier
