// The forward on a CUDA device: a tiny checkpoint against transformers, the demo model against the
// CPU in fp32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include "tests/support/chain_decoder.h"
#include "tests/support/cuda_test.h"
#include "tests/support/tensor_file.h"

namespace espalier {
namespace {

using testing::ChainDecoder;

constexpr int kMaxRows = 256;

class CudaLlamaTest : public testing::CudaTest, public ::testing::WithParamInterface<DType> {
 protected:
  CudaLlamaTest() : CudaTest(GetParam()) {}
};

TEST_P(CudaLlamaTest, GoldensOfTransformers) {
  const std::string name = "tiny/llama-head64-llama3";
  auto checkpoint = Checkpoint::Open(std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/" + name);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto model = Llama::Create(ctx(), checkpoint->get(), kMaxRows, kMaxRows);
  ASSERT_TRUE(model.ok()) << model.status();
  auto tensors = testing::ReadGoldenTensors(name + "/goldens.safetensors");
  const int length = static_cast<int>(tensors.at("token_ids").shape[1]);
  const int vocab = static_cast<int>(tensors.at("logits").shape[2]);
  const std::vector<int32_t> token_ids = tensors.at("token_ids").As<int32_t>();
  const std::vector<int32_t> positions = tensors.at("positions").As<int32_t>();
  const std::vector<float> logits = tensors.at("logits").As<float>();

  for (const int chunk : {length, 1, 7}) {
    SCOPED_TRACE(::testing::Message() << "chunks of " << chunk);
    double squares = 0, error_squares = 0, largest = 0;
    for (size_t s = 0; s < token_ids.size() / length; ++s) {
      ChainDecoder decoder(ctx(), **model, length, dtype(), static_cast<uint32_t>(s + 1));
      std::vector<std::vector<float>> rows;
      for (int begin = 0; begin < length; begin += chunk) {
        const int count = std::min(chunk, length - begin);
        const auto got = decoder.Step(std::span(token_ids).subspan(s * length + begin, count));
        for (int r = 0; r < count; ++r) {
          rows.emplace_back(got.begin() + r * vocab, got.begin() + (r + 1) * vocab);
        }
      }
      for (size_t i = 0; i < positions.size(); ++i) {
        const float* want = logits.data() + (s * positions.size() + i) * vocab;
        for (int t = 0; t < vocab; ++t) {
          const double error = rows[positions[i]][t] - want[t];
          largest = std::max(largest, std::abs(error));
          squares += double{want[t]} * want[t];
          error_squares += error * error;
        }
      }
    }
    const double relative = std::sqrt(error_squares / squares);
    std::printf("%s, chunks of %d: relative error %.2e, largest %.3f\n",
                std::string(Info(dtype()).name).c_str(), chunk, relative, largest);
    EXPECT_LT(relative, dtype() == DType::kF16 ? 4e-3 : 3e-2);
  }
}

TEST_P(CudaLlamaTest, DemoModelGreedyText) {
  const char* path = std::getenv("ESPALIER_DEMO_MODEL");
  if (path == nullptr) GTEST_SKIP() << "SKIPPED: ESPALIER_DEMO_MODEL is not set";
  auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto model = Llama::Create(ctx(), checkpoint->get(), kMaxRows, kMaxRows);
  ASSERT_TRUE(model.ok()) << model.status();
  auto tensors = testing::ReadGoldenTensors("demo/goldens.safetensors");
  const std::vector<int32_t> tokens = tensors.at("token_ids").As<int32_t>();
  const std::vector<int32_t> lengths = tensors.at("lengths").As<int32_t>();
  const std::vector<int32_t> prompts = tensors.at("prompt_lengths").As<int32_t>();
  const size_t vocab = (*model)->config().vocab_size;

  // Teacher-forced, so that one close choice does not hide what follows it.
  int same = 0, total = 0;
  size_t first = 0;
  for (size_t s = 0; s < lengths.size(); ++s) {
    ChainDecoder decoder(ctx(), **model, lengths[s], dtype(), static_cast<uint32_t>(s));
    const auto logits = decoder.Step(std::span(tokens).subspan(first, lengths[s]));
    for (int at = prompts[s]; at < lengths[s]; ++at) {
      const auto row = logits.subspan((at - 1) * vocab, vocab);
      const auto best = std::max_element(row.begin(), row.end());
      const int32_t want = tokens[first + at];
      ++total;
      if (best - row.begin() == want) {
        ++same;
        continue;
      }
      std::printf("prompt %zu, token %d: %ld instead of %d, by %.4f\n", s, at - prompts[s],
                  static_cast<long>(best - row.begin()), want, *best - row[want]);
      EXPECT_LT(*best - row[want], 0.5f) << "no close choice";
    }
    first += lengths[s];
  }
  std::printf("%s: %d of %d greedy tokens are those of fp32\n",
              std::string(Info(dtype()).name).c_str(), same, total);
  EXPECT_GT(same, total * 95 / 100);
}

INSTANTIATE_TEST_SUITE_P(DTypes, CudaLlamaTest, ::testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& dtype) { return std::string(Info(dtype.param).name); });

}  // namespace
}  // namespace espalier
