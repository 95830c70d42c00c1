// The model's configuration from a GGUF file's metadata and tensors.
#pragma once

#include "absl/status/statusor.h"
#include "model/checkpoint/gguf.h"
#include "model/config.h"

namespace espalier {

// Architectures "llama" (Mistral and SmolLM2 are stored as it) and "qwen2". What is absent has the
// default of llama.cpp's loader. UNIMPLEMENTED names what we do not support, INVALID_ARGUMENT what
// is missing or out of bounds.
absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file);

}  // namespace espalier
