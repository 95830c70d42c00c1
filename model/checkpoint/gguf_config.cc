#include "model/checkpoint/gguf_config.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/quoted.h"

namespace espalier {
namespace {

// Typed reads of "<architecture>.<key>". The first failure is kept; later reads give defaults.
class Metadata {
 public:
  Metadata(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  const absl::Status& status() const { return status_; }
  std::string Key(const char* key) const { return absl::StrCat(prefix_, ".", key); }
  bool Has(const char* key) const { return file_.Has(Key(key)); }

  int Int(const char* key, std::optional<int> fallback) {
    const auto value =
        file_.GetInt(Key(key), std::numeric_limits<int>::min(), std::numeric_limits<int>::max());
    return static_cast<int>(
        Keep(value, fallback ? std::optional<int64_t>(*fallback) : std::nullopt));
  }
  float Real(const char* key, std::optional<float> fallback) {
    return Keep(file_.GetF32(Key(key)), fallback);
  }
  std::string String(const char* key, std::string_view fallback) {
    return std::string(Keep(file_.GetString(Key(key)), std::optional(fallback)));
  }
  bool Bool(const char* key, bool fallback) {
    return Keep(file_.GetBool(Key(key)), std::optional(fallback));
  }

 private:
  template <typename T>
  T Keep(const absl::StatusOr<T>& value, std::optional<T> fallback) {
    if (value.ok()) return *value;
    if (absl::IsNotFound(value.status()) && fallback) return *fallback;
    if (status_.ok()) status_ = absl::InvalidArgumentError(value.status().message());
    return fallback.value_or(T{});
  }

  const GgufFile& file_;
  std::string prefix_;
  absl::Status status_;
};

absl::Status Unsupported(const GgufFile& file, const std::string& what) {
  return absl::UnimplementedError(absl::StrCat(file.name(), ": ", what, " is not supported"));
}

absl::Status RefuseUnsupported(const GgufFile& file, Metadata& metadata,
                               const ModelConfig& config) {
  if (metadata.Int("expert_count", 0) > 0) {
    return Unsupported(file,
                       absl::StrCat("mixture of experts (", metadata.Key("expert_count"), ")"));
  }
  const int window = metadata.Int("attention.sliding_window", 0);
  if (window > 0 && window < config.max_positions) {
    return Unsupported(file, absl::StrCat("an active sliding window (", window, " of ",
                                          config.max_positions, " positions)"));
  }
  if (metadata.Int("attention.value_length", config.head_dim) != config.head_dim) {
    return Unsupported(file, "attention.value_length other than key_length");
  }
  if (metadata.Int("rope.dimension_count", config.head_dim) != config.head_dim) {
    return Unsupported(file, "rope.dimension_count other than the head's size");
  }
  if (metadata.Real("rope.scaling.attn_factor", 1.0f) != 1.0f) {
    return Unsupported(file, "rope.scaling.attn_factor other than 1");
  }
  if (!metadata.Bool("attention.causal", true)) return Unsupported(file, "non-causal attention");
  for (const char* tensor : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
    if (file.FindTensor(tensor) != nullptr) {
      return Unsupported(file, absl::StrCat("LongRoPE (tensor ", tensor, ")"));
    }
  }
  if (file.FindTensor("blk.0.attn_output.bias") != nullptr ||
      (file.FindTensor("blk.0.attn_q.bias") != nullptr && !config.qkv_bias)) {
    return Unsupported(file, absl::StrCat("attention bias in architecture ", config.architecture));
  }
  return metadata.status();
}

absl::StatusOr<RopeConfig> ReadRope(const GgufFile& file, Metadata& metadata) {
  RopeConfig rope;
  rope.theta = metadata.Real("rope.freq_base", 10000.0f);
  // Without a type llama.cpp takes a factor as linear; "rope.scale_linear" is its older name.
  const std::string type = metadata.String("rope.scaling.type", "linear");
  const float factor =
      metadata.Real("rope.scaling.factor", metadata.Real("rope.scale_linear", 1.0f));
  if (type == "linear" && factor != 0.0f && factor != 1.0f) {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = factor;
  } else if (type != "linear" && type != "none") {
    return Unsupported(file, absl::StrCat("rope scaling ", Quoted(type)));
  }

  if (const ConstMatrix* factors = file.FindTensor("rope_freqs.weight")) {
    constexpr int64_t kMaxFactors = 1 << 16;
    if (factors->dtype != DType::kF32 || factors->rows != 1 || factors->cols > kMaxFactors) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.name(), ": tensor rope_freqs.weight is ", ToAbsl(Info(factors->dtype).name), " ",
          factors->rows, " x ", factors->cols, ", not one row of F32"));
    }
    rope.factors.resize(factors->cols);
    std::memcpy(rope.factors.data(), factors->data, rope.factors.size() * sizeof(float));
  }
  return rope;
}

// The ids that end a generation: end of sequence, of turn and of message.
absl::Status ReadTokenIds(const GgufFile& file, ModelConfig* config) {
  Metadata tokenizer(file, "tokenizer.ggml");
  config->bos_token_id = tokenizer.Int("bos_token_id", -1);
  for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    if (!tokenizer.Has(key)) continue;
    const int32_t id = tokenizer.Int(key, std::nullopt);
    if (std::ranges::find(config->eos_token_ids, id) == config->eos_token_ids.end()) {
      config->eos_token_ids.push_back(id);
    }
  }
  return tokenizer.status();
}

}  // namespace

absl::StatusOr<ModelConfig> ReadGgufConfig(const GgufFile& file) {
  const auto architecture = file.GetString("general.architecture");
  if (!architecture.ok()) return absl::InvalidArgumentError(architecture.status().message());
  if (*architecture != "llama" && *architecture != "qwen2") {
    return Unsupported(
        file, absl::StrCat("architecture ", Quoted(*architecture), " (llama and qwen2 are)"));
  }
  const ConstMatrix* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.name(), ": no tensor token_embd.weight among ", file.num_tensors(),
                     file.num_tensors() == 0 ? " (a vocabulary without a model?)" : ""));
  }

  Metadata metadata(file, std::string(*architecture));
  ModelConfig config;
  config.architecture = std::string(*architecture);
  if (const auto name = file.GetString("general.name"); name.ok()) config.name = *name;
  config.vocab_size =
      static_cast<int>(std::min<int64_t>(embedding->rows, std::numeric_limits<int>::max()));
  config.hidden_size = metadata.Int("embedding_length", std::nullopt);
  config.intermediate_size = metadata.Int("feed_forward_length", std::nullopt);
  config.num_layers = metadata.Int("block_count", std::nullopt);
  config.num_heads = metadata.Int("attention.head_count", std::nullopt);
  config.num_kv_heads = metadata.Int("attention.head_count_kv", config.num_heads);
  config.max_positions = metadata.Int("context_length", std::nullopt);
  config.norm_eps = metadata.Real("attention.layer_norm_rms_epsilon", std::nullopt);
  config.tied_embeddings = file.FindTensor("output.weight") == nullptr;
  config.qkv_bias = config.architecture == "qwen2";
  const bool divides = config.num_heads > 0 && config.hidden_size % config.num_heads == 0;
  config.head_dim = metadata.Int(
      "attention.key_length",
      divides ? std::optional<int>(config.hidden_size / config.num_heads) : std::nullopt);
  if (!metadata.status().ok()) return metadata.status();

  if (absl::Status status = RefuseUnsupported(file, metadata, config); !status.ok()) return status;
  auto rope = ReadRope(file, metadata);
  if (!rope.ok()) return rope.status();
  config.rope = *std::move(rope);
  if (!metadata.status().ok()) return metadata.status();
  if (absl::Status status = ReadTokenIds(file, &config); !status.ok()) return status;
  if (absl::Status status = ValidateConfig(config); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(file.name(), ": ", status.message()));
  }
  return config;
}

}  // namespace espalier
