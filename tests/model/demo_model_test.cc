// The demo model against Hugging Face transformers, from goldens that scripts/make_demo_goldens.py
// makes. Runs when ESPALIER_DEMO_MODEL names the GGUF file; the weights are not in the repository.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "model/llama.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/support/chain_decoder.h"
#include "tests/support/tensor_file.h"

namespace espalier {
namespace {

using testing::ChainDecoder;

constexpr int kMaxRows = 128;

struct Sequence {
  std::vector<int32_t> tokens;
  int prompt_length = 0;
  int first_row = 0;  // of logits and logsumexp
};

class DemoModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("ESPALIER_DEMO_MODEL");
    if (path == nullptr) GTEST_SKIP() << "ESPALIER_DEMO_MODEL does not name the demo model's GGUF";
    auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    auto model =
        Llama::Create(Context::Cpu(1, CpuPrecision::kF32), checkpoint_.get(), kMaxRows, kMaxRows);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    ReadGoldens();
  }

  void ReadGoldens() {
    const auto goldens = testing::ReadGoldenTensors("demo/goldens.safetensors");
    vocab_ = goldens.at("vocab").As<int32_t>();
    logits_ = goldens.at("logits").As<float>();
    logsumexp_ = goldens.at("logsumexp").As<float>();
    const auto tokens = goldens.at("token_ids").As<int32_t>();
    const auto lengths = goldens.at("lengths").As<int32_t>();
    const auto prompt_lengths = goldens.at("prompt_lengths").As<int32_t>();
    int row = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      sequences_.push_back({.tokens = {tokens.begin() + row, tokens.begin() + row + lengths[i]},
                            .prompt_length = prompt_lengths[i],
                            .first_row = row});
      row += lengths[i];
    }
    ASSERT_EQ(sequences_.size(), 5u);
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Llama> model_;
  std::vector<Sequence> sequences_;
  std::vector<int32_t> vocab_;    // the entries whose logits are given
  std::vector<float> logits_;     // [rows, entries]
  std::vector<float> logsumexp_;  // [rows]
};

double LogSumExp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

int ArgMax(std::span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

TEST_F(DemoModelTest, TeacherForcedLogitsEqualTransformers) {
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32);
  const size_t vocab = model_->config().vocab_size;
  double largest_error = 0;
  for (size_t s = 0; s < sequences_.size(); ++s) {
    SCOPED_TRACE("prompt " + std::to_string(s));
    const Sequence& sequence = sequences_[s];
    const int length = static_cast<int>(sequence.tokens.size());
    ChainDecoder decoder(ctx, *model_, length, DType::kF32, /*seed=*/static_cast<uint32_t>(s));
    const std::span<const float> all = decoder.Step(sequence.tokens);
    for (int position = 0; position < length; ++position) {
      const std::span<const float> got = all.subspan(position * vocab, vocab);
      const size_t row = sequence.first_row + position;
      for (size_t i = 0; i < vocab_.size(); ++i) {
        const double error = std::abs(got[vocab_[i]] - logits_[row * vocab_.size() + i]);
        largest_error = std::max(largest_error, error);
        ASSERT_LE(error, 1e-3) << "position " << position << " token " << vocab_[i];
      }
      ASSERT_NEAR(LogSumExp(got), logsumexp_[row], 1e-3) << "position " << position;
    }
  }
  RecordProperty("largest_error", std::to_string(largest_error));
  std::printf("largest difference of a logit: %.2e\n", largest_error);
}

TEST_F(DemoModelTest, GreedyTextIsIdentical) {
  const Context ctx = Context::Cpu(2, CpuPrecision::kF32);
  for (size_t s = 0; s < sequences_.size(); ++s) {
    SCOPED_TRACE("prompt " + std::to_string(s));
    const Sequence& sequence = sequences_[s];
    const int length = static_cast<int>(sequence.tokens.size());
    ChainDecoder decoder(ctx, *model_, length, DType::kF32, /*seed=*/static_cast<uint32_t>(s));
    std::vector<int32_t> tokens(sequence.tokens.begin(),
                                sequence.tokens.begin() + sequence.prompt_length);
    int32_t next = ArgMax(decoder.StepLast(tokens));
    while (static_cast<int>(tokens.size()) < length) {
      tokens.push_back(next);
      if (static_cast<int>(tokens.size()) < length) next = ArgMax(decoder.StepLast({&next, 1}));
    }
    EXPECT_EQ(tokens, sequence.tokens);
  }
}

}  // namespace
}  // namespace espalier
