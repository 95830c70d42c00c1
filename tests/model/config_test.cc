#include "model/config.h"

#include <gtest/gtest.h>

#include <cctype>
#include <limits>
#include <string>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/support/tensor_file.h"

namespace espalier {
namespace {

struct Fixture {
  const char* model;    // below tests/golden/tiny
  const char* goldens;  // beside it
};

class RopeInvFreqTest : public ::testing::TestWithParam<Fixture> {};

// config.json's parameters and GGUF's metadata and rope_freqs lead to transformers' frequencies.
TEST_P(RopeInvFreqTest, EqualsTransformers) {
  const std::string root = std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/tiny/";
  const auto checkpoint = Checkpoint::Open(root + GetParam().model);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto expected = testing::ReadGoldenTensors("tiny/" + std::string(GetParam().goldens))
                            .at("inv_freq")
                            .As<float>();
  const std::vector<float> actual = RopeInvFreq((*checkpoint)->config());
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-6 * expected[i]) << "pair " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    EveryScaling, RopeInvFreqTest,
    ::testing::Values(
        Fixture{"llama-mha", "llama-mha/goldens.safetensors"},
        Fixture{"llama-gqa4-llama3", "llama-gqa4-llama3/goldens.safetensors"},
        Fixture{"llama-gqa4-llama3/model-f16.gguf", "llama-gqa4-llama3/goldens.safetensors"},
        Fixture{"llama-gqa8-linear", "llama-gqa8-linear/goldens.safetensors"},
        Fixture{"llama-gqa8-linear/model-q8_0.gguf", "llama-gqa8-linear/goldens.safetensors"},
        Fixture{"llama-head64-llama3", "llama-head64-llama3/goldens.safetensors"},
        Fixture{"qwen2-bias", "qwen2-bias/goldens.safetensors"},
        Fixture{"qwen2-bias/model-q8_0.gguf", "qwen2-bias/goldens.safetensors"}),
    [](const ::testing::TestParamInfo<Fixture>& instance) {
      std::string name = instance.param.model;
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      return name;
    });

ModelConfig Valid() {
  ModelConfig config;
  config.vocab_size = 100;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.max_positions = 128;
  return config;
}

TEST(ValidateConfigTest, RefusesWhatIsNotANumber) {
  ASSERT_TRUE(ValidateConfig(Valid()).ok());
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double bad : {kNan, kInfinity, -kInfinity, 0.0, -1.0}) {
    for (double RopeConfig::*field :
         {&RopeConfig::theta, &RopeConfig::factor, &RopeConfig::low_freq_factor,
          &RopeConfig::high_freq_factor, &RopeConfig::original_max_positions}) {
      ModelConfig config = Valid();
      config.rope.*field = bad;
      EXPECT_TRUE(absl::IsInvalidArgument(ValidateConfig(config))) << bad;
    }
    ModelConfig config = Valid();
    config.norm_eps = static_cast<float>(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(ValidateConfig(config))) << bad;
    config = Valid();
    config.rope.factors.assign(8, 1.0f);
    EXPECT_TRUE(ValidateConfig(config).ok());
    config.rope.factors[3] = static_cast<float>(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(ValidateConfig(config))) << bad;
  }
}

TEST(ValidateConfigTest, RefusesFrequencyFactorsOfAnotherCount) {
  ModelConfig config = Valid();
  config.rope.factors.assign(7, 1.0f);
  EXPECT_TRUE(absl::IsInvalidArgument(ValidateConfig(config)));
}

}  // namespace
}  // namespace espalier
