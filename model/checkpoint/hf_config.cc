#include "model/checkpoint/hf_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/json_object.h"

namespace espalier {
namespace {

using nlohmann::json;

// Where transformers' configuration classes differ. Source: configuration_{llama,mistral,qwen2}.py.
struct Family {
  const char* model_type;
  const char* architecture;
  int default_kv_heads;  // 0: as many as heads
  int default_max_positions;
  bool window_by_default;  // whether an absent use_sliding_window means that the window is on
  bool qkv_bias;
};

constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", 0, 2048, false, false},
    {"mistral", "MistralForCausalLM", 8, 4096 * 32, true, false},
    {"qwen2", "Qwen2ForCausalLM", 32, 32768, false, true},
};
constexpr int kDefaultWindow = 4096;

// Keys that change the computation in a way that we do not implement, wherever they are set.
constexpr const char* kUnsupportedKeys[] = {
    "attn_logit_softcapping", "final_logit_softcapping", "logit_scale",
    "logits_scaling",         "embedding_multiplier",    "residual_multiplier",
    "attention_multiplier",   "quantization_config",
};

std::string Shown(const json& value) {
  constexpr size_t kMaxShownBytes = 80;
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kMaxShownBytes) text = text.substr(0, kMaxShownBytes) + "...";
  return text;
}

absl::Status Unsupported(const std::string& what) {
  return absl::UnimplementedError(absl::StrCat("config.json: ", what, " is not supported"));
}

// Typed reads from one JSON object. The first failure is kept; later reads give defaults.
class Fields {
 public:
  Fields(const json& object, std::string file) : object_(object), file_(std::move(file)) {}

  const absl::Status& status() const { return status_; }

  // Null when absent or JSON null.
  const json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  bool IsNull(const char* key) const {
    const auto it = object_.find(key);
    return it != object_.end() && it->is_null();
  }

  int Int(const char* key, std::optional<int> fallback) {
    const json* value = Find(key);
    if (value == nullptr) return Absent(key, fallback);
    if (!value->is_number_integer() || !FitsInt(*value)) {
      Fail(key, *value, "a 32-bit integer");
      return 0;
    }
    return value->get<int>();
  }

  double Real(const char* key, std::optional<double> fallback) {
    const json* value = Find(key);
    if (value == nullptr) return Absent(key, fallback);
    if (!value->is_number()) {
      Fail(key, *value, "a number");
      return 0;
    }
    return value->get<double>();
  }

  bool Bool(const char* key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      Fail(key, *value, "true or false");
      return fallback;
    }
    return value->get<bool>();
  }

  std::string String(const char* key, const std::string& fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) {
      Fail(key, *value, "a string");
      return fallback;
    }
    return value->get<std::string>();
  }

  // An integer or a list of integers.
  std::vector<int32_t> Ids(const char* key) {
    constexpr size_t kMaxIds = 1024;
    const json* value = Find(key);
    if (value == nullptr) return {};
    const json list = value->is_array() ? *value : json::array({*value});
    std::vector<int32_t> ids;
    for (const json& id : list) {
      if (!id.is_number_integer() || !FitsInt(id) || ids.size() == kMaxIds) {
        Fail(key, *value, "an id or a list of at most 1024");
        return {};
      }
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }

 private:
  static bool FitsInt(const json& value) {
    if (value.is_number_unsigned()) {
      return value.get<uint64_t>() <= std::numeric_limits<int>::max();
    }
    const int64_t number = value.get<int64_t>();
    return number >= std::numeric_limits<int>::min() && number <= std::numeric_limits<int>::max();
  }

  template <typename T>
  T Absent(const char* key, std::optional<T> fallback) {
    if (!fallback && status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(file_, " has no \"", key, "\""));
    }
    return fallback.value_or(T{});
  }

  void Fail(const char* key, const json& value, const char* wanted) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat(file_, ": \"", key, "\" is ", Shown(value), ", not ", wanted));
  }

  const json& object_;
  std::string file_;
  absl::Status status_;
};

absl::StatusOr<json> ParseFile(std::string_view text, const char* file) {
  auto parsed = ParseJsonObject(text);
  if (parsed.ok()) return parsed;
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", parsed.status().message()));
}

absl::StatusOr<const Family*> FindFamily(Fields& fields) {
  if (fields.Find("num_local_experts") != nullptr || fields.Find("num_experts") != nullptr) {
    return Unsupported("mixture of experts (num_experts, num_local_experts)");
  }
  if (fields.Find("model_type") == nullptr) {
    return absl::InvalidArgumentError("config.json has no \"model_type\"");
  }
  const std::string model_type = fields.String("model_type", "");
  for (const Family& family : kFamilies) {
    if (model_type != family.model_type) continue;
    const json* architectures = fields.Find("architectures");
    if (architectures != nullptr && *architectures != json::array({family.architecture})) {
      return Unsupported(absl::StrCat("architectures ", Shown(*architectures), " (only ",
                                      family.architecture, " of ", model_type, ")"));
    }
    return &family;
  }
  return Unsupported(absl::StrCat("model_type ", Shown(*fields.Find("model_type")),
                                  " (llama, mistral and qwen2 are)"));
}

absl::Status RefuseUnsupported(Fields& fields) {
  for (const char* key : kUnsupportedKeys) {
    if (const json* value = fields.Find(key)) {
      return Unsupported(absl::StrCat("\"", key, "\" = ", Shown(*value)));
    }
  }
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    return Unsupported(absl::StrCat("hidden_act ", Shown(activation), " (only silu is)"));
  }
  if (fields.Bool("mlp_bias", false)) return Unsupported("mlp_bias");
  // Qwen2's bias is on Q, K and V alone; this switch would add one to the output projection.
  if (fields.Bool("attention_bias", false)) return Unsupported("attention_bias");
  if (fields.Real("partial_rotary_factor", 1.0) != 1.0) {
    return Unsupported("partial_rotary_factor other than 1");
  }
  return fields.status();
}

// A window as long as the context never hides a key.
absl::Status RefuseActiveWindow(Fields& fields, const Family& family, int max_positions) {
  if (!fields.Bool("use_sliding_window", family.window_by_default)) return fields.status();
  // An explicit null switches the window off; only an absent key has the default.
  if (fields.IsNull("sliding_window")) return fields.status();
  const int window = fields.Int("sliding_window", kDefaultWindow);
  if (!fields.status().ok()) return fields.status();
  if (window < max_positions) {
    return Unsupported(absl::StrCat("an active sliding window (sliding_window ", window,
                                    ", max_position_embeddings ", max_positions, ")"));
  }
  return absl::OkStatus();
}

absl::StatusOr<RopeConfig> ParseRope(Fields& top, int max_positions) {
  RopeConfig rope;
  rope.theta = top.Real("rope_theta", rope.theta);
  const json* given = top.Find("rope_parameters");
  if (given == nullptr) given = top.Find("rope_scaling");
  if (given == nullptr) return rope;
  if (!given->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json: the rope parameters are ", Shown(*given), ", not an object"));
  }
  for (const auto& [key, value] : given->items()) {
    if (value.is_object()) return Unsupported("rope_parameters per layer type");
  }

  Fields fields(*given, "config.json, rope parameters");
  rope.theta = fields.Real("rope_theta", rope.theta);
  if (fields.Real("partial_rotary_factor", 1.0) != 1.0) {
    return Unsupported("partial_rotary_factor other than 1");
  }
  const std::string type = fields.String("rope_type", fields.String("type", "default"));
  if (!fields.status().ok()) return fields.status();
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = fields.Real("factor", std::nullopt);
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    rope.factor = fields.Real("factor", std::nullopt);
    rope.low_freq_factor = fields.Real("low_freq_factor", std::nullopt);
    rope.high_freq_factor = fields.Real("high_freq_factor", std::nullopt);
    rope.original_max_positions = fields.Real("original_max_position_embeddings", max_positions);
  } else if (type != "default") {
    return Unsupported(absl::StrCat("rope scaling ", Shown(type), " (linear and llama3 are)"));
  }
  if (!fields.status().ok()) return fields.status();
  return rope;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseHfConfig(std::string_view text) {
  const auto parsed = ParseFile(text, "config.json");
  if (!parsed.ok()) return parsed.status();
  Fields fields(*parsed, "config.json");
  const auto family = FindFamily(fields);
  if (!family.ok()) return family.status();
  if (absl::Status status = RefuseUnsupported(fields); !status.ok()) return status;

  ModelConfig config;
  config.architecture = (*family)->model_type;
  config.vocab_size = fields.Int("vocab_size", std::nullopt);
  config.hidden_size = fields.Int("hidden_size", std::nullopt);
  config.intermediate_size = fields.Int("intermediate_size", std::nullopt);
  config.num_layers = fields.Int("num_hidden_layers", std::nullopt);
  config.num_heads = fields.Int("num_attention_heads", std::nullopt);
  // An explicit null means multi-head attention, whatever the family.
  const bool default_kv_heads =
      (*family)->default_kv_heads != 0 && !fields.IsNull("num_key_value_heads");
  config.num_kv_heads = fields.Int(
      "num_key_value_heads", default_kv_heads ? (*family)->default_kv_heads : config.num_heads);
  config.max_positions = fields.Int("max_position_embeddings", (*family)->default_max_positions);
  config.norm_eps = static_cast<float>(fields.Real("rms_norm_eps", 1e-6));
  config.tied_embeddings = fields.Bool("tie_word_embeddings", false);
  config.qkv_bias = (*family)->qkv_bias;
  config.bos_token_id = fields.Int("bos_token_id", -1);
  config.eos_token_ids = fields.Ids("eos_token_id");
  if (!fields.status().ok()) return fields.status();

  if (fields.Find("head_dim") != nullptr) {
    config.head_dim = fields.Int("head_dim", std::nullopt);
  } else if (config.num_heads > 0 && config.hidden_size % config.num_heads == 0) {
    config.head_dim = config.hidden_size / config.num_heads;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("config.json has no \"head_dim\" and hidden_size ", config.hidden_size,
                     " is not a multiple of num_attention_heads ", config.num_heads));
  }
  if (absl::Status status = RefuseActiveWindow(fields, **family, config.max_positions);
      !status.ok()) {
    return status;
  }
  auto rope = ParseRope(fields, config.max_positions);
  if (!rope.ok()) return rope.status();
  config.rope = *std::move(rope);
  if (!fields.status().ok()) return fields.status();
  if (absl::Status status = ValidateConfig(config); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("config.json: ", status.message()));
  }
  return config;
}

absl::Status MergeGenerationConfig(std::string_view text, ModelConfig* config) {
  const auto parsed = ParseFile(text, "generation_config.json");
  if (!parsed.ok()) return parsed.status();
  Fields fields(*parsed, "generation_config.json");
  for (const int32_t id : fields.Ids("eos_token_id")) {
    if (id < 0 || id >= config->vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("generation_config.json: eos_token_id is ", id,
                                                     ", not in 0 to ", config->vocab_size - 1,
                                                     " (vocab_size - 1)"));
    }
    if (std::ranges::find(config->eos_token_ids, id) == config->eos_token_ids.end()) {
      config->eos_token_ids.push_back(id);
    }
  }
  return fields.status();
}

}  // namespace espalier
