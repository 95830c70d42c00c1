// The pre-tokenizers that GGUF files name in tokenizer.ggml.pre. A GGUF carries the name only; what
// it stands for is a convention of the ecosystem.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "model/tokenizer/pre_tokenizer.h"

namespace espalier {

struct GgufPreTokenizer {
  PreTokenizer splitter;
  bool ignore_merges = false;
  bool nfc = false;      // as the family's own tokenizer normalises
  bool add_bos = false;  // where tokenizer.ggml.add_bos_token is silent
};

// UNIMPLEMENTED: a name that we do not know; the message lists those that we do.
absl::StatusOr<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name);

}  // namespace espalier
