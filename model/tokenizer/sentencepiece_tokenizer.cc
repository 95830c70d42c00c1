#include "model/tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_format.h"
#include "model/tokenizer/text.h"
#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

// Text may become these; byte, control and unknown pieces are only written for other reasons.
bool IsTextKind(PieceKind kind) {
  return kind == PieceKind::kNormal || kind == PieceKind::kUserDefined ||
         kind == PieceKind::kUnused;
}

std::string BytePiece(int byte) { return absl::StrFormat("<0x%02X>", byte); }

std::string EscapeSpaces(std::string_view text) { return ReplaceAll(text, " ", kSpaceSymbol); }

PieceTrie UserDefinedPieces(const Vocabulary& vocabulary, bool escaped) {
  PieceTrie trie;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.kind(id) != PieceKind::kUserDefined) continue;
    const std::string& piece = vocabulary.piece(id);
    trie.Insert(escaped ? EscapeSpaces(piece) : piece, id);
  }
  return trie;
}

std::vector<int32_t> RanksByScore(const std::vector<float>& scores) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  std::vector<int32_t> ranks(scores.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const bool ties = i > 0 && scores[order[i]] == scores[order[i - 1]];
    ranks[order[i]] = ties ? ranks[order[i - 1]] : static_cast<int32_t>(i);
  }
  return ranks;
}

// Normalised text is UTF-8 unless a model's rewriting rules are broken; then a byte is a character.
size_t CharBytes(std::string_view text) { return std::max<size_t>(1, ValidCharBytes(text)); }

absl::Status CheckScores(const SentencePieceSpec& spec) {
  if (spec.scores.size() != static_cast<size_t>(spec.vocabulary.size())) {
    return absl::InvalidArgumentError(
        Concat("vocabulary: ", spec.vocabulary.size(), " pieces, ", spec.scores.size(), " scores"));
  }
  for (size_t id = 0; id < spec.scores.size(); ++id) {
    if (!std::isfinite(spec.scores[id])) {
      return absl::InvalidArgumentError(
          Concat("vocabulary: the score of token ", id, " is not finite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SetSentencePiece(int64_t id, std::string_view piece, PieceKind kind,
                              Vocabulary* vocabulary) {
  if (kind != PieceKind::kByte) {
    return vocabulary->Set(id, piece, ReplaceAll(piece, kSpaceSymbol, " "), kind);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (piece != BytePiece(byte)) continue;
    return vocabulary->Set(id, piece, std::string(1, static_cast<char>(byte)), kind);
  }
  return absl::InvalidArgumentError(
      Concat("vocabulary: token ", id, " is a byte, but written '", piece, "'"));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> SentencePieceTokenizer::Create(SentencePieceSpec spec) {
  if (absl::Status status = CheckScores(spec); !status.ok()) return status;
  for (int byte = 0; spec.byte_fallback && byte < 256; ++byte) {
    const auto id = spec.vocabulary.Find(BytePiece(byte));
    if (!id.has_value() || spec.vocabulary.kind(*id) != PieceKind::kByte) {
      return absl::InvalidArgumentError(Concat("vocabulary: no byte piece ", BytePiece(byte)));
    }
  }
  absl::StatusOr<SentencePieceNormalizer> normalizer = SentencePieceNormalizer::Create(
      spec.normalization, UserDefinedPieces(spec.vocabulary, /*escaped=*/false));
  if (!normalizer.ok()) return normalizer.status();
  return absl::WrapUnique(new SentencePieceTokenizer(std::move(spec), *std::move(normalizer)));
}

SentencePieceTokenizer::SentencePieceTokenizer(SentencePieceSpec spec,
                                               SentencePieceNormalizer normalizer)
    : VocabularyTokenizer(std::move(spec.vocabulary), std::move(spec.rules)),
      algorithm_(spec.algorithm),
      byte_fallback_(spec.byte_fallback),
      normalizer_(std::move(normalizer)),
      scores_(std::move(spec.scores)),
      ranks_(RanksByScore(scores_)),
      user_defined_(UserDefinedPieces(vocabulary(), /*escaped=*/true)) {
  for (int byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = vocabulary().Find(BytePiece(byte)).value_or(-1);
  }
  // The library's numbers, to the bit: its best score starts from the smallest positive float.
  constexpr float kUnknownPenalty = 10.0f;
  float worst_score = std::numeric_limits<float>::max();
  best_score_ = std::numeric_limits<float>::min();
  for (int32_t id = 0; id < vocabulary().size(); ++id) {
    const PieceKind kind = vocabulary().kind(id);
    if (kind == PieceKind::kUnknown && unknown_id_ < 0) unknown_id_ = id;
    if (!IsTextKind(kind)) continue;
    longest_piece_ = std::max(longest_piece_, vocabulary().piece(id).size());
    if (algorithm_ == SentencePieceAlgorithm::kUnigram) pieces_.Insert(vocabulary().piece(id), id);
    if (kind != PieceKind::kNormal) continue;
    worst_score = std::min(worst_score, scores_[id]);
    best_score_ = std::max(best_score_, scores_[id]);
  }
  unknown_score_ = worst_score - kUnknownPenalty;
}

void SentencePieceTokenizer::EncodeText(std::string_view text, bool at_root,
                                        std::vector<int32_t>* ids) const {
  const auto encode = [&](std::string_view stretch) {
    const bool dummy = at_root && stretch.data() == text.data();
    EncodeNormalized(normalizer_.Normalize(stretch, dummy), ids);
  };
  if (!byte_fallback_) {
    if (!text.empty()) encode(text);
    return;
  }
  // With byte pieces nothing need be lost: not what is no UTF-8, and not U+2581, which the library
  // would turn into a space.
  ForEachStretch(text, [&](std::string_view stretch, bool valid) {
    if (!valid) return AppendBytes(stretch, ids);
    while (!stretch.empty()) {
      const std::string_view before = stretch.substr(0, stretch.find(kSpaceSymbol));
      if (!before.empty()) encode(before);
      stretch.remove_prefix(before.size());
      if (stretch.empty()) break;
      AppendBytes(kSpaceSymbol, ids);
      stretch.remove_prefix(kSpaceSymbol.size());
    }
  });
}

void SentencePieceTokenizer::EncodeNormalized(std::string_view text,
                                              std::vector<int32_t>* ids) const {
  if (text.empty()) return;
  switch (algorithm_) {
    case SentencePieceAlgorithm::kBpe:
      return EncodeBpe(text, ids);
    case SentencePieceAlgorithm::kUnigram:
      return EncodeUnigram(text, ids);
  }
}

int32_t SentencePieceTokenizer::FindTextPiece(std::string_view text) const {
  if (text.size() > longest_piece_) return -1;
  const std::optional<int32_t> id = vocabulary().Find(text);
  return id.has_value() && IsTextKind(vocabulary().kind(*id)) ? *id : -1;
}

void SentencePieceTokenizer::AppendBytes(std::string_view bytes, std::vector<int32_t>* ids) const {
  for (const char byte : bytes) ids->push_back(byte_ids_[static_cast<uint8_t>(byte)]);
}

void SentencePieceTokenizer::AppendUnknown(std::string_view bytes,
                                           std::vector<int32_t>* ids) const {
  if (byte_fallback_) return AppendBytes(bytes, ids);
  const bool continues = !ids->empty() && ids->back() == unknown_id_;
  if (unknown_id_ >= 0 && !continues) ids->push_back(unknown_id_);
}

void SentencePieceTokenizer::EncodeBpe(std::string_view text, std::vector<int32_t>* ids) const {
  std::vector<MergeSymbol> symbols;
  for (size_t at = 0; at < text.size();) {
    const PieceTrie::Match match = user_defined_.LongestPrefix(text.substr(at));
    const size_t bytes = match.bytes > 0 ? match.bytes : CharBytes(text.substr(at));
    const int32_t id = match.bytes > 0 ? match.id : FindTextPiece(text.substr(at, bytes));
    AppendSymbol(&symbols, static_cast<uint32_t>(at), static_cast<uint32_t>(bytes), id,
                 /*frozen=*/match.bytes > 0);
    at += bytes;
  }

  // Unused pieces take part in merging, but what they became is taken apart again. By the id of
  // the unused piece: the bytes of its left part.
  absl::flat_hash_map<int32_t, uint32_t> unused_left_bytes;
  std::vector<MergeCandidate> heap;
  MergeSymbols(symbols, heap,
               [&](const MergeSymbol& left, const MergeSymbol& right) -> std::optional<Merge> {
                 const int32_t id =
                     FindTextPiece(text.substr(left.begin, left.bytes + right.bytes));
                 if (id < 0) return std::nullopt;
                 if (vocabulary().kind(id) == PieceKind::kUnused) {
                   unused_left_bytes[id] = left.bytes;
                 }
                 return Merge{.rank = ranks_[id], .id = id};
               });

  const auto append = [&](auto& self, std::string_view part, int32_t id) -> void {
    if (id < 0) return AppendUnknown(part, ids);
    const auto unused = unused_left_bytes.find(id);
    if (unused == unused_left_bytes.end()) {
      ids->push_back(id);
      return;
    }
    // As deep as a piece is long, which the vocabulary bounds.
    const std::string_view left = part.substr(0, unused->second);
    const std::string_view right = part.substr(unused->second);
    self(self, left, FindTextPiece(left));
    self(self, right, FindTextPiece(right));
  };
  for (int32_t at = 0; at >= 0; at = symbols[at].next) {
    const MergeSymbol& symbol = symbols[at];
    append(append, text.substr(symbol.begin, symbol.bytes), symbol.id);
  }
}

void SentencePieceTokenizer::EncodeUnigram(std::string_view text, std::vector<int32_t>* ids) const {
  // The best segmentation that ends at each byte (Viterbi). Sums are of single precision, as in the
  // library from 0.2 on: of segmentations with equal pieces in another order, rounding decides.
  struct Best {
    float score = 0;
    int32_t id = -1;     // of the last piece; -1: a character without one
    int64_t begin = -1;  // where the last piece begins; -1: nothing ends here
  };
  std::vector<Best> best(text.size() + 1);
  for (size_t begin = 0; begin < text.size();) {
    const float before = best[begin].score;
    const auto offer = [&](size_t bytes, int32_t id, float score) {
      Best& end = best[begin + bytes];
      const float total = score + before;
      if (end.begin >= 0 && total <= end.score) return;
      end = {.score = total, .id = id, .begin = static_cast<int64_t>(begin)};
    };
    const size_t char_bytes = CharBytes(text.substr(begin));
    bool has_char = false;
    pieces_.ForEachPrefix(text.substr(begin), [&](size_t bytes, int32_t id) {
      if (vocabulary().kind(id) == PieceKind::kUnused) return;
      // User-defined pieces outweigh any other segmentation.
      const bool user_defined = vocabulary().kind(id) == PieceKind::kUserDefined;
      const float score =
          user_defined ? static_cast<float>(bytes) * best_score_ - 0.1f : scores_[id];
      offer(bytes, id, score);
      has_char |= bytes == char_bytes;
    });
    if (!has_char) offer(char_bytes, -1, unknown_score_);
    begin += char_bytes;
  }

  std::vector<std::pair<size_t, size_t>> spans;  // begin, end; last first
  for (size_t end = text.size(); end > 0; end = static_cast<size_t>(best[end].begin)) {
    spans.emplace_back(static_cast<size_t>(best[end].begin), end);
  }
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    const int32_t id = best[span->second].id;
    if (id >= 0) {
      ids->push_back(id);
    } else {
      AppendUnknown(text.substr(span->first, span->second - span->first), ids);
    }
  }
}

}  // namespace espalier
