#include "model/tokenizer/sentencepiece_model.h"

#include <string>
#include <utility>

#include "model/tokenizer/sentencepiece_tokenizer.h"
#include "model/tokenizer/text.h"
#include "model/tokenizer/wire_reader.h"

namespace espalier {
namespace {

// What ModelProto says besides the spec itself.
struct TrainerSpec {
  uint64_t model_type = 1;
  std::string bos_piece = "<s>";
  std::string eos_piece = "</s>";
};

absl::Status Malformed(std::string_view message) {
  return absl::InvalidArgumentError(Concat("tokenizer.model: malformed ", message));
}

absl::Status ReadPiece(std::string_view message, SentencePieceSpec* spec) {
  std::string_view piece;
  float score = 0;
  uint64_t type = 1;
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.number() == 1) piece = reader.bytes();
    if (reader.number() == 2) score = reader.float32();
    if (reader.number() == 3) type = reader.varint();
  }
  if (!reader.ok()) return Malformed("piece");
  const absl::StatusOr<PieceKind> kind = PieceKindFromNumber(static_cast<int64_t>(type));
  if (!kind.ok()) return kind.status();
  if (piece.empty() || spec->vocabulary.Find(piece).has_value()) {
    return absl::InvalidArgumentError(Concat("tokenizer.model: piece ", spec->vocabulary.size(),
                                             ", '", piece, "', is empty or there twice"));
  }
  spec->scores.push_back(score);
  return SetSentencePiece(spec->vocabulary.size(), piece, *kind, &spec->vocabulary);
}

absl::Status ReadTrainerSpec(std::string_view message, SentencePieceSpec* spec,
                             TrainerSpec* trainer) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.number() == 3) trainer->model_type = reader.varint();
    if (reader.number() == 24) spec->normalization.whitespace_as_suffix = reader.varint() != 0;
    if (reader.number() == 35) spec->byte_fallback = reader.varint() != 0;
    if (reader.number() == 46) trainer->bos_piece = reader.bytes();
    if (reader.number() == 47) trainer->eos_piece = reader.bytes();
  }
  return reader.ok() ? absl::OkStatus() : Malformed("trainer_spec");
}

absl::Status ReadNormalizerSpec(std::string_view message, SentencePieceNormalization* result) {
  WireReader reader(message);
  while (reader.Next()) {
    if (reader.number() == 2) result->charsmap = reader.bytes();
    if (reader.number() == 3) result->add_dummy_prefix = reader.varint() != 0;
    if (reader.number() == 4) result->remove_extra_whitespaces = reader.varint() != 0;
    if (reader.number() == 5) result->escape_whitespaces = reader.varint() != 0;
  }
  return reader.ok() ? absl::OkStatus() : Malformed("normalizer_spec");
}

// Fine-tuned folders add tokens behind the model's own pieces (or rename some of them).
absl::Status AddTokens(const std::vector<AddedToken>& tokens, SentencePieceSpec* spec) {
  for (const AddedToken& token : tokens) {
    if (spec->vocabulary.Find(token.content) == token.id) continue;
    const PieceKind kind = token.special ? PieceKind::kControl : PieceKind::kUserDefined;
    if (absl::Status status = SetSentencePiece(token.id, token.content, kind, &spec->vocabulary);
        !status.ok()) {
      return status;
    }
  }
  spec->scores.resize(spec->vocabulary.size());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePieceModel(std::string_view model,
                                                                   const TokenizerConfig& config) {
  SentencePieceSpec spec;
  spec.byte_fallback = false;
  TrainerSpec trainer;
  WireReader reader(model);
  while (reader.Next()) {
    absl::Status status;
    if (reader.number() == 1) status = ReadPiece(reader.bytes(), &spec);
    if (reader.number() == 2) status = ReadTrainerSpec(reader.bytes(), &spec, &trainer);
    if (reader.number() == 3) status = ReadNormalizerSpec(reader.bytes(), &spec.normalization);
    if (!status.ok()) return status;
  }
  if (!reader.ok() || spec.vocabulary.size() == 0) return Malformed("ModelProto");
  if (trainer.model_type != 1 && trainer.model_type != 2) {
    return absl::UnimplementedError(Concat("tokenizer.model: trainer_spec.model_type ",
                                           trainer.model_type,
                                           " is not supported, only unigram (1) and BPE (2)"));
  }
  spec.algorithm =
      trainer.model_type == 1 ? SentencePieceAlgorithm::kUnigram : SentencePieceAlgorithm::kBpe;
  if (absl::Status status = AddTokens(config.added_tokens, &spec); !status.ok()) return status;

  TokenizerConfig completed = config;
  if (completed.bos_token.empty()) completed.bos_token = trainer.bos_piece;
  if (completed.eos_token.empty()) completed.eos_token = trainer.eos_piece;
  absl::StatusOr<SequenceRules> rules = ResolveRules(completed, &spec.vocabulary);
  if (!rules.ok()) return rules.status();
  spec.rules = *std::move(rules);
  // Llama's tokenizer adds BOS unless its configuration says no.
  if (config.add_bos.value_or(true) && spec.rules.bos.has_value()) {
    spec.rules.prefix = {*spec.rules.bos};
  }
  return SentencePieceTokenizer::Create(std::move(spec));
}

}  // namespace espalier
