#include <string>

#include "model/tokenizer/load.h"
#include "model/tokenizer/sentencepiece_model.h"
#include "model/tokenizer/text.h"
#include "model/tokenizer/tokenizer_config.h"
#include "model/tokenizer/tokenizer_json.h"

namespace espalier {
namespace {

constexpr size_t kMaxTokenizerBytes = 128 << 20;

using Parse = absl::StatusOr<std::unique_ptr<Tokenizer>> (*)(std::string_view,
                                                             const TokenizerConfig&);

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadFile(const std::string& path, Parse parse,
                                                    const TokenizerConfig& config) {
  const absl::StatusOr<std::string> bytes = ReadSmallFile(path, kMaxTokenizerBytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = parse(*bytes, config);
  if (tokenizer.ok()) return tokenizer;
  const absl::Status& status = tokenizer.status();
  return absl::Status(status.code(), Concat(path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFromFolder(const std::string& path) {
  const absl::StatusOr<TokenizerConfig> config = ReadTokenizerConfig(path);
  if (!config.ok()) return config.status();
  auto from_json = LoadFile(Concat(path, "/tokenizer.json"), ParseTokenizerJson, *config);
  // Llama 2 folders hold both forms, and their tokenizer.json is no byte-level BPE.
  if (!absl::IsNotFound(from_json.status()) && !absl::IsUnimplemented(from_json.status())) {
    return from_json;
  }
  auto from_model = LoadFile(Concat(path, "/tokenizer.model"), ParseSentencePieceModel, *config);
  if (!absl::IsNotFound(from_model.status())) return from_model;
  if (absl::IsUnimplemented(from_json.status())) return from_json;
  return absl::NotFoundError(Concat(path, ": no tokenizer.json and no tokenizer.model"));
}

}  // namespace espalier
