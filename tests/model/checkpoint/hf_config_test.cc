#include "model/checkpoint/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace espalier {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json Llama() {
  return {{"model_type", "llama"},
          {"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 1000},
          {"hidden_size", 512},
          {"intermediate_size", 1024},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 8},
          {"num_key_value_heads", 2},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 4096},
          {"tie_word_embeddings", false},
          {"rope_theta", 50000.0},
          {"bos_token_id", 1},
          {"eos_token_id", 2}};
}

json With(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

json Without(json config, const std::string& key) {
  config.erase(key);
  return config;
}

json Mistral() {
  return With(With(Llama(), "model_type", "mistral"), "architectures", {"MistralForCausalLM"});
}

json Qwen2() {
  return With(With(Llama(), "model_type", "qwen2"), "architectures", {"Qwen2ForCausalLM"});
}

ModelConfig Parse(const json& config) {
  const auto parsed = ParseHfConfig(config.dump());
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.ok() ? *parsed : ModelConfig();
}

void ExpectRefused(const json& config, const std::string& part, absl::StatusCode code) {
  const auto parsed = ParseHfConfig(config.dump());
  ASSERT_FALSE(parsed.ok()) << config;
  EXPECT_EQ(parsed.status().code(), code) << parsed.status();
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(part));
}

void ExpectInvalid(const json& config, const std::string& part) {
  ExpectRefused(config, part, absl::StatusCode::kInvalidArgument);
}

void ExpectUnsupported(const json& config, const std::string& part) {
  ExpectRefused(config, part, absl::StatusCode::kUnimplemented);
}

TEST(HfConfigTest, ReadsEveryField) {
  const ModelConfig config = Parse(Llama());
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.vocab_size, 1000);
  EXPECT_EQ(config.hidden_size, 512);
  EXPECT_EQ(config.intermediate_size, 1024);
  EXPECT_EQ(config.num_layers, 3);
  EXPECT_EQ(config.num_heads, 8);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.max_positions, 4096);
  EXPECT_EQ(config.norm_eps, 1e-5f);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.rope.theta, 50000.0);
  EXPECT_EQ(config.rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_TRUE(Parse(Qwen2()).qkv_bias);
  EXPECT_TRUE(Parse(With(Llama(), "tie_word_embeddings", true)).tied_embeddings);
  EXPECT_EQ(Parse(With(Llama(), "head_dim", 32)).head_dim, 32);
  EXPECT_EQ(Parse(With(Llama(), "head_dim", nullptr)).head_dim, 64);
}

// The defaults of transformers' configuration classes.
TEST(HfConfigTest, DefaultsFollowTheFamily) {
  EXPECT_EQ(Parse(Without(Llama(), "num_key_value_heads")).num_kv_heads, 8);
  EXPECT_EQ(Parse(With(Mistral(), "num_attention_heads", 16)).num_kv_heads, 2);
  EXPECT_EQ(Parse(Without(With(Mistral(), "num_attention_heads", 16), "num_key_value_heads"))
                .num_kv_heads,
            8);
  EXPECT_EQ(Parse(With(With(Mistral(), "num_attention_heads", 16), "num_key_value_heads", nullptr))
                .num_kv_heads,
            16);
  EXPECT_EQ(Parse(Without(Llama(), "max_position_embeddings")).max_positions, 2048);
  EXPECT_EQ(Parse(Without(Qwen2(), "max_position_embeddings")).max_positions, 32768);
  EXPECT_EQ(Parse(Without(Llama(), "rms_norm_eps")).norm_eps, 1e-6f);
  EXPECT_EQ(Parse(Without(Llama(), "rope_theta")).rope.theta, 10000.0);
  EXPECT_EQ(Parse(Without(Llama(), "bos_token_id")).bos_token_id, -1);
  EXPECT_THAT(Parse(Without(Llama(), "eos_token_id")).eos_token_ids, ElementsAre());
}

TEST(HfConfigTest, ReadsBothSpellingsOfRopeScaling) {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 32.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const ModelConfig older = Parse(With(Llama(), "rope_scaling", llama3));
  const ModelConfig newer = Parse(
      With(Without(Llama(), "rope_theta"), "rope_parameters", With(llama3, "rope_theta", 50000.0)));
  for (const ModelConfig& config : {older, newer}) {
    EXPECT_EQ(config.rope.theta, 50000.0);
    EXPECT_EQ(config.rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(config.rope.factor, 32.0);
    EXPECT_EQ(config.rope.low_freq_factor, 1.0);
    EXPECT_EQ(config.rope.high_freq_factor, 4.0);
    EXPECT_EQ(config.rope.original_max_positions, 8192);
  }
  for (const char* type_key : {"type", "rope_type"}) {
    const ModelConfig linear =
        Parse(With(Llama(), "rope_scaling", {{type_key, "linear"}, {"factor", 2}}));
    EXPECT_EQ(linear.rope.scaling, RopeScaling::kLinear);
    EXPECT_EQ(linear.rope.factor, 2.0);
  }
  const ModelConfig plain =
      Parse(With(Llama(), "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}));
  EXPECT_EQ(plain.rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(plain.rope.theta, 1e6);
  EXPECT_EQ(Parse(With(Llama(), "rope_scaling", nullptr)).rope.scaling, RopeScaling::kNone);
}

TEST(HfConfigTest, RefusesOtherRopeScaling) {
  for (const char* type : {"yarn", "dynamic", "longrope", "su", "mrope"}) {
    ExpectUnsupported(With(Llama(), "rope_scaling", {{"type", type}, {"factor", 2.0}}), type);
    ExpectUnsupported(With(Llama(), "rope_parameters", {{"rope_type", type}, {"factor", 2.0}}),
                      type);
  }
  ExpectUnsupported(
      With(Llama(), "rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}),
      "per layer type");
  ExpectUnsupported(With(Llama(), "rope_parameters", {{"partial_rotary_factor", 0.5}}),
                    "partial_rotary_factor");
  ExpectInvalid(With(Llama(), "rope_scaling", {{"type", "linear"}}), "no \"factor\"");
  ExpectInvalid(With(Llama(), "rope_scaling", {{"type", "linear"}, {"factor", 0}}), "factor is 0");
  ExpectInvalid(With(Llama(), "rope_scaling",
                     {{"type", "llama3"},
                      {"factor", 8},
                      {"low_freq_factor", 4},
                      {"high_freq_factor", 4},
                      {"original_max_position_embeddings", 64}}),
                "not above low_freq_factor");
  ExpectInvalid(With(Llama(), "rope_scaling", "linear"), "not an object");
}

TEST(HfConfigTest, RefusesAnActiveSlidingWindow) {
  ExpectUnsupported(With(Mistral(), "sliding_window", 4095), "sliding window");
  Parse(With(Mistral(), "sliding_window", 4096));  // the whole context
  Parse(With(Mistral(), "sliding_window", nullptr));
  Parse(With(With(Mistral(), "sliding_window", 64), "use_sliding_window", false));
  // Absent, transformers takes 4096.
  ExpectUnsupported(With(Mistral(), "max_position_embeddings", 32768), "sliding window");
  Parse(With(Qwen2(), "sliding_window", 64));  // off unless switched on
  ExpectUnsupported(With(With(Qwen2(), "sliding_window", 64), "use_sliding_window", true),
                    "sliding window");
  Parse(With(Llama(), "sliding_window", 64));  // Llama has none and ignores the key
}

TEST(HfConfigTest, RefusesOtherModelsByName) {
  ExpectUnsupported(With(Llama(), "model_type", "gemma2"), "\"gemma2\"");
  ExpectUnsupported(With(Llama(), "num_local_experts", 8), "mixture of experts");
  ExpectUnsupported(With(Llama(), "num_experts", 60), "mixture of experts");
  ExpectUnsupported(With(Llama(), "architectures", {"LlamaForSequenceClassification"}),
                    "LlamaForSequenceClassification");
  ExpectUnsupported(With(Llama(), "hidden_act", "gelu"), "gelu");
  ExpectUnsupported(With(Llama(), "mlp_bias", true), "mlp_bias");
  ExpectUnsupported(With(Llama(), "attention_bias", true), "attention_bias");
  ExpectUnsupported(With(Llama(), "attn_logit_softcapping", 50.0), "attn_logit_softcapping");
  ExpectUnsupported(With(Llama(), "final_logit_softcapping", 30.0), "final_logit_softcapping");
  ExpectUnsupported(With(Llama(), "quantization_config", {{"quant_method", "gptq"}}), "gptq");
  Parse(With(Llama(), "final_logit_softcapping", nullptr));
}

// Each number at its limit and one beyond.
TEST(HfConfigTest, BoundsEveryNumber) {
  struct Limit {
    const char* key;
    int64_t lowest;
    int64_t highest;
  };
  for (const Limit& limit :
       {Limit{"vocab_size", 3, 1 << 24}, Limit{"hidden_size", 8, 1 << 17},
        Limit{"intermediate_size", 1, 1 << 20}, Limit{"num_hidden_layers", 1, 1024},
        Limit{"max_position_embeddings", 1, 1 << 28}}) {
    SCOPED_TRACE(limit.key);
    const json config = With(Llama(), "head_dim", 64);
    Parse(With(config, limit.key, limit.lowest));
    Parse(With(config, limit.key, limit.highest));
    ExpectInvalid(With(config, limit.key, limit.highest + 1), "");
    ExpectInvalid(With(config, limit.key, 0), "");
    ExpectInvalid(With(config, limit.key, -1), "");
    ExpectInvalid(With(config, limit.key, int64_t{1} << 40), limit.key);
    ExpectInvalid(With(config, limit.key, -(int64_t{1} << 31)), "");
    ExpectInvalid(With(config, limit.key, ~uint64_t{0}), limit.key);
    ExpectInvalid(With(config, limit.key, 64.0), limit.key);
    ExpectInvalid(With(config, limit.key, "64"), limit.key);
  }
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    ExpectInvalid(Without(Llama(), key), key);
  }
  Parse(With(Llama(), "head_dim", 256));
  ExpectInvalid(With(Llama(), "head_dim", 258), "head_dim is 258, not in 2 to 256");
  ExpectInvalid(With(Llama(), "head_dim", 63), "odd");
  ExpectInvalid(With(Llama(), "num_key_value_heads", 3), "not a multiple of num_kv_heads 3");
  ExpectInvalid(With(Llama(), "num_key_value_heads", 16), "num_kv_heads is 16, not in 1 to 8");
  ExpectInvalid(With(Llama(), "num_attention_heads", 0), "num_attention_heads 0");
  ExpectInvalid(With(Llama(), "num_attention_heads", 7), "not a multiple of num_attention_heads 7");
  ExpectInvalid(With(Llama(), "rms_norm_eps", 0), "norm_eps is 0");
  ExpectInvalid(With(Llama(), "rms_norm_eps", 1e-60), "norm_eps is 0");
  ExpectInvalid(With(Llama(), "rope_theta", 0.5), "rope theta is 0.5");
  ExpectInvalid(With(Llama(), "rope_theta", 1e300), "rope theta");
  ExpectInvalid(With(Llama(), "eos_token_id", 1000), "eos_token_id is 1000, not in 0 to 999");
  ExpectInvalid(With(Llama(), "eos_token_id", {2, -1}), "eos_token_id is -1");
  ExpectInvalid(With(Llama(), "eos_token_id", {2, "x"}), "eos_token_id");
  ExpectInvalid(With(Llama(), "bos_token_id", 1000), "bos_token_id is 1000");
}

TEST(HfConfigTest, RefusesWhatIsNotAnObject) {
  for (const char* text : {"", "[]", "null", "{", "{\"a\":}", "{}{}", "{\"a\":1e999}", "\xff"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseHfConfig(text).status())) << text;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParseHfConfig("{}").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ParseHfConfig(std::string(1 << 20, '[')).status()));
}

// Printing, copying and comparing JSON recurse: a value nested this deep would end the stack.
TEST(HfConfigTest, RefusesDeepNesting) {
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  const std::string config = Llama().dump();
  for (const char* key : {"quantization_config", "architectures", "eos_token_id", "x"}) {
    const std::string nested = R"({")" + std::string(key) + R"(":)" + deep + "," + config.substr(1);
    const absl::Status status = ParseHfConfig(nested).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << key;
    EXPECT_THAT(std::string(status.message()), HasSubstr("nested deeper than 64"));
  }
}

TEST(HfConfigTest, MergesGenerationConfigEosIds) {
  ModelConfig config = Parse(With(Llama(), "eos_token_id", {2, 5}));
  ASSERT_TRUE(MergeGenerationConfig(R"({"eos_token_id": [5, 7], "top_p": 0.9})", &config).ok());
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 5, 7));
  ASSERT_TRUE(MergeGenerationConfig(R"({"eos_token_id": 9})", &config).ok());
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 5, 7, 9));
  ASSERT_TRUE(MergeGenerationConfig("{}", &config).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(MergeGenerationConfig(R"({"eos_token_id": 1000})", &config)));
  EXPECT_TRUE(
      absl::IsInvalidArgument(MergeGenerationConfig(R"({"eos_token_id": "</s>"})", &config)));
  EXPECT_TRUE(absl::IsInvalidArgument(MergeGenerationConfig("[]", &config)));
}

}  // namespace
}  // namespace espalier
