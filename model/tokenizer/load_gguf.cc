#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/gguf.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/byte_level_bpe.h"
#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/gguf_pre_tokenizers.h"
#include "model/tokenizer/load.h"
#include "model/tokenizer/sentencepiece_tokenizer.h"
#include "model/tokenizer/text.h"

namespace espalier {
namespace {

// A key that may be missing, but not be of another type.
template <typename T>
absl::StatusOr<T> Optional(const GgufFile& file, std::string_view key,
                           absl::StatusOr<T> (GgufFile::*get)(std::string_view) const, T missing) {
  if (!file.Has(key)) return missing;
  return (file.*get)(key);
}

absl::StatusOr<std::optional<int32_t>> OptionalId(const GgufFile& file, std::string_view key,
                                                  int vocab_size) {
  if (!file.Has(key)) return std::nullopt;
  const absl::StatusOr<int64_t> id = file.GetInt(key, 0, vocab_size - 1);
  if (!id.ok()) return id.status();
  return static_cast<int32_t>(*id);
}

// The pieces with their kinds, one call each: set(id, piece, kind).
template <typename Set>
absl::Status ReadPieces(const GgufFile& file, Set set) {
  const absl::StatusOr<std::vector<std::string_view>> pieces =
      file.GetStringArray("tokenizer.ggml.tokens");
  if (!pieces.ok()) return pieces.status();
  const absl::StatusOr<std::vector<int32_t>> types =
      Optional(file, "tokenizer.ggml.token_type", &GgufFile::GetI32Array,
               std::vector<int32_t>(pieces->size(), 1));
  if (!types.ok()) return types.status();
  if (types->size() != pieces->size() || pieces->empty()) {
    return absl::InvalidArgumentError(Concat("tokenizer.ggml.tokens: ", pieces->size(), " tokens, ",
                                             types->size(), " token types"));
  }
  for (size_t id = 0; id < pieces->size(); ++id) {
    const absl::StatusOr<PieceKind> kind = PieceKindFromNumber((*types)[id]);
    if (!kind.ok()) return kind.status();
    absl::Status status = set(static_cast<int64_t>(id), (*pieces)[id], *kind);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// The ids that end a generation. A GGUF names one of them; the others (a chat model has an end of
// turn and an end of text) go by their usual spelling, as no generation_config.json is there.
absl::StatusOr<std::vector<int32_t>> FindEos(const GgufFile& file, const Vocabulary& vocabulary) {
  std::vector<int32_t> eos;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    const auto id = OptionalId(file, key, vocabulary.size());
    if (!id.ok()) return id.status();
    if (id->has_value()) eos.push_back(**id);
  }
  for (const char* piece :
       {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"}) {
    const std::optional<int32_t> id = vocabulary.Find(piece);
    if (id.has_value() && vocabulary.kind(*id) == PieceKind::kControl) eos.push_back(*id);
  }
  std::sort(eos.begin(), eos.end());
  eos.erase(std::unique(eos.begin(), eos.end()), eos.end());
  return eos;
}

absl::StatusOr<SequenceRules> ReadRules(const GgufFile& file, bool add_bos_by_default,
                                        Vocabulary* vocabulary) {
  SequenceRules rules;
  const auto bos = OptionalId(file, "tokenizer.ggml.bos_token_id", vocabulary->size());
  if (!bos.ok()) return bos.status();
  rules.bos = *bos;
  absl::StatusOr<std::vector<int32_t>> eos = FindEos(file, *vocabulary);
  if (!eos.ok()) return eos.status();
  rules.eos = *std::move(eos);
  // What begins and ends sequences is special even where the token types forgot to say so.
  for (const int32_t id : rules.eos) vocabulary->MakeSpecial(id);
  if (rules.bos.has_value()) vocabulary->MakeSpecial(*rules.bos);

  const absl::StatusOr<bool> add_bos =
      Optional(file, "tokenizer.ggml.add_bos_token", &GgufFile::GetBool, add_bos_by_default);
  if (!add_bos.ok()) return add_bos.status();
  if (*add_bos && rules.bos.has_value()) rules.prefix = {*rules.bos};
  const absl::StatusOr<std::string_view> chat =
      Optional(file, "tokenizer.chat_template", &GgufFile::GetString, std::string_view());
  if (!chat.ok()) return chat.status();
  rules.chat = RecognizeChatTemplate(*chat);
  return rules;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadByteLevelBpe(const GgufFile& file) {
  const auto name =
      Optional(file, "tokenizer.ggml.pre", &GgufFile::GetString, std::string_view("default"));
  if (!name.ok()) return name.status();
  absl::StatusOr<GgufPreTokenizer> pre = FindGgufPreTokenizer(*name);
  if (!pre.ok()) return pre.status();

  ByteLevelBpeSpec spec;
  absl::Status status = ReadPieces(file, [&](int64_t id, std::string_view piece, PieceKind kind) {
    const std::optional<std::string> bytes =
        kind == PieceKind::kNormal ? ByteLevelDecode(piece) : std::nullopt;
    return spec.vocabulary.Set(id, piece, bytes.value_or(std::string(piece)), kind);
  });
  if (!status.ok()) return status;

  const absl::StatusOr<std::vector<std::string_view>> merges =
      file.GetStringArray("tokenizer.ggml.merges");
  if (!merges.ok()) return merges.status();
  for (const std::string_view merge : *merges) {
    // From the second byte: neither side is empty.
    const size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) {
      return absl::InvalidArgumentError(
          Concat("tokenizer.ggml.merges: '", merge, "', wanted two pieces"));
    }
    spec.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }

  absl::StatusOr<SequenceRules> rules = ReadRules(file, pre->add_bos, &spec.vocabulary);
  if (!rules.ok()) return rules.status();
  const absl::StatusOr<bool> prefix_space =
      Optional(file, "tokenizer.ggml.add_space_prefix", &GgufFile::GetBool, false);
  if (!prefix_space.ok()) return prefix_space.status();
  spec.rules = *std::move(rules);
  spec.add_prefix_space = *prefix_space;
  spec.ignore_merges = pre->ignore_merges;
  spec.nfc = pre->nfc;
  spec.pre_tokenizer = std::move(pre->splitter);
  return ByteLevelBpe::Create(std::move(spec));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePiece(const GgufFile& file) {
  SentencePieceSpec spec;
  absl::Status status = ReadPieces(file, [&](int64_t id, std::string_view piece, PieceKind kind) {
    return SetSentencePiece(id, piece, kind, &spec.vocabulary);
  });
  if (!status.ok()) return status;
  absl::StatusOr<std::vector<float>> scores = file.GetF32Array("tokenizer.ggml.scores");
  if (!scores.ok()) return scores.status();
  spec.scores = *std::move(scores);

  const auto dummy = Optional(file, "tokenizer.ggml.add_space_prefix", &GgufFile::GetBool, true);
  if (!dummy.ok()) return dummy.status();
  const auto trims =
      Optional(file, "tokenizer.ggml.remove_extra_whitespaces", &GgufFile::GetBool, false);
  if (!trims.ok()) return trims.status();
  spec.normalization.add_dummy_prefix = *dummy;
  spec.normalization.remove_extra_whitespaces = *trims;
  spec.byte_fallback = spec.vocabulary.Find("<0x00>").has_value();

  absl::StatusOr<SequenceRules> rules =
      ReadRules(file, /*add_bos_by_default=*/true, &spec.vocabulary);
  if (!rules.ok()) return rules.status();
  spec.rules = *std::move(rules);
  return SentencePieceTokenizer::Create(std::move(spec));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFromGguf(const GgufFile& file) {
  const absl::StatusOr<std::string_view> model = file.GetString("tokenizer.ggml.model");
  if (!model.ok()) return model.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = absl::UnimplementedError(
      Concat("tokenizer.ggml.model: '", *model, "' is not supported, only gpt2 and llama"));
  if (*model == "gpt2") tokenizer = LoadByteLevelBpe(file);
  if (*model == "llama") tokenizer = LoadSentencePiece(file);
  if (tokenizer.ok()) return tokenizer;
  const absl::Status& status = tokenizer.status();
  return absl::Status(status.code(), Concat(file.name(), ": ", status.message()));
}

}  // namespace espalier
