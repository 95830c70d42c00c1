#include "model/checkpoint/random_checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "model/llama.h"
#include "model/llama_weights.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/support/chain_decoder.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

class RandomCheckpointTest : public ::testing::Test {
 protected:
  // Qwen2's shape, which has biases.
  static std::string Folder() {
    return std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/tiny/qwen2-bias";
  }
  static std::unique_ptr<RandomCheckpoint> Open(uint64_t seed) {
    auto checkpoint = RandomCheckpoint::Open(Folder() + "/config.json", seed);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return *std::move(checkpoint);
  }
  std::vector<float> Logits(uint64_t seed) {
    const std::unique_ptr<RandomCheckpoint> checkpoint = Open(seed);
    const auto model = Llama::Create(ctx_, checkpoint.get(), 16, 16);
    EXPECT_TRUE(model.ok()) << model.status();
    testing::ChainDecoder decoder(ctx_, **model, 16, DType::kF32, /*seed=*/1);
    const int32_t tokens[] = {1, 2, 3, 5, 8, 13};
    const auto logits = decoder.Step(tokens);
    for (const uint8_t bad : decoder.row_bad()) EXPECT_EQ(bad, 0);
    return {logits.begin(), logits.end()};
  }

  const Context ctx_ = Context::Cpu(2, CpuPrecision::kF32);
};

TEST_F(RandomCheckpointTest, SameSeedSameModel) {
  const std::vector<float> logits = Logits(1);
  EXPECT_EQ(logits, Logits(1));
  EXPECT_NE(logits, Logits(2));
  double squares = 0;
  for (const float logit : logits) {
    ASSERT_TRUE(std::isfinite(logit));
    squares += static_cast<double>(logit) * logit;
  }
  // A softmax of such logits is neither flat nor a single token.
  const double deviation = std::sqrt(squares / static_cast<double>(logits.size()));
  EXPECT_GT(deviation, 0.3);
  EXPECT_LT(deviation, 10);
}

TEST_F(RandomCheckpointTest, TensorsDifferFromEachOtherAndHaveTheirScale) {
  const std::unique_ptr<RandomCheckpoint> checkpoint = Open(7);
  const auto weights = LoadLlamaWeights(*checkpoint, ctx_, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  const LlamaLayerWeights& layer = weights->layers[0];
  ASSERT_EQ(layer.gate.weight.dtype, DType::kBF16);
  EXPECT_NE(static_cast<const uint16_t*>(layer.gate.weight.data)[0],
            static_cast<const uint16_t*>(layer.up.weight.data)[0]);
  EXPECT_EQ(layer.attention_norm[0], 1.0f);
  ASSERT_NE(layer.q.bias, nullptr);
  EXPECT_NE(layer.q.bias[0], layer.q.bias[1]);
  EXPECT_LT(std::abs(layer.q.bias[0]), 0.2f);
}

TEST_F(RandomCheckpointTest, AFolderWithoutTokenizerSpeaksBytes) {
  const std::unique_ptr<RandomCheckpoint> checkpoint = Open(1);
  const auto tokenizer = checkpoint->LoadTokenizer();
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text("every \0 byte \xff\x80", 15);
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text, true), true), text);
}

TEST_F(RandomCheckpointTest, BadConfigsAreNamed) {
  EXPECT_FALSE(RandomCheckpoint::Open("/no/such/config.json", 1).ok());
  const std::string path = ::testing::TempDir() + "/bad_config.json";
  std::ofstream(path) << R"({"model_type": "llama"})";
  const auto checkpoint = RandomCheckpoint::Open(path, 1);
  EXPECT_FALSE(checkpoint.ok());
  EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(path));
}

}  // namespace
}  // namespace espalier
