// Reads Hugging Face's tokenizer.json where it describes a byte-level BPE.
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_config.h"

namespace espalier {

// `json` is the file's text; it is not kept. INVALID_ARGUMENT: malformed. UNIMPLEMENTED: a
// component that we do not run, by name.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::string_view json,
                                                              const TokenizerConfig& config);

}  // namespace espalier
