// Reads sentencepiece's tokenizer.model: a serialised ModelProto (source: sentencepiece_model.proto
// of the sentencepiece project).
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_config.h"

namespace espalier {

// `model` is the file's bytes; they are not kept. INVALID_ARGUMENT: malformed. UNIMPLEMENTED: word
// and character models.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePieceModel(std::string_view model,
                                                                   const TokenizerConfig& config);

}  // namespace espalier
