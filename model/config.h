// Hyperparameters of a Llama-family model, as read from config.json or GGUF metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace espalier {

enum class RopeScaling { kNone, kLinear, kLlama3 };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                   // linear and llama3
  double low_freq_factor = 1.0;          // llama3
  double high_freq_factor = 4.0;         // llama3
  double original_max_positions = 8192;  // llama3
  std::vector<float> factors;            // GGUF rope_freqs: divides each frequency; empty: none
};

struct ModelConfig {
  std::string architecture;  // "llama", "mistral", "qwen2"
  std::string name;
  int vocab_size = 0;
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int max_positions = 0;  // trained context length, tokens
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  RopeConfig rope;
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;  // -1: none
};

// Whether every number is within what we accept and they fit each other. Whoever reads a config
// from a file calls this before anything is sized by it. INVALID_ARGUMENT names field, value,
// limit.
absl::Status ValidateConfig(const ModelConfig& config);

// inv_freq[i], i < head_dim / 2, after scaling. Source: Hugging Face transformers'
// modeling_rope_utils; Llama 3.1 reference code for llama3.
std::vector<float> RopeInvFreq(const ModelConfig& config);

}  // namespace espalier
