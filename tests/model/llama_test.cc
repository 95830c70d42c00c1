#include "model/llama.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model/tokenizer/tokenizer.h"
#include "tests/support/chain_decoder.h"
#include "tests/support/tensor_file.h"

namespace espalier {
namespace {

using testing::ChainDecoder;

constexpr int kMaxRows = 64;

struct TinyModel {
  const char* folder;
  const char* gguf;  // empty: the folder's safetensors
};

std::string Path(const TinyModel& tiny) {
  const std::string folder = std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/tiny/" + tiny.folder;
  return *tiny.gguf == '\0' ? folder : folder + "/model-" + tiny.gguf + ".gguf";
}

struct Goldens {
  explicit Goldens(const TinyModel& tiny) {
    const std::string prefix =
        *tiny.gguf == '\0' ? std::string() : "model-" + std::string(tiny.gguf) + ".";
    auto tensors = testing::ReadGoldenTensors("tiny/" + std::string(tiny.folder) + "/" + prefix +
                                              "goldens.safetensors");
    length = static_cast<int>(tensors.at("token_ids").shape[1]);
    vocab = static_cast<int>(tensors.at("logits").shape[2]);
    token_ids = tensors.at("token_ids").As<int32_t>();
    positions = tensors.at("positions").As<int32_t>();
    logits = tensors.at("logits").As<float>();
  }
  std::span<const int32_t> Sequence(int s) const {
    return std::span(token_ids).subspan(static_cast<size_t>(s) * length, length);
  }
  const float* Logits(int s, size_t i) const {
    return logits.data() + (s * positions.size() + i) * vocab;
  }
  int num_sequences() const { return static_cast<int>(token_ids.size()) / length; }

  int length = 0;
  int vocab = 0;
  std::vector<int32_t> token_ids;  // [sequences, length]
  std::vector<int32_t> positions;
  std::vector<float> logits;  // [sequences, positions, vocab]
};

class LlamaTest : public ::testing::TestWithParam<TinyModel> {
 protected:
  void SetUp() override {
    auto checkpoint = Checkpoint::Open(Path(GetParam()));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    auto model =
        Llama::Create(Context::Cpu(1, CpuPrecision::kF32), checkpoint_.get(), kMaxRows, kMaxRows);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  // Feeds each sequence in steps of the sizes that `next_chunk` gives, and compares.
  template <typename NextChunk>
  void ExpectGoldens(const Context& ctx, const NextChunk& next_chunk, double tolerance) {
    const Goldens goldens(GetParam());
    for (int s = 0; s < goldens.num_sequences(); ++s) {
      SCOPED_TRACE("sequence " + std::to_string(s));
      const std::span<const int32_t> tokens = goldens.Sequence(s);
      const DType kv = ctx.cpu_precision() == CpuPrecision::kF32 ? DType::kF32 : DType::kF16;
      ChainDecoder decoder(ctx, *model_, goldens.length, kv, /*seed=*/s + 1);
      size_t next = 0;  // of goldens.positions
      for (int begin = 0; begin < goldens.length;) {
        const int rows = std::min(next_chunk(), goldens.length - begin);
        const std::span<const float> logits = decoder.Step(tokens.subspan(begin, rows));
        ASSERT_EQ(logits.size(), static_cast<size_t>(rows) * goldens.vocab);
        for (uint8_t bad : decoder.row_bad()) ASSERT_EQ(bad, 0);
        while (next < goldens.positions.size() && goldens.positions[next] < begin + rows) {
          const float* got =
              logits.data() + static_cast<int64_t>(goldens.positions[next] - begin) * goldens.vocab;
          const float* want = goldens.Logits(s, next);
          for (int i = 0; i < goldens.vocab; ++i) {
            ASSERT_NEAR(got[i], want[i], tolerance)
                << "position " << goldens.positions[next] << " token " << i;
          }
          ++next;
        }
        begin += rows;
      }
      ASSERT_EQ(next, goldens.positions.size());
    }
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Llama> model_;
};

TEST_P(LlamaTest, WholeSequenceInOneStep) {
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32);
  ExpectGoldens(
      ctx, [] { return kMaxRows; }, 1e-4);
}

TEST_P(LlamaTest, TokenByToken) {
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32);
  ExpectGoldens(
      ctx, [] { return 1; }, 1e-4);
}

TEST_P(LlamaTest, RandomChunksOnEveryInstructionSet) {
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa > BestCpuIsa()) continue;
    SCOPED_TRACE(CpuIsaName(isa));
    const Context ctx = Context::Cpu(3, CpuPrecision::kF32, isa);
    std::mt19937 rng(5);
    ExpectGoldens(
        ctx, [&] { return 1 + static_cast<int>(rng() % 20); }, 1e-4);
  }
}

// The default precision quantises activations and keeps KV in fp16. The logits' deviation is about
// 2, so this still tells a wrong operation from a rounded one.
TEST_P(LlamaTest, DefaultPrecisionStaysClose) {
  const Context ctx = Context::Cpu(2, CpuPrecision::kAuto);
  std::mt19937 rng(6);
  ExpectGoldens(
      ctx, [&] { return 1 + static_cast<int>(rng() % 20); }, 0.5);
}

TEST_P(LlamaTest, ReportsItsWeights) {
  EXPECT_GT(model_->parameters(), 0);
  EXPECT_GT(model_->weight_bytes(), model_->parameters() / 2);
  EXPECT_LE(model_->weight_bytes(), model_->parameters() * 4);
}

std::string TinyName(const ::testing::TestParamInfo<TinyModel>& info) {
  std::string name = info.param.folder;
  if (*info.param.gguf != '\0') name += std::string("_") + info.param.gguf;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Tiny, LlamaTest,
    ::testing::Values(TinyModel{"llama-mha", ""}, TinyModel{"llama-gqa3-tied", ""},
                      TinyModel{"llama-gqa3-tied", "f32"}, TinyModel{"llama-gqa3-tied", "bf16"},
                      TinyModel{"llama-gqa4-llama3", ""}, TinyModel{"llama-gqa4-llama3", "f16"},
                      TinyModel{"llama-gqa4-llama3", "q4_1"}, TinyModel{"llama-gqa8-linear", ""},
                      TinyModel{"llama-gqa8-linear", "q8_0"}, TinyModel{"llama-head64-llama3", ""},
                      TinyModel{"mistral-sharded", ""}, TinyModel{"mistral-sharded", "q4_0"},
                      TinyModel{"qwen2-bias", ""}, TinyModel{"qwen2-bias", "q8_0"},
                      TinyModel{"llama-kquant", "q4_k"}),
    TinyName);

// A checkpoint in memory, to break one tensor at a time.
class BrokenCheckpoint final : public Checkpoint {
 public:
  BrokenCheckpoint(Checkpoint& base, std::string missing)
      : base_(base), missing_(std::move(missing)) {}
  const ModelConfig& config() const override { return base_.config(); }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override {
    if (name == missing_) return absl::NotFoundError(missing_);
    absl::StatusOr<ConstMatrix> matrix = base_.Tensor(name, rows, cols);
    if (!matrix.ok() || name != poisoned_) return matrix;
    const auto* values = static_cast<const float*>(matrix->data);
    copy_.assign(values, values + rows * cols);
    copy_[poisoned_row_ * cols] = std::numeric_limits<float>::quiet_NaN();
    matrix->data = copy_.data();
    return matrix;
  }
  bool HasTensor(std::string_view name) const override { return base_.HasTensor(name); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override {
    return base_.LoadTokenizer();
  }
  // Puts a NaN at the start of a row of an F32 tensor.
  void Poison(std::string name, int64_t row) {
    poisoned_ = std::move(name);
    poisoned_row_ = row;
  }

 private:
  Checkpoint& base_;
  std::string missing_;
  std::string poisoned_;
  int64_t poisoned_row_ = 0;
  std::vector<float> copy_;
};

TEST(LlamaCreateTest, NamesTheMissingTensor) {
  auto base = Checkpoint::Open(Path({"llama-gqa3-tied", "f32"}));
  ASSERT_TRUE(base.ok()) << base.status();
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  BrokenCheckpoint checkpoint(**base, name);
  const auto model = Llama::Create(Context::Cpu(1, CpuPrecision::kF32), &checkpoint, 8, 8);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(model.status().message().find("up_proj"), absl::string_view::npos);
  EXPECT_FALSE(Llama::Create(Context::Cpu(1, CpuPrecision::kF32), base->get(), 0, 8).ok());
  EXPECT_FALSE(Llama::Create(Context::Cpu(1, CpuPrecision::kF32), base->get(), 8, 0).ok());
}

// Token 7's embedding holds a NaN: rows that see its KV are spoilt only by what they attend to, and
// its KV is stored as 0, so exactly its own row is bad.
TEST(LlamaForwardTest, FlagsOnlyTheRowThatIsNotFinite) {
  auto base = Checkpoint::Open(Path({"llama-gqa3-tied", "f32"}));
  ASSERT_TRUE(base.ok()) << base.status();
  BrokenCheckpoint checkpoint(**base, "");
  checkpoint.Poison("model.embed_tokens.weight", 7);
  auto model = Llama::Create(Context::Cpu(1, CpuPrecision::kF32), &checkpoint, 8, 8);
  ASSERT_TRUE(model.ok()) << model.status();
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32);
  ChainDecoder decoder(ctx, **model, 16, DType::kF32, 1);
  const int32_t tokens[] = {3, 4, 7, 5, 6};
  decoder.Step(tokens, /*want_logits=*/false);
  EXPECT_EQ(std::vector<uint8_t>(decoder.row_bad().begin(), decoder.row_bad().end()),
            (std::vector<uint8_t>{0, 0, 1, 0, 0}));
}

}  // namespace
}  // namespace espalier
