#include "model/checkpoint/gguf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/model/checkpoint/gguf_writer.h"

namespace espalier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kU32 = 4, kF32 = 6, kBool = 7;
constexpr uint32_t kGgmlF32 = 0;
constexpr size_t kDataBytes = 1 << 13;

// Metadata as a converter writes it for a small Llama, by key; tests drop, change and add.
struct Llama {
  std::string architecture = "llama";
  std::vector<std::pair<std::string, uint32_t>> numbers = {
      {"context_length", 256},     {"embedding_length", 16},    {"block_count", 2},
      {"feed_forward_length", 32}, {"attention.head_count", 4}, {"attention.head_count_kv", 2},
  };
  std::vector<std::pair<std::string, float>> reals = {{"attention.layer_norm_rms_epsilon", 1e-5f}};
  std::vector<std::string> extra_tensors;  // [1] F32 each
  std::function<void(GgufWriter&)> more = [](GgufWriter&) {};

  Llama& Set(const std::string& key, uint32_t value) {
    Drop(key);
    numbers.emplace_back(key, value);
    return *this;
  }
  Llama& Drop(const std::string& key) {
    std::erase_if(numbers, [&](const auto& number) { return number.first == key; });
    std::erase_if(reals, [&](const auto& real) { return real.first == key; });
    return *this;
  }

  absl::StatusOr<ModelConfig> Read() const {
    GgufWriter writer;
    writer.AddString("general.architecture", architecture);
    for (const auto& [key, value] : numbers) {
      writer.Add<uint32_t>(architecture + "." + key, kU32, value);
    }
    for (const auto& [key, value] : reals) {
      writer.Add<float>(architecture + "." + key, kF32, value);
    }
    more(writer);
    writer.AddTensor("token_embd.weight", {16, 100}, kGgmlF32, 0);
    uint64_t offset = 6400;
    for (const std::string& name : extra_tensors) {
      writer.AddTensor(name, {1}, kGgmlF32, offset);
      offset += 32;
    }
    const std::vector<std::byte> bytes = writer.Build(kDataBytes);
    auto file = GgufFile::Parse(bytes, "test.gguf");
    if (!file.ok()) return file.status();
    return ReadGgufConfig(**file);
  }
};

void ExpectRefused(const Llama& model, const std::string& part, absl::StatusCode code) {
  const auto config = model.Read();
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), code) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("test.gguf"));
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(part));
}

void ExpectInvalid(const Llama& model, const std::string& part) {
  ExpectRefused(model, part, absl::StatusCode::kInvalidArgument);
}

void ExpectUnsupported(const Llama& model, const std::string& part) {
  ExpectRefused(model, part, absl::StatusCode::kUnimplemented);
}

TEST(GgufConfigTest, DefaultsFollowLlamaCpp) {
  const auto config = Llama().Drop("attention.head_count_kv").Read();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->num_kv_heads, 4);
  EXPECT_EQ(config->head_dim, 4);
  EXPECT_EQ(config->vocab_size, 100);
  EXPECT_EQ(config->rope.theta, 10000.0);
  EXPECT_EQ(config->rope.scaling, RopeScaling::kNone);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_EQ(config->bos_token_id, -1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre());
}

TEST(GgufConfigTest, OutputTensorUntiesTheEmbeddings) {
  Llama model;
  model.extra_tensors = {"output.weight"};
  EXPECT_FALSE(model.Read()->tied_embeddings);
}

TEST(GgufConfigTest, CollectsEveryEndOfGenerationId) {
  Llama model;
  model.more = [](GgufWriter& writer) {
    writer.Add<uint32_t>("tokenizer.ggml.bos_token_id", kU32, 1);
    writer.Add<uint32_t>("tokenizer.ggml.eos_token_id", kU32, 2);
    writer.Add<uint32_t>("tokenizer.ggml.eot_token_id", kU32, 9);
    writer.Add<uint32_t>("tokenizer.ggml.eom_token_id", kU32, 2);
  };
  const auto config = model.Read();
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->bos_token_id, 1);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(2, 9));
}

TEST(GgufConfigTest, ReadsLinearScalingInBothSpellings) {
  for (const char* key : {"rope.scaling.factor", "rope.scale_linear"}) {
    Llama model;
    model.reals.emplace_back(key, 4.0f);
    EXPECT_EQ(model.Read()->rope.scaling, RopeScaling::kLinear) << key;
    EXPECT_EQ(model.Read()->rope.factor, 4.0) << key;
    model.more = [](GgufWriter& writer) { writer.AddString("llama.rope.scaling.type", "none"); };
    EXPECT_EQ(model.Read()->rope.scaling, RopeScaling::kNone) << key;
  }
}

TEST(GgufConfigTest, RefusesWhatWeDoNotCompute) {
  Llama other;
  other.architecture = "gemma";
  ExpectUnsupported(other, "\"gemma\"");
  ExpectUnsupported(Llama().Set("expert_count", 8), "mixture of experts");
  ExpectUnsupported(Llama().Set("attention.sliding_window", 255), "sliding window");
  EXPECT_TRUE(Llama().Set("attention.sliding_window", 256).Read().ok());
  ExpectUnsupported(Llama().Set("rope.dimension_count", 2), "rope.dimension_count");
  ExpectUnsupported(Llama().Set("attention.value_length", 8), "value_length");
  for (const char* type : {"yarn", "longrope"}) {
    Llama model;
    model.more = [type](GgufWriter& writer) { writer.AddString("llama.rope.scaling.type", type); };
    ExpectUnsupported(model, type);
  }
  Llama causal;
  causal.more = [](GgufWriter& writer) { writer.Add<uint8_t>("llama.attention.causal", kBool, 0); };
  ExpectUnsupported(causal, "non-causal");
  for (const char* tensor :
       {"rope_factors_long.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias"}) {
    Llama model;
    model.extra_tensors = {tensor};
    ExpectUnsupported(model, "not supported");
  }
}

TEST(GgufConfigTest, RefusesMissingAndImpossibleNumbers) {
  for (const char* key :
       {"context_length", "embedding_length", "block_count", "feed_forward_length",
        "attention.head_count", "attention.layer_norm_rms_epsilon"}) {
    ExpectInvalid(Llama().Drop(key), key);
  }
  for (const char* key :
       {"context_length", "embedding_length", "block_count", "feed_forward_length",
        "attention.head_count", "attention.head_count_kv"}) {
    SCOPED_TRACE(key);
    ExpectInvalid(Llama().Set(key, 0), "");
    ExpectInvalid(Llama().Set(key, 0x7fffffff), "");
    ExpectInvalid(Llama().Set(key, 0xffffffff), key);
  }
  ExpectInvalid(Llama().Set("attention.key_length", 258), "head_dim");
  Llama factors;
  factors.extra_tensors = {"rope_freqs.weight"};  // one factor, head_dim 4 needs two
  ExpectInvalid(factors, "frequency factors");
  Llama eos;
  eos.more = [](GgufWriter& writer) {
    writer.Add<uint32_t>("tokenizer.ggml.eos_token_id", kU32, 100);
  };
  ExpectInvalid(eos, "eos_token_id is 100");
}

TEST(GgufConfigTest, RefusesAVocabularyWithoutAModel) {
  GgufWriter writer;
  writer.AddString("general.architecture", "llama");
  const std::vector<std::byte> bytes = writer.Build(0);
  const auto file = *GgufFile::Parse(bytes, "test.gguf");
  EXPECT_THAT(std::string(ReadGgufConfig(*file).status().message()),
              HasSubstr("no tensor token_embd.weight"));
}

}  // namespace
}  // namespace espalier
