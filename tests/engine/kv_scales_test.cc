// Scales of E4M3 KV against the largest keys and values that the model's own forward leaves in a
// cache of fp32.
#include "engine/kv_scales.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "kernels/core/fp8.h"
#include "tests/support/chain_decoder.h"
#include "tests/support/changed_checkpoint.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/tiny_engine.h"

namespace espalier {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Ge;
using ::testing::HasSubstr;
using ::testing::Lt;

constexpr int kMaxRows = 128;

// The power of two that leaves a factor of 2 to 4.
void ExpectScaleOf(float largest, float scale) {
  int exponent;
  EXPECT_EQ(std::frexp(scale, &exponent), 0.5f) << scale << " is no power of two";
  EXPECT_GE(double{kLargestE4M3} * scale, 2.0 * largest);
  EXPECT_LT(double{kLargestE4M3} * scale, 4.0 * largest);
}

TEST(ScaleForTest, IsThePowerOfTwoThatLeavesAFactorOfTwoToFour) {
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const float mantissa = std::uniform_real_distribution<float>(0.5f, 1)(rng);
    const float largest = std::ldexp(mantissa, std::uniform_int_distribution(-117, 128)(rng));
    ExpectScaleOf(largest, ScaleFor(largest));
  }
  EXPECT_EQ(ScaleFor(224), 1);
  EXPECT_EQ(ScaleFor(std::nextafter(224.0f, 300.0f)), 2);
  EXPECT_EQ(ScaleFor(std::nextafter(112.0f, 0.0f)), 0.5f);
}

TEST(ScaleForTest, IsANormalNumberWhateverIsLargest) {
  EXPECT_EQ(ScaleFor(0), 1);
  EXPECT_EQ(ScaleFor(std::numeric_limits<float>::denorm_min()), 0x1p-126f);
  EXPECT_TRUE(std::isnormal(ScaleFor(std::numeric_limits<float>::max())));
}

TEST(CalibrationSequencesTest, AreTheSameAtEveryStartAndFitTheModel) {
  const FakeTokenizer tokenizer(kTinyVocab);
  for (const int vocab : {kTinyVocab, 90}) {
    for (const int context : {1, 3, 64, 512}) {
      SCOPED_TRACE(::testing::Message() << "vocabulary of " << vocab << ", context of " << context);
      const auto sequences = CalibrationSequences(tokenizer, vocab, context);
      EXPECT_EQ(sequences, CalibrationSequences(tokenizer, vocab, context));
      std::set<int32_t> seen;
      for (const std::vector<int32_t>& sequence : sequences) {
        EXPECT_GE(sequence.size(), 1u);
        EXPECT_LE(sequence.size(), static_cast<size_t>(context));
        EXPECT_THAT(sequence, Each(AllOf(Ge(0), Lt(vocab))));
        seen.insert(sequence.begin(), sequence.end());
      }
      EXPECT_GT(seen.size(), static_cast<size_t>(vocab) / 2);
    }
  }
}

class BosTokenizer : public FakeTokenizer {
 public:
  using FakeTokenizer::FakeTokenizer;
  std::optional<int32_t> bos() const override { return kTinyVocab - 2; }
};

TEST(CalibrationSequencesTest, RandomTokensFollowBos) {
  const auto sequences = CalibrationSequences(BosTokenizer(kTinyVocab, 2), kTinyVocab, 512);
  const auto starts_with_bos = [](const auto& s) { return s[0] == kTinyVocab - 2; };
  EXPECT_EQ(std::ranges::count_if(sequences, starts_with_bos), 1);
}

class KvScalesTest : public ::testing::Test {
 protected:
  void Load(std::unique_ptr<Checkpoint> checkpoint, CpuPrecision precision = CpuPrecision::kF32) {
    checkpoint_ = std::move(checkpoint);
    ctx_ = std::make_unique<Context>(Context::Cpu(2, precision));
    auto model = Llama::Create(*ctx_, checkpoint_.get(), kMaxRows, kMaxRows);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  const ModelConfig& config() const { return model_->config(); }
  KvLayout Layout() const {
    return {.num_layers = config().num_layers,
            .num_kv_heads = config().num_kv_heads,
            .head_dim = config().head_dim,
            .page_size = 16,
            .dtype = DType::kE4M3};
  }
  absl::StatusOr<KvScales> Find(int max_rows = kMaxRows, int max_context = 512) {
    return FindKvScales(ctx_.get(), model_.get(), tokenizer_, Layout(), {max_rows, max_context});
  }

  // The largest magnitudes of the rows that are not bad, one token a step.
  KvScales LargestByTokens(int max_context) {
    KvScales largest;
    largest.k.resize(config().num_layers * config().num_kv_heads);
    largest.v.resize(largest.k.size());
    for (const auto& tokens : CalibrationSequences(tokenizer_, config().vocab_size, max_context)) {
      testing::ChainDecoder decoder(*ctx_, *model_, static_cast<int>(tokens.size()), DType::kF32,
                                    /*seed=*/1);
      for (size_t t = 0; t < tokens.size(); ++t) {
        decoder.Step(std::span(tokens).subspan(t, 1), /*want_logits=*/false);
        if (decoder.row_bad()[0] != 0) continue;
        for (size_t i = 0; i < largest.k.size(); ++i) {
          const KvLayerView& kv = decoder.layer(static_cast<int>(i) / config().num_kv_heads);
          const int head = static_cast<int>(i) % config().num_kv_heads;
          const int64_t at = kv.Offset(decoder.slot(static_cast<int>(t)), head);
          for (int d = 0; d < kv.head_dim; ++d) {
            const float k = static_cast<const float*>(kv.k)[at + d];
            const float v = static_cast<const float*>(kv.v)[at + d];
            largest.k[i] = std::max(largest.k[i], std::abs(k));
            largest.v[i] = std::max(largest.v[i], std::abs(v));
          }
        }
      }
    }
    return largest;
  }

  void ExpectScalesOf(const KvScales& largest, const KvScales& scales) {
    ASSERT_EQ(scales.k.size(), largest.k.size());
    ASSERT_EQ(scales.v.size(), largest.v.size());
    for (size_t i = 0; i < largest.k.size(); ++i) {
      SCOPED_TRACE(::testing::Message() << "layer and head " << i);
      ExpectScaleOf(largest.k[i], scales.k[i]);
      ExpectScaleOf(largest.v[i], scales.v[i]);
    }
  }

  const FakeTokenizer tokenizer_{kTinyVocab};
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Llama> model_;
};

TEST_F(KvScalesTest, AreThoseOfWhatTheForwardStores) {
  for (const char* name :
       {"llama-mha", "llama-gqa3-tied", "llama-gqa8-linear", "llama-head64-llama3", "qwen2-bias"}) {
    SCOPED_TRACE(name);
    Load(OpenTinyCheckpoint(name));
    const absl::StatusOr<KvScales> scales = Find();
    ASSERT_TRUE(scales.ok()) << scales.status();
    ExpectScalesOf(LargestByTokens(512), *scales);
    if (HasFailure()) return;
  }
}

TEST_F(KvScalesTest, DoNotDependOnChunksOrThreads) {
  Load(OpenTinyCheckpoint("llama-gqa8-linear"));
  const KvScales scales = *Find();
  ctx_ = std::make_unique<Context>(Context::Cpu(1, CpuPrecision::kF32));
  for (const int max_rows : {1, 7, kMaxRows}) {
    SCOPED_TRACE(max_rows);
    const KvScales again = *Find(max_rows);
    EXPECT_EQ(again.k, scales.k);
    EXPECT_EQ(again.v, scales.v);
  }
}

TEST_F(KvScalesTest, OfHalfPrecisionAreOfTheSameSize) {
  Load(OpenTinyCheckpoint("llama-gqa8-linear/model-q8_0.gguf"));
  const KvScales exact = *Find();
  Load(OpenTinyCheckpoint("llama-gqa8-linear/model-q8_0.gguf"), CpuPrecision::kAuto);
  const absl::StatusOr<KvScales> scales = Find();
  ASSERT_TRUE(scales.ok()) << scales.status();
  for (size_t i = 0; i < exact.k.size(); ++i) {
    EXPECT_LE(std::abs(std::log2(scales->k[i] / exact.k[i])), 1);
    EXPECT_LE(std::abs(std::log2(scales->v[i] / exact.v[i])), 1);
  }
}

TEST_F(KvScalesTest, OfAContextOfAFewTokens) {
  Load(OpenTinyCheckpoint("llama-gqa8-linear"));
  for (const int context : {1, 2, 17}) {
    SCOPED_TRACE(context);
    const absl::StatusOr<KvScales> scales = Find(kMaxRows, context);
    ASSERT_TRUE(scales.ok()) << scales.status();
    ExpectScalesOf(LargestByTokens(context), *scales);
  }
}

TEST_F(KvScalesTest, OnlyE4M3HasAny) {
  Load(OpenTinyCheckpoint("llama-gqa8-linear"));
  KvLayout layout = Layout();
  layout.dtype = DType::kF16;
  const auto scales = FindKvScales(ctx_.get(), model_.get(), tokenizer_, layout, {kMaxRows, 512});
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_TRUE(scales->k.empty());
  EXPECT_TRUE(scales->v.empty());
}

TEST_F(KvScalesTest, AHeadOfZerosHasAScaleOfOne) {
  Load(std::make_unique<FilledCheckpoint>(OpenTinyCheckpoint("llama-gqa8-linear"),
                                          "model.layers.1.self_attn.v_proj.weight", 0));
  const absl::StatusOr<KvScales> scales = Find();
  ASSERT_TRUE(scales.ok()) << scales.status();
  const auto second_layer = std::span(scales->v).subspan(config().num_kv_heads);
  EXPECT_THAT(second_layer, Each(1.0f));
}

TEST_F(KvScalesTest, ARowThatIsNotFiniteCountsForNothing) {
  Load(std::make_unique<PoisonedCheckpoint>(OpenTinyCheckpoint("llama-gqa8-linear"), 'e'));
  const absl::StatusOr<KvScales> scales = Find();
  ASSERT_TRUE(scales.ok()) << scales.status();
  ExpectScalesOf(LargestByTokens(512), *scales);
}

TEST_F(KvScalesTest, AModelWithoutAFiniteRowIsRefused) {
  Load(std::make_unique<FilledCheckpoint>(OpenTinyCheckpoint("llama-gqa8-linear"),
                                          "model.layers.0.self_attn.k_proj.weight", 0xff));
  const absl::Status status = Find().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("kv_dtype is fp8"), HasSubstr("not finite")));
}

}  // namespace
}  // namespace espalier
