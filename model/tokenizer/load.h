// Builds the tokenizer that a checkpoint carries. Files are untrusted: what is malformed or not
// supported comes back as a status that names it.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

class GgufFile;

// From a Hugging Face folder: tokenizer.json (byte-level BPE), else tokenizer.model
// (sentencepiece), with tokenizer_config.json, special_tokens_map.json and generation_config.json
// read, where they exist, for BOS, the end-of-generation ids and the chat format.
// NOT_FOUND: the folder has neither. UNIMPLEMENTED: a tokenizer of another kind, named.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFromFolder(const std::string& path);

// From the vocabulary in a GGUF file's metadata: tokenizer.ggml.model "llama" (sentencepiece) or
// "gpt2" (byte-level BPE, split by the rule that tokenizer.ggml.pre names).
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFromGguf(const GgufFile& file);

}  // namespace espalier
