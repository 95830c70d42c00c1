#include "model/tokenizer/sentencepiece_normalizer.h"

#include "model/tokenizer/text.h"
#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

constexpr size_t kMaxTargetBytes = 256;

uint32_t LittleEndian32(std::string_view bytes) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  }
  return value;
}

// A unit of Darts-clone's double array.
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t LeafValue(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t Label(uint32_t unit) { return unit & 0x800000FF; }
uint32_t Offset(uint32_t unit) { return unit >> 10 << ((unit & 1u << 9) >> 6); }

}  // namespace

absl::StatusOr<SentencePieceNormalizer> SentencePieceNormalizer::Create(
    SentencePieceNormalization options, PieceTrie user_defined) {
  SentencePieceNormalizer result;
  result.user_defined_ = std::move(user_defined);
  result.options_ = std::move(options);
  const std::string_view charsmap = result.options_.charsmap;
  if (charsmap.empty()) return result;
  // Layout: the trie's size in bytes, the trie, the right sides.
  const uint32_t trie_bytes = charsmap.size() < 4 ? 0 : LittleEndian32(charsmap);
  if (charsmap.size() < 4 || trie_bytes > charsmap.size() - 4 || trie_bytes < 4 ||
      trie_bytes % 4 != 0) {
    return absl::InvalidArgumentError(
        Concat("precompiled_charsmap: a trie of ", trie_bytes, " bytes in ", charsmap.size()));
  }
  for (uint32_t at = 0; at < trie_bytes; at += 4) {
    result.trie_.push_back(LittleEndian32(charsmap.substr(4 + at)));
  }
  // The longest target of Unicode's own normal forms has some 33 bytes; a bound keeps a hostile
  // model from blowing up texts.
  size_t target_bytes = 0;
  for (const char c : charsmap.substr(4 + trie_bytes)) {
    target_bytes = c == '\0' ? 0 : target_bytes + 1;
    if (target_bytes > kMaxTargetBytes) {
      return absl::InvalidArgumentError(
          Concat("precompiled_charsmap: a target of more than ", kMaxTargetBytes, " bytes"));
    }
  }
  return result;
}

std::string SentencePieceNormalizer::Normalize(std::string_view text, bool dummy) const {
  const std::string_view space = options_.escape_whitespaces ? kSpaceSymbol : " ";
  const bool trims = options_.remove_extra_whitespaces;
  const bool adds_dummy = dummy && options_.add_dummy_prefix;
  if (trims) {
    while (!text.empty()) {
      const Rewrite rewrite = RewritePrefix(text);
      if (rewrite.to != " ") break;
      text.remove_prefix(rewrite.from_bytes);
    }
  }
  std::string normalized;
  if (text.empty()) return normalized;
  normalized.reserve(text.size() + space.size());
  if (adds_dummy && !options_.whitespace_as_suffix) normalized += space;

  bool after_space = trims;
  while (!text.empty()) {
    Rewrite rewrite = RewritePrefix(text);
    text.remove_prefix(rewrite.from_bytes);
    while (after_space && rewrite.to.starts_with(' ')) rewrite.to.remove_prefix(1);
    if (rewrite.to.empty()) continue;
    for (const char c : rewrite.to) {
      if (c == ' ') {
        normalized += space;
      } else {
        normalized += c;
      }
    }
    after_space = trims && rewrite.to.ends_with(' ');
  }
  while (trims && normalized.ends_with(space)) normalized.resize(normalized.size() - space.size());
  if (adds_dummy && options_.whitespace_as_suffix) normalized += space;
  return normalized;
}

SentencePieceNormalizer::Rewrite SentencePieceNormalizer::RewritePrefix(
    std::string_view text) const {
  const PieceTrie::Match user_defined = user_defined_.LongestPrefix(text);
  if (user_defined.bytes > 0) return {text.substr(0, user_defined.bytes), user_defined.bytes};
  if (const Rewrite rule = FindRule(text); rule.from_bytes > 0) return rule;
  const size_t bytes = ValidCharBytes(text);
  if (bytes == 0) return {"\xEF\xBF\xBD", 1};
  return {text.substr(0, bytes), bytes};
}

SentencePieceNormalizer::Rewrite SentencePieceNormalizer::FindRule(std::string_view text) const {
  Rewrite longest = {.to = {}, .from_bytes = 0};
  if (trie_.empty()) return longest;
  const std::string_view targets = std::string_view(options_.charsmap).substr(4 + 4 * trie_.size());
  uint32_t node = Offset(trie_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    node ^= byte;
    if (node >= trie_.size() || Label(trie_[node]) != byte) break;
    const uint32_t unit = trie_[node];
    node ^= Offset(unit);
    if (!HasLeaf(unit)) continue;
    if (node >= trie_.size()) break;
    const uint32_t target = LeafValue(trie_[node]);
    if (target >= targets.size()) break;
    const std::string_view to = targets.substr(target);
    longest = {.to = to.substr(0, to.find('\0')), .from_bytes = i + 1};
  }
  return longest;
}

}  // namespace espalier
