// config.json and generation_config.json of a Hugging Face folder. Untrusted text: malformed JSON
// and numbers out of bounds come back as INVALID_ARGUMENT, what we do not support as UNIMPLEMENTED,
// each naming the key and its value.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"

namespace espalier {

// Reads the spelling of transformers 5 (`rope_parameters`) and the older one (`rope_scaling`,
// `rope_theta`). What is absent has the default of transformers' configuration class. Refused by
// name: an active sliding window, dynamic, YaRN and LongRoPE scaling, mixture of experts, other
// architectures and activations, biases other than Qwen2's, soft caps, quantised weights.
absl::StatusOr<ModelConfig> ParseHfConfig(std::string_view json);

// Adds generation_config.json's end-of-generation ids to the config's own.
absl::Status MergeGenerationConfig(std::string_view json, ModelConfig* config);

}  // namespace espalier
