// Sentencepiece's text normalisation: rewriting rules, white space, and the dummy prefix (source:
// the sentencepiece library's normalizer, whose results it reproduces).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer/piece_trie.h"

namespace espalier {

// U+2581, which stands for a space inside pieces.
inline constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

struct SentencePieceNormalization {
  std::string charsmap;  // the model's precompiled rules; empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool whitespace_as_suffix = false;  // the dummy goes to the end
};

class SentencePieceNormalizer {
 public:
  // `user_defined`: pieces that the rules leave alone. INVALID_ARGUMENT: a malformed charsmap.
  static absl::StatusOr<SentencePieceNormalizer> Create(SentencePieceNormalization options,
                                                        PieceTrie user_defined);

  // `dummy`: the text starts a sequence, so the dummy white space belongs to it if the model has
  // one. Bytes that are not UTF-8 become U+FFFD, one each.
  std::string Normalize(std::string_view text, bool dummy) const;

 private:
  // What the start of a text becomes, and how many bytes of it that takes.
  struct Rewrite {
    std::string_view to;
    size_t from_bytes;
  };
  SentencePieceNormalizer() = default;
  Rewrite RewritePrefix(std::string_view text) const;
  // The longest rule that `text` starts with; from_bytes 0: none.
  Rewrite FindRule(std::string_view text) const;

  SentencePieceNormalization options_;
  PieceTrie user_defined_;
  std::vector<uint32_t> trie_;  // a double array of the rules' left sides, in Darts' layout
};

}  // namespace espalier
