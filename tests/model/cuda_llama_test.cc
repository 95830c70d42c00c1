// The forward on a CUDA device: a tiny checkpoint against transformers, the demo model against the
// CPU in fp32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>

#include "tests/support/chain_decoder.h"
#include "tests/support/changed_checkpoint.h"
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

// A prompt with two branches below it. A NaN in one must not change a bit of the other's logits.
TEST_P(CudaLlamaTest, ANaNStaysInItsOwnRows) {
  constexpr int kPrompt = 40, kBranch = 5, kPoison = 77, kPageSize = 16;
  constexpr int kRows = kPrompt + 2 * kBranch;
  auto base =
      Checkpoint::Open(std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/tiny/llama-head64-llama3");
  ASSERT_TRUE(base.ok()) << base.status();
  PoisonedCheckpoint checkpoint(*std::move(base), kPoison);
  auto model = Llama::Create(ctx(), &checkpoint, kMaxRows, kMaxRows);
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelConfig& config = (*model)->config();

  TreeShape shape;
  shape.page_size = kPageSize;
  shape.AddNode(-1, kPrompt, 0, std::vector<int32_t>{3, 1, 4});
  shape.AddNode(0, kBranch, 0, std::vector<int32_t>{0});
  shape.AddNode(0, kBranch, 0, std::vector<int32_t>{2});
  std::vector<int32_t> positions, logits_rows;
  std::vector<int64_t> slots;
  const auto add_rows = [&](int node, int count, int first_position) {
    for (int i = 0; i < count; ++i) {
      logits_rows.push_back(shape.num_queries());
      shape.AddQuery(node, i);
      positions.push_back(first_position + i);
      const int page = shape.page_ids[shape.page_begin[node] + i / kPageSize];
      slots.push_back(int64_t{page} * kPageSize + i % kPageSize);
    }
  };
  add_rows(0, kPrompt, 0);
  add_rows(1, kBranch, kPrompt);
  add_rows(2, kBranch, kPrompt);

  for (const AttentionVariant variant :
       {AttentionVariant::kDefault, AttentionVariant::kSequence, AttentionVariant::kNode,
        AttentionVariant::kNodeChunk, AttentionVariant::kFlatten}) {
    SCOPED_TRACE(::testing::Message() << "variant " << static_cast<int>(variant));
    TreePlanner planner;
    const TreePlan& plan = planner.Plan(
        shape, CudaPlanOptions(ctx(), variant, config.num_heads, config.num_kv_heads, dtype()));
    PlanBuffers buffers(ctx(), config.num_heads, config.head_dim, dtype());
    ASSERT_TRUE(buffers.Upload(plan));
    std::vector<float> clean;
    for (const bool poisoned : {false, true}) {
      std::vector<int32_t> tokens(kRows);
      for (int r = 0; r < kRows; ++r) tokens[r] = (r * 31 + 7) % 70;
      if (poisoned) tokens[kPrompt + 2] = kPoison;
      std::vector<DeviceBuffer> memory;
      std::vector<KvLayerView> kv;
      for (int layer = 0; layer < config.num_layers; ++layer) {
        KvLayerView view{.num_pages = 5,
                         .num_kv_heads = config.num_kv_heads,
                         .head_dim = config.head_dim,
                         .page_size = kPageSize,
                         .dtype = dtype()};
        const int64_t elements = int64_t{5} * kPageSize * config.num_kv_heads * config.head_dim;
        for (void** side : {&view.k, &view.v}) {
          memory.emplace_back(ctx(), BytesOf(dtype(), elements));
          FillDevice(ctx(), memory.back().As<void>(), 0, memory.back().bytes());
          *side = memory.back().As<void>();
        }
        kv.push_back(view);
      }
      const Llama::Output output = (*model)->Forward(ctx(),
                                                     {.token_ids = tokens,
                                                      .positions = positions,
                                                      .kv_slots = slots,
                                                      .logits_rows = logits_rows,
                                                      .device_plan = &buffers.device_plan()},
                                                     kv);
      std::vector<float> logits(output.logits.size());
      std::vector<uint8_t> bad(output.row_bad.size());
      CopyToHost(ctx(), logits.data(), output.logits.data(), logits.size() * sizeof(float));
      CopyToHost(ctx(), bad.data(), output.row_bad.data(), bad.size());
      Synchronize(ctx());
      if (!poisoned) {
        clean = logits;
        continue;
      }
      for (int r = 0; r < kRows; ++r) {
        const bool own = r == kPrompt + 2;
        EXPECT_EQ(bad[r], own) << "row " << r;
        // Rows behind it in its own branch read what was stored in place of its KV.
        if (r >= kPrompt && r < kPrompt + kBranch) continue;
        for (int t = 0; t < config.vocab_size; ++t) {
          ASSERT_EQ(logits[r * config.vocab_size + t], clean[r * config.vocab_size + t])
              << "row " << r << " token " << t;
        }
      }
    }
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
