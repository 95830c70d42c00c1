// What KV in E4M3 changes of an engine: its pages, and its logprobs a little.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine/engine.h"
#include "tests/support/changed_checkpoint.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

constexpr const char* kModel = "llama-gqa8-linear";

EngineConfig Config(KvCacheDType kv_dtype, CpuPrecision precision) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.kv_dtype = kv_dtype;
  config.cpu_precision = precision;
  return config;
}

TEST(Fp8Kv, FitsTwiceTheTokensOfSixteenBits) {
  const auto half = MakeEngine(Config(KvCacheDType::kAuto, CpuPrecision::kAuto), kModel);
  const auto fp8 = MakeEngine(Config(KvCacheDType::kFp8, CpuPrecision::kAuto), kModel);
  const auto fp8_of_exact = MakeEngine(Config(KvCacheDType::kFp8, CpuPrecision::kF32), kModel);
  EXPECT_EQ(half->model_info().kv_type, "F16");
  EXPECT_EQ(fp8->model_info().kv_type, "E4M3");
  EXPECT_EQ(fp8->Stats().pages_total, 2 * half->Stats().pages_total);
  EXPECT_EQ(fp8->Stats().kv_bytes, half->Stats().kv_bytes);
  EXPECT_EQ(fp8->model_info().memory.kv, half->model_info().memory.kv);
  EXPECT_EQ(fp8_of_exact->Stats().pages_total, fp8->Stats().pages_total);
}

TEST(Fp8Kv, IsADraftModelsToo) {
  const auto pages = [](KvCacheDType kv_dtype) {
    EngineConfig config = Config(kv_dtype, CpuPrecision::kAuto);
    config.speculative = Speculative::kDraft;
    config.draft_model_path = kModel;
    return MakeEngine(config, OpenTinyCheckpoint(kModel), OpenTinyCheckpoint(kModel))
        ->Stats()
        .pages_total;
  };
  EXPECT_EQ(pages(KvCacheDType::kFp8), 2 * pages(KvCacheDType::kAuto));
}

// Of the same tokens under both types, beside the spread that a model of random weights gives them.
TEST(Fp8Kv, MovesLogprobsALittle) {
  for (const char* name :
       {"llama-mha", "llama-gqa3-tied", "llama-gqa8-linear", "llama-head64-llama3", "qwen2-bias"}) {
    SCOPED_TRACE(name);
    std::mt19937_64 rng(31);
    TreeRequest request;
    request.nodes = {Node(-1, RandomTokens(rng, 20)), Node(0, RandomTokens(rng, 200))};
    request.nodes[1].score = true;
    const auto score = [&](KvCacheDType kv_dtype) {
      const auto engine = MakeEngine(Config(kv_dtype, CpuPrecision::kF32), name);
      return RunTree(*engine, request).scores.at(0).logprobs;
    };
    const auto exact = score(KvCacheDType::kAuto);
    const auto fp8 = score(KvCacheDType::kFp8);
    ASSERT_EQ(exact.size(), 200u);
    ASSERT_EQ(fp8.size(), 200u);
    double sum = 0, squares = 0, moved = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
      sum += exact[i].logprob;
      squares += exact[i].logprob * exact[i].logprob;
      moved += std::abs(exact[i].logprob - fp8[i].logprob);
    }
    const double deviation = std::sqrt(squares / 200 - sum * sum / 200 / 200);
    EXPECT_GT(moved / 200, 0.002 * deviation) << "KV is not rounded";
    EXPECT_LT(moved / 200, 0.1 * deviation);
  }
}

TEST(Fp8Kv, AContextOfAFewTokensServes) {
  EngineConfig config = Config(KvCacheDType::kFp8, CpuPrecision::kF32);
  config.max_context = 4;
  config.max_batch_tokens = 3;
  const auto engine = MakeEngine(config, kModel);
  TreeRequest request;
  request.nodes = {Node(-1, {1, 2}, Greedy(2))};
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.branches.at(0).tokens.size(), 2u);
}

TEST(Fp8Kv, AModelThatGivesNoFiniteValueIsRefused) {
  const auto engine = Engine::Create(
      Config(KvCacheDType::kFp8, CpuPrecision::kF32),
      std::make_unique<FilledCheckpoint>(OpenTinyCheckpoint(kModel), "model.norm.weight", 0xff),
      std::make_unique<FakeTokenizer>(kTinyVocab));
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(engine.status().message()), HasSubstr("kv_dtype is fp8"));
}

}  // namespace
}  // namespace espalier
