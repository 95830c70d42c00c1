// Sentencepiece tokenizers (Llama 2, Mistral, TinyLlama, CodeLlama), from a .model file or from the
// pieces in a GGUF. Equal, id by id, to the sentencepiece library. It is not the library because
// that holds some 240 bytes for each byte of text while it encodes (2 GB for the longest text
// that a request may have), cannot leave out the dummy prefix inside a sequence, and replaces
// bytes that are not UTF-8.
#pragma once

#include <array>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer/merge_symbols.h"
#include "model/tokenizer/piece_trie.h"
#include "model/tokenizer/sentencepiece_normalizer.h"
#include "model/tokenizer/vocabulary_tokenizer.h"

namespace espalier {

enum class SentencePieceAlgorithm { kBpe, kUnigram };

struct SentencePieceSpec {
  Vocabulary vocabulary;
  std::vector<float> scores;  // by id
  SentencePieceAlgorithm algorithm = SentencePieceAlgorithm::kBpe;
  bool byte_fallback = true;  // text that has no piece becomes byte pieces; needs all 256
  SentencePieceNormalization normalization;
  SequenceRules rules;
};

// Sets a piece, deriving the bytes it stands for from its kind. INVALID_ARGUMENT: a byte piece that
// is not written <0xNN>.
absl::Status SetSentencePiece(int64_t id, std::string_view piece, PieceKind kind,
                              Vocabulary* vocabulary);

class SentencePieceTokenizer final : public VocabularyTokenizer {
 public:
  // INVALID_ARGUMENT: a missing or non-finite score, a missing byte piece, a malformed charsmap.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(SentencePieceSpec spec);

 private:
  SentencePieceTokenizer(SentencePieceSpec spec, SentencePieceNormalizer normalizer);

  void EncodeText(std::string_view text, bool at_root, std::vector<int32_t>* ids) const override;
  void EncodeNormalized(std::string_view text, std::vector<int32_t>* ids) const;
  void EncodeBpe(std::string_view text, std::vector<int32_t>* ids) const;
  void EncodeUnigram(std::string_view text, std::vector<int32_t>* ids) const;
  void AppendBytes(std::string_view bytes, std::vector<int32_t>* ids) const;
  // Text without a piece: its bytes, or one unknown token for a whole run of it.
  void AppendUnknown(std::string_view bytes, std::vector<int32_t>* ids) const;

  // The piece that text may become; -1: none.
  int32_t FindTextPiece(std::string_view text) const;

  const SentencePieceAlgorithm algorithm_;
  const bool byte_fallback_;
  const SentencePieceNormalizer normalizer_;
  const std::vector<float> scores_;
  std::vector<int32_t> ranks_;  // by id: position in the order of falling scores; equals share one
  PieceTrie user_defined_;      // as written in normalised text
  PieceTrie pieces_;            // all that text may become; unigram only
  size_t longest_piece_ = 0;    // bytes
  std::array<int32_t, 256> byte_ids_;
  int32_t unknown_id_ = -1;
  float unknown_score_ = 0;  // unigram: of one character without a piece
  float best_score_ = 0;     // unigram: of a normal piece
};

}  // namespace espalier
