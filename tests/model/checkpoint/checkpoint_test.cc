#include "model/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/quant_blocks.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const fs::path kTiny = fs::path(ESPALIER_SOURCE_DIR) / "tests/golden/tiny";

std::unique_ptr<Checkpoint> OpenTiny(const std::string& name) {
  auto checkpoint = Checkpoint::Open(kTiny / name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

struct NamedShape {
  std::string name;
  int64_t rows;
  int64_t cols;
};

std::vector<NamedShape> EveryTensor(const ModelConfig& c) {
  std::vector<NamedShape> shapes = {{"model.embed_tokens.weight", c.vocab_size, c.hidden_size},
                                    {"model.norm.weight", 1, c.hidden_size}};
  if (!c.tied_embeddings) shapes.push_back({"lm_head.weight", c.vocab_size, c.hidden_size});
  const int q = c.num_heads * c.head_dim;
  const int kv = c.num_kv_heads * c.head_dim;
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    shapes.push_back({layer + "input_layernorm.weight", 1, c.hidden_size});
    shapes.push_back({layer + "post_attention_layernorm.weight", 1, c.hidden_size});
    shapes.push_back({layer + "self_attn.q_proj.weight", q, c.hidden_size});
    shapes.push_back({layer + "self_attn.k_proj.weight", kv, c.hidden_size});
    shapes.push_back({layer + "self_attn.v_proj.weight", kv, c.hidden_size});
    shapes.push_back({layer + "self_attn.o_proj.weight", c.hidden_size, q});
    shapes.push_back({layer + "mlp.gate_proj.weight", c.intermediate_size, c.hidden_size});
    shapes.push_back({layer + "mlp.up_proj.weight", c.intermediate_size, c.hidden_size});
    shapes.push_back({layer + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size});
    if (c.qkv_bias) {
      shapes.push_back({layer + "self_attn.q_proj.bias", 1, q});
      shapes.push_back({layer + "self_attn.k_proj.bias", 1, kv});
      shapes.push_back({layer + "self_attn.v_proj.bias", 1, kv});
    }
  }
  return shapes;
}

float HalfToFloat(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                        : std::ldexp(1024.0f + mantissa, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

// Values of the types that the compared files use, straight from the definitions.
std::vector<float> Values(const ConstMatrix& matrix) {
  const int64_t count = matrix.rows * matrix.cols;
  std::vector<float> values(count);
  const auto* u16 = static_cast<const uint16_t*>(matrix.data);
  for (int64_t i = 0; i < count; ++i) {
    switch (matrix.dtype) {
      case DType::kF32:
        values[i] = static_cast<const float*>(matrix.data)[i];
        break;
      case DType::kF16:
        values[i] = HalfToFloat(u16[i]);
        break;
      case DType::kBF16: {
        const uint32_t bits = static_cast<uint32_t>(u16[i]) << 16;
        std::memcpy(&values[i], &bits, sizeof(float));
        break;
      }
      case DType::kQ8_0: {
        const auto& block = static_cast<const BlockQ8_0*>(matrix.data)[i / 32];
        values[i] = HalfToFloat(block.d) * block.qs[i % 32];
        break;
      }
      default:
        ADD_FAILURE() << "not compared: " << Info(matrix.dtype).name;
    }
  }
  return values;
}

struct Pair {
  const char* folder;
  const char* gguf;
  float tolerance;  // of a value, in units of the largest of the tensor
};

class SameWeightsTest : public ::testing::TestWithParam<Pair> {};

// Both forms of one checkpoint serve the same matrices under the same names: names are mapped and
// the rows of Q and K are back in order.
TEST_P(SameWeightsTest, FolderAndGgufAgree) {
  const auto folder = OpenTiny(GetParam().folder);
  const auto gguf = OpenTiny(std::string(GetParam().folder) + "/" + GetParam().gguf);
  ASSERT_TRUE(folder && gguf);
  for (const NamedShape& shape : EveryTensor(folder->config())) {
    SCOPED_TRACE(shape.name);
    EXPECT_TRUE(folder->HasTensor(shape.name));
    EXPECT_TRUE(gguf->HasTensor(shape.name));
    const auto a = folder->Tensor(shape.name, shape.rows, shape.cols);
    const auto b = gguf->Tensor(shape.name, shape.rows, shape.cols);
    ASSERT_TRUE(a.ok()) << a.status();
    ASSERT_TRUE(b.ok()) << b.status();
    const std::vector<float> expected = Values(*a);
    const std::vector<float> actual = Values(*b);
    float largest = 0;
    for (const float value : expected) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(actual[i], expected[i], GetParam().tolerance * largest) << "element " << i;
    }
  }
}

TEST_P(SameWeightsTest, ConfigsAgree) {
  const auto folder = OpenTiny(GetParam().folder);
  const auto gguf = OpenTiny(std::string(GetParam().folder) + "/" + GetParam().gguf);
  ASSERT_TRUE(folder && gguf);
  const ModelConfig& a = folder->config();
  const ModelConfig& b = gguf->config();
  EXPECT_EQ(a.architecture, b.architecture);
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.vocab_size, b.vocab_size);
  EXPECT_EQ(a.hidden_size, b.hidden_size);
  EXPECT_EQ(a.intermediate_size, b.intermediate_size);
  EXPECT_EQ(a.num_layers, b.num_layers);
  EXPECT_EQ(a.num_heads, b.num_heads);
  EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.max_positions, b.max_positions);
  EXPECT_EQ(a.norm_eps, b.norm_eps);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.qkv_bias, b.qkv_bias);
  EXPECT_EQ(a.bos_token_id, b.bos_token_id);
  EXPECT_EQ(a.eos_token_ids, b.eos_token_ids);
}

INSTANTIATE_TEST_SUITE_P(Tiny, SameWeightsTest,
                         ::testing::Values(Pair{"llama-gqa3-tied", "model-f32.gguf", 0},
                                           Pair{"llama-gqa3-tied", "model-bf16.gguf", 0},
                                           Pair{"llama-gqa4-llama3", "model-f16.gguf", 1e-4f},
                                           Pair{"llama-gqa8-linear", "model-q8_0.gguf", 0.005f},
                                           Pair{"qwen2-bias", "model-q8_0.gguf", 0.005f}),
                         [](const ::testing::TestParamInfo<Pair>& instance) {
                           std::string name =
                               std::string(instance.param.folder) + "_" + instance.param.gguf;
                           for (char& c : name) {
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           }
                           return name;
                         });

TEST(CheckpointTest, ServesTensorsOfEveryShard) {
  const auto checkpoint = OpenTiny("mistral-sharded");
  ASSERT_TRUE(checkpoint);
  for (const NamedShape& shape : EveryTensor(checkpoint->config())) {
    const auto tensor = checkpoint->Tensor(shape.name, shape.rows, shape.cols);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
  }
}

TEST(CheckpointTest, ReorderedRowsStayWhereTheyAre) {
  const auto checkpoint = OpenTiny("llama-kquant/model-q4_k.gguf");
  ASSERT_TRUE(checkpoint);
  const ModelConfig& c = checkpoint->config();
  const auto q0 = checkpoint->Tensor("model.layers.0.self_attn.q_proj.weight",
                                     c.num_heads * c.head_dim, c.hidden_size);
  ASSERT_TRUE(q0.ok()) << q0.status();
  for (const NamedShape& shape : EveryTensor(c)) {
    ASSERT_TRUE(checkpoint->Tensor(shape.name, shape.rows, shape.cols).ok()) << shape.name;
  }
  EXPECT_EQ(checkpoint
                ->Tensor("model.layers.0.self_attn.q_proj.weight", c.num_heads * c.head_dim,
                         c.hidden_size)
                ->data,
            q0->data);
}

TEST(CheckpointTest, RefusesOtherShapesAndNames) {
  for (const char* name : {"llama-gqa3-tied", "llama-gqa3-tied/model-f32.gguf"}) {
    SCOPED_TRACE(name);
    const auto checkpoint = OpenTiny(name);
    ASSERT_TRUE(checkpoint);
    const char* q_proj = "model.layers.0.self_attn.q_proj.weight";
    const absl::Status shape = checkpoint->Tensor(q_proj, 48, 47).status();
    EXPECT_TRUE(absl::IsInvalidArgument(shape)) << shape;
    EXPECT_THAT(std::string(shape.message()), HasSubstr("47"));
    EXPECT_TRUE(absl::IsInvalidArgument(checkpoint->Tensor(q_proj, 1, 48 * 48).status()));
    for (const char* absent :
         {"", "x", "lm_head.weight", "model.layers.2.self_attn.q_proj.weight",
          "model.layers.-1.self_attn.q_proj.weight", "model.layers.0", "model.layers.0.weight"}) {
      EXPECT_FALSE(checkpoint->HasTensor(absent)) << absent;
      EXPECT_TRUE(absl::IsNotFound(checkpoint->Tensor(absent, 1, 1).status())) << absent;
    }
  }
}

// A folder of its own for one test, removed afterwards.
class BrokenCheckpointTest : public ::testing::Test {
 protected:
  BrokenCheckpointTest() {
    folder_ = fs::temp_directory_path() /
              ("espalier_checkpoint_test_" + std::to_string(std::random_device{}()));
    fs::create_directory(folder_);
  }
  ~BrokenCheckpointTest() override { fs::remove_all(folder_); }

  void CopyTiny(const std::string& name) {
    fs::remove_all(folder_);
    fs::copy(kTiny / name, folder_);
  }
  void Write(const std::string& file, const std::string& text) const {
    std::ofstream(folder_ / file, std::ios::binary) << text;
  }
  void Replace(const std::string& file, const std::string& from, const std::string& to) const {
    std::ifstream in(folder_ / file, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos);
    Write(file, text.replace(at, from.size(), to));
  }
  void ExpectRefused(const std::string& part,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) const {
    const auto checkpoint = Checkpoint::Open(folder_);
    ASSERT_FALSE(checkpoint.ok());
    EXPECT_EQ(checkpoint.status().code(), code) << checkpoint.status();
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(folder_.string()));
    EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr(part));
  }

  fs::path folder_;
};

TEST_F(BrokenCheckpointTest, NamesWhatIsMissing) {
  const auto nowhere = Checkpoint::Open(folder_ / "nowhere");
  EXPECT_TRUE(absl::IsNotFound(nowhere.status()));
  EXPECT_THAT(std::string(nowhere.status().message()), HasSubstr("no model at"));
  ExpectRefused("it has no config.json", absl::StatusCode::kNotFound);
  CopyTiny("llama-mha");
  fs::remove(folder_ / "model.safetensors");
  ExpectRefused("neither model.safetensors nor", absl::StatusCode::kNotFound);
}

TEST_F(BrokenCheckpointTest, NamesWhatIsNoModel) {
  Write("notes.txt", "hello");
  const auto text = Checkpoint::Open(folder_ / "notes.txt");
  EXPECT_TRUE(absl::IsInvalidArgument(text.status()));
  EXPECT_THAT(std::string(text.status().message()), HasSubstr("not a GGUF file"));
  Write("empty.gguf", "");
  const auto empty = Checkpoint::Open(folder_ / "empty.gguf");
  EXPECT_THAT(std::string(empty.status().message()), HasSubstr("is empty"));
  CopyTiny("llama-mha");
  Write("config.json", "");
  ExpectRefused("config.json is empty");
  Write("config.json", "{");
  ExpectRefused("not a JSON object");
}

TEST_F(BrokenCheckpointTest, NamesTheBytesOfATruncatedFile) {
  CopyTiny("llama-mha");
  const auto size = fs::file_size(folder_ / "model.safetensors");
  fs::resize_file(folder_ / "model.safetensors", size - 1);
  ExpectRefused("truncated");
  CopyTiny("llama-gqa3-tied");
  const fs::path gguf = folder_ / "model-f32.gguf";
  fs::resize_file(gguf, fs::file_size(gguf) / 2);
  const auto cut = Checkpoint::Open(gguf);
  EXPECT_TRUE(absl::IsInvalidArgument(cut.status())) << cut.status();
  EXPECT_THAT(std::string(cut.status().message()), HasSubstr("truncated: tensor"));
}

TEST_F(BrokenCheckpointTest, ShardNamesCannotLeaveTheFolder) {
  for (const std::string name : {"../model.safetensors", "/etc/passwd", "a/b.safetensors",
                                 "..\\x.safetensors", ".hidden.safetensors", "model.bin", ""}) {
    SCOPED_TRACE(name);
    CopyTiny("mistral-sharded");
    Write("model.safetensors.index.json",
          R"({"weight_map": {"model.norm.weight": ")" +
              (name.find('\\') == std::string::npos ? name : "..\\\\x.safetensors") + "\"}}");
    ExpectRefused("not the plain name of a .safetensors file");
  }
}

TEST_F(BrokenCheckpointTest, RefusesAnIndexThatDoesNotFitItsShards) {
  CopyTiny("mistral-sharded");
  Replace("model.safetensors.index.json", "model.norm.weight", "model.warm.weight");
  ExpectRefused("\"model.warm.weight\" is not in");
  CopyTiny("mistral-sharded");
  fs::remove(folder_ / "model-00002-of-00002.safetensors");
  ExpectRefused("model-00002-of-00002.safetensors", absl::StatusCode::kNotFound);
  for (const char* index : {"[]", "{}", R"({"weight_map": []})", R"({"weight_map": {"a": 1}})"}) {
    CopyTiny("mistral-sharded");
    Write("model.safetensors.index.json", index);
    ExpectRefused("model.safetensors.index.json");
  }
}

TEST_F(BrokenCheckpointTest, TakesEosIdsFromGenerationConfig) {
  CopyTiny("llama-mha");
  Write("generation_config.json", R"({"eos_token_id": [7, 2]})");
  const auto checkpoint = Checkpoint::Open(folder_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->config().eos_token_ids, ElementsAre(2, 7));
  Write("generation_config.json", R"({"eos_token_id": 256})");
  ExpectRefused("generation_config.json: eos_token_id is 256");
}

}  // namespace
}  // namespace espalier
