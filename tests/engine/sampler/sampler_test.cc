#include "engine/sampler/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/sampler/sampling_reference.h"

namespace espalier {
namespace {

using testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

std::vector<float> RandomLogits(int vocab, float spread, std::mt19937_64& rng) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(vocab);
  for (float& l : logits) l = normal(rng);
  return logits;
}

// A request as clients mix them: each parameter off half the time.
struct RandomCase {
  explicit RandomCase(uint64_t seed) : rng(seed) {
    const int sizes[] = {1, 2, 5, 63, 64, 200, 1500, 5000};
    const int vocab = sizes[rng() % 8];
    logits = RandomLogits(vocab, Pick({0.3f, 2.0f, 6.0f}), rng);
    // Some rows have ties and masked tokens.
    if (Coin()) {
      for (float& l : logits) l = std::round(l * 2) / 2;
    }
    if (Coin() && vocab > 4) logits[Token()] = -kInf;
    params.temperature = Pick({0.0f, 0.05f, 0.7f, 1.0f, 3.0f});
    if (Coin()) params.top_k = static_cast<int>(1 + rng() % (vocab + 10));
    if (Coin() && vocab > 40) params.top_k = 40;
    if (Coin()) params.top_p = Pick({0.1f, 0.5f, 0.9f, 0.99f});
    if (Coin()) params.min_p = Pick({0.001f, 0.05f, 0.5f});
    if (Coin()) params.repetition_penalty = Pick({0.8f, 1.2f, 2.0f});
    if (Coin()) params.frequency_penalty = Pick({-1.0f, 0.1f, 1.5f});
    if (Coin()) params.presence_penalty = Pick({-0.5f, 0.7f});
    if (Coin()) {
      std::set<int32_t> biased;
      for (int i = 0; i < 4; ++i) biased.insert(Token());
      for (int32_t token : biased) {
        params.logit_bias.emplace_back(token, Pick({-100.0f, -1.0f, 2.5f, 100.0f}));
      }
    }
    if (Coin() && vocab > 10) banned = {Token(), Token()};
    // Prompt, generated, prompt again: the path of a branch below a branch.
    for (int part = 0; part < 2; ++part) {
      std::vector<int32_t> prompt(rng() % 30);
      for (int32_t& token : prompt) token = Token();
      history.AddPrompt(prompt);
      if (params.repetition_penalty != 1) {
        reference_history.on_path.insert(prompt.begin(), prompt.end());
      }
      for (uint64_t i = rng() % 20; i > 0; --i) {
        const int32_t token = Token();
        history.AddGenerated(token);
        ++reference_history.generated[token];
        if (params.repetition_penalty != 1) reference_history.on_path.insert(token);
      }
    }
  }

  SampleInput Input(double uniform) const {
    return {.logits = logits,
            .params = &params,
            .history = &history,
            .banned = banned,
            .uniform = uniform,
            .top_logprobs = -1};
  }
  bool Coin() { return rng() % 2 == 0; }
  int32_t Token() { return static_cast<int32_t>(rng() % logits.size()); }
  float Pick(std::initializer_list<float> values) { return values.begin()[rng() % values.size()]; }

  std::mt19937_64 rng;
  std::vector<float> logits;
  SamplingParams params;
  TokenHistory history;
  ReferenceHistory reference_history;
  std::vector<int32_t> banned;
};

TEST(SamplerTest, EqualsADoublePrecisionReferenceOnRandomRequests) {
  Sampler sampler;  // one for all, so that what a call leaves behind would show in the next
  int compared = 0;
  int ambiguous = 0;
  for (uint64_t seed = 0; seed < 1500; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomCase c(seed);
    const std::vector<double> logits =
        ReferenceLogits(c.logits, c.params, c.reference_history, c.banned);
    if (*std::ranges::max_element(logits) == -kInf) continue;
    const std::vector<double> logprobs = ReferenceLogSoftmax(c.logits);
    if (c.params.temperature == 0) {
      const Sample sample = sampler.Run(c.Input(0.5));
      ASSERT_TRUE(sample.finite);
      // Float and double may round two penalised logits to different sides of a tie.
      const double best = *std::ranges::max_element(logits);
      EXPECT_NEAR(logits[sample.token], best, 1e-5 * (1 + std::abs(best)));
      EXPECT_NEAR(sample.logprob, logprobs[sample.token], 1e-5);
      continue;
    }
    const ReferenceDistribution reference = ReferenceFilter(logits, c.params);
    ambiguous += reference.ambiguous;
    if (reference.ambiguous) continue;
    ++compared;
    for (int draw = 0; draw < 40; ++draw) {
      const double uniform = draw == 0 ? 0 : draw == 1 ? 1 - 0x1p-53 : BranchUniform(seed, draw);
      const Sample sample = sampler.Run(c.Input(uniform));
      ASSERT_TRUE(sample.finite);
      const double before = std::accumulate(reference.probabilities.begin(),
                                            reference.probabilities.begin() + sample.token, 0.0);
      const double probability = reference.probabilities[sample.token];
      ASSERT_GT(probability, 0.0) << "token " << sample.token << " should have been dropped";
      EXPECT_GE(uniform, before - 1e-5);
      EXPECT_LE(uniform, before + probability + 1e-5);
      EXPECT_NEAR(sample.logprob, logprobs[sample.token], 1e-5 * (1 - logprobs[sample.token]));
    }
  }
  EXPECT_GT(compared, 900);
  EXPECT_LT(ambiguous, 200);
}

TEST(SamplerTest, OtherRowsDoNotChangeAChoice) {
  Sampler shared;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomCase c(seed);
    SampleInput input = c.Input(BranchUniform(seed, 0));
    input.top_logprobs = 5;
    Sampler fresh;
    const Sample first = shared.Run(input);
    const Sample second = fresh.Run(input);
    EXPECT_EQ(first.finite, second.finite);
    EXPECT_EQ(first.token, second.token);
    EXPECT_EQ(first.logprob, second.logprob);
    EXPECT_EQ(first.top, second.top);
  }
}

// The share of each token over many draws, against its probability.
TEST(SamplerTest, DrawsFollowTheDistribution) {
  Sampler sampler;
  constexpr int kDraws = 40000;
  std::vector<SamplingParams> all(8);
  all[1].temperature = 0.5f;
  all[2].temperature = 2.0f;
  all[3].top_k = 7;
  all[4].top_p = 0.8f;
  all[5].min_p = 0.1f;
  all[6].top_k = 20, all[6].top_p = 0.9f, all[6].min_p = 0.01f, all[6].temperature = 1.3f;
  all[7].logit_bias = {{3, 2.0f}, {4, -2.0f}};
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "parameters " << i << ", seed " << 100 + i);
    std::mt19937_64 rng(100 + i);
    // More than one block of the vocabulary in half of the cases, most of it unlikely.
    std::vector<float> logits = RandomLogits(i % 2 == 0 ? 60 : 2500, 1.5f, rng);
    for (size_t t = 60; t < logits.size(); t += 2) logits[t] -= 6;
    const std::vector<double> expected =
        ReferenceFilter(ReferenceLogits(logits, all[i], {}, {}), all[i]).probabilities;
    std::vector<int> counts(logits.size());
    for (int draw = 0; draw < kDraws; ++draw) {
      ++counts[sampler
                   .Run({.logits = logits,
                         .params = &all[i],
                         .history = nullptr,
                         .banned = {},
                         .uniform = BranchUniform(100 + i, draw),
                         .top_logprobs = -1})
                   .token];
    }
    // Pearson's chi-square; tokens expected less than 10 times are pooled.
    double chi_square = 0;
    double pooled_expected = 0;
    int pooled_count = 0;
    int cells = 0;
    const auto add = [&](double e, int n) {
      chi_square += (n - e) * (n - e) / e;
      ++cells;
    };
    for (size_t t = 0; t < logits.size(); ++t) {
      const double e = expected[t] * kDraws;
      if (e == 0) {
        EXPECT_EQ(counts[t], 0) << "token " << t;
      }
      if (e >= 10) {
        add(e, counts[t]);
      } else {
        pooled_expected += e;
        pooled_count += counts[t];
      }
    }
    if (pooled_expected > 5) add(pooled_expected, pooled_count);
    const double freedom = cells - 1;
    EXPECT_GT(freedom, 0);
    EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2 * freedom));
  }
}

// Checks the logit that `token` has after bias and penalties, exactly: a token with a higher id
// and that very logit loses the tie, the next larger float wins.
void ExpectProcessedLogit(const std::vector<float>& raw, const SamplingParams& params,
                          const TokenHistory& history, int32_t token, float expected) {
  Sampler sampler;
  std::vector<float> logits(raw.size() + 1, -kInf);
  logits[token] = raw[token];
  const auto run = [&](float rival) {
    logits.back() = rival;
    return sampler
        .Run({.logits = logits,
              .params = &params,
              .history = &history,
              .banned = {},
              .uniform = 0,
              .top_logprobs = -1})
        .token;
  };
  const auto rival_token = static_cast<int32_t>(raw.size());
  EXPECT_EQ(run(expected), token) << "the logit is below " << expected;
  EXPECT_EQ(run(std::nextafter(expected, kInf)), rival_token) << "the logit is above " << expected;
}

TEST(SamplerTest, RepetitionPenaltyLooksAtTheWholePathOnce) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2.0f;
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{0, 1, 1});
  history.AddGenerated(1);
  history.AddGenerated(2);
  history.AddGenerated(2);
  history.AddPrompt(std::vector<int32_t>{2});
  const std::vector<float> logits = {4.0f, -3.0f, 5.0f, 1.0f};
  ExpectProcessedLogit(logits, params, history, 0, 2.0f);   // positive: divided
  ExpectProcessedLogit(logits, params, history, 1, -6.0f);  // negative: multiplied, once
  ExpectProcessedLogit(logits, params, history, 2, 2.5f);
  ExpectProcessedLogit(logits, params, history, 3, 1.0f);  // not on the path
}

TEST(SamplerTest, FrequencyAndPresencePenaltiesLookAtGeneratedTokens) {
  SamplingParams params = Greedy();
  params.frequency_penalty = 0.5f;
  params.presence_penalty = 0.25f;
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{0, 0, 0});
  for (int32_t token : {1, 2, 2, 2}) history.AddGenerated(token);
  const std::vector<float> logits = {4.0f, 4.0f, 4.0f};
  ExpectProcessedLogit(logits, params, history, 0, 4.0f);
  ExpectProcessedLogit(logits, params, history, 1, 3.25f);
  ExpectProcessedLogit(logits, params, history, 2, 2.25f);
}

TEST(SamplerTest, BiasComesBeforePenalties) {
  SamplingParams params = Greedy();
  params.logit_bias = {{0, -3.0f}, {1, 3.0f}};
  params.repetition_penalty = 2.0f;
  params.frequency_penalty = 1.0f;
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{0, 1});
  history.AddGenerated(1);
  // 2 - 3 = -1, multiplied; 2 + 3 = 5, divided, less 1.
  ExpectProcessedLogit({2.0f, 2.0f}, params, history, 0, -2.0f);
  ExpectProcessedLogit({2.0f, 2.0f}, params, history, 1, 1.5f);
}

class SamplerEdgeTest : public testing::Test {
 protected:
  Sample Run(double uniform = 0.5) {
    return sampler_.Run({.logits = logits_,
                         .params = &params_,
                         .history = &history_,
                         .banned = banned_,
                         .uniform = uniform,
                         .top_logprobs = -1});
  }
  // Every token that some uniform number leads to.
  std::set<int32_t> Drawn() {
    std::set<int32_t> tokens;
    for (int i = 0; i < 2000; ++i) tokens.insert(Run((i + 0.5) / 2000).token);
    return tokens;
  }

  Sampler sampler_;
  SamplingParams params_;
  TokenHistory history_;
  std::vector<int32_t> banned_;
  std::vector<float> logits_ = {1.0f, 2.0f, 3.0f, 2.0f, 1.5f};
};

TEST_F(SamplerEdgeTest, GreedyTakesTheLowestOfEqualTokens) {
  params_ = Greedy();
  logits_ = {1.0f, 7.0f, 7.0f, 7.0f};
  EXPECT_EQ(Run().token, 1);
  banned_ = {1};
  EXPECT_EQ(Run().token, 2);
}

TEST_F(SamplerEdgeTest, TinyTemperatureIsGreedy) {
  for (float temperature : {1e-30f, 1e-6f, 1e-5f, 1e-4f}) {
    params_.temperature = temperature;
    EXPECT_THAT(Drawn(), ElementsAre(2)) << temperature;
  }
}

TEST_F(SamplerEdgeTest, HighTemperatureIsNearlyUniform) {
  params_.temperature = 100;
  for (int i = 0; i < 5; ++i) EXPECT_EQ(Run((i + 0.5) / 5).token, i);
}

TEST_F(SamplerEdgeTest, TopKOfTheVocabularyOrMoreIsOff) {
  for (int k : {-1, 0, 5, 6, 1 << 30}) {
    params_.top_k = k;
    EXPECT_THAT(Drawn(), ElementsAre(0, 1, 2, 3, 4)) << k;
  }
  params_.top_k = 4;
  EXPECT_THAT(Drawn(), ElementsAre(1, 2, 3, 4));
}

TEST_F(SamplerEdgeTest, TopKKeepsExactlyKAndTheLowestOfEqualTokens) {
  params_.top_k = 2;
  EXPECT_THAT(Drawn(), ElementsAre(1, 2));
  params_.top_k = 1;
  EXPECT_THAT(Drawn(), ElementsAre(2));
  logits_.assign(300, 1.0f);
  params_.top_k = 3;
  EXPECT_THAT(Drawn(), ElementsAre(0, 1, 2));
}

TEST_F(SamplerEdgeTest, TopPZeroKeepsOneAndOneKeepsAll) {
  params_.top_p = 0;
  EXPECT_THAT(Drawn(), ElementsAre(2));
  logits_.assign(300, 1.0f);
  EXPECT_THAT(Drawn(), ElementsAre(0));
  logits_.assign(100, 1.0f);
  params_.top_p = 1;
  EXPECT_EQ(Drawn().size(), 100u);
}

TEST_F(SamplerEdgeTest, TopPKeepsTheTokenThatReachesIt) {
  logits_ = {std::log(0.5f), std::log(0.25f), std::log(0.125f), std::log(0.125f)};
  params_.top_p = 0.49f;
  EXPECT_THAT(Drawn(), ElementsAre(0));
  params_.top_p = 0.51f;
  EXPECT_THAT(Drawn(), ElementsAre(0, 1));
  params_.top_p = 0.74f;
  EXPECT_THAT(Drawn(), ElementsAre(0, 1));
  params_.top_p = 0.76f;
  EXPECT_THAT(Drawn(), ElementsAre(0, 1, 2));
  params_.top_p = 0.88f;
  EXPECT_THAT(Drawn(), ElementsAre(0, 1, 2, 3));
}

TEST_F(SamplerEdgeTest, TopPCountsWhatTopKAndMinPLeft) {
  logits_ = {std::log(0.4f), std::log(0.3f), std::log(0.2f), std::log(0.1f)};
  params_.top_p = 0.55f;
  EXPECT_THAT(Drawn(), ElementsAre(0, 1));  // 0.4 < 0.55 of everything
  params_.top_k = 2;
  EXPECT_THAT(Drawn(), ElementsAre(0));  // 4/7 of what top-k left
  params_.top_k = 0;
  params_.min_p = 0.7f;
  EXPECT_THAT(Drawn(), ElementsAre(0));
}

TEST_F(SamplerEdgeTest, MinPOneKeepsTheMostLikely) {
  params_.min_p = 1;
  EXPECT_THAT(Drawn(), ElementsAre(2));
  logits_ = {3.0f, 1.0f, 3.0f};
  EXPECT_THAT(Drawn(), ElementsAre(0, 2));
}

TEST_F(SamplerEdgeTest, MinPLooksAtTheProbabilityAfterTemperature) {
  logits_ = {0.0f, -1.0f};
  params_.min_p = 0.3f;  // exp(-1) = 0.37
  EXPECT_THAT(Drawn(), ElementsAre(0, 1));
  params_.temperature = 0.5f;  // exp(-2) = 0.14
  EXPECT_THAT(Drawn(), ElementsAre(0));
}

TEST_F(SamplerEdgeTest, BiasOf100DecidesOrExcludes) {
  params_.logit_bias = {{0, 100.0f}};
  EXPECT_THAT(Drawn(), ElementsAre(0));
  params_.logit_bias = {{2, -100.0f}};
  EXPECT_THAT(Drawn(), ElementsAre(0, 1, 3, 4));
}

TEST_F(SamplerEdgeTest, TheExtremesOfTheUniformNumberStayInRange) {
  logits_ = {-kInf, 1.0f, 1.0f, -kInf};
  for (int filtered = 0; filtered < 2; ++filtered) {
    params_.top_p = filtered ? 0.999f : 1.0f;
    EXPECT_EQ(Run(0).token, 1);
    EXPECT_EQ(Run(1 - 0x1p-53).token, 2);
  }
  logits_.assign(5000, -200.0f);  // weight 0 everywhere but at one end
  logits_[0] = 0;
  EXPECT_EQ(Run(1 - 0x1p-53).token, 0);
  std::swap(logits_[0], logits_[4999]);
  EXPECT_EQ(Run(0).token, 4999);
}

TEST_F(SamplerEdgeTest, MaskedAndBannedTokensAreNeverChosen) {
  logits_[2] = -kInf;
  banned_ = {1, 3};
  EXPECT_THAT(Drawn(), ElementsAre(0, 4));
  params_ = Greedy();
  EXPECT_EQ(Run().token, 4);
}

TEST(SamplerTest, AMaskIsABanOfTheOthers) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 200; ++round) {
    const int vocab = 1 + static_cast<int>(rng() % 300);
    std::vector<float> logits(vocab);
    for (float& logit : logits) logit = static_cast<float>(rng() % 1000) / 100;
    std::vector<uint64_t> allowed((vocab + 63) / 64);
    std::vector<int32_t> banned;
    for (int32_t token = 0; token < vocab; ++token) {
      if (rng() % 3 == 0) {
        allowed[token / 64] |= uint64_t{1} << (token % 64);
      } else {
        banned.push_back(token);
      }
    }
    SamplingParams params;
    params.temperature = static_cast<float>(round % 3);
    params.top_k = round % 5;
    const double uniform = static_cast<double>(rng() >> 11) * 0x1p-53;
    Sampler sampler;
    const Sample masked =
        sampler.Run({.logits = logits, .params = &params, .allowed = allowed, .uniform = uniform});
    const Sample expected =
        sampler.Run({.logits = logits, .params = &params, .banned = banned, .uniform = uniform});
    ASSERT_EQ(masked.finite, expected.finite);
    if (!masked.finite) continue;
    ASSERT_EQ(masked.token, expected.token);
    ASSERT_EQ(masked.logprob, expected.logprob);
  }
}

TEST_F(SamplerEdgeTest, NothingLeftIsNotFinite) {
  for (float temperature : {0.0f, 1.0f}) {
    params_.temperature = temperature;
    banned_ = {0, 1, 2, 3, 4};
    EXPECT_FALSE(Run().finite);
    banned_ = {1, 2, 3, 4};
    EXPECT_TRUE(Run().finite);
    EXPECT_EQ(Run().token, 0);
  }
}

TEST_F(SamplerEdgeTest, NonFiniteRowsAreReported) {
  for (float bad : {kNan, kInf}) {
    for (float temperature : {0.0f, 1.0f}) {
      params_.temperature = temperature;
      logits_[3] = bad;
      EXPECT_FALSE(Run().finite);
      EXPECT_FALSE(sampler_.Score(logits_, 1, 3).finite);
    }
  }
  logits_.assign(5, -kInf);
  EXPECT_FALSE(Run().finite);
  EXPECT_FALSE(sampler_.Score(logits_, 1, 3).finite);
}

TEST_F(SamplerEdgeTest, LogprobsAreOfTheRawLogits) {
  params_ = Greedy();
  params_.logit_bias = {{0, 100.0f}};
  const std::vector<double> expected = ReferenceLogSoftmax(logits_);
  const Sample sample = sampler_.Run({.logits = logits_,
                                      .params = &params_,
                                      .history = nullptr,
                                      .banned = {},
                                      .uniform = 0,
                                      .top_logprobs = 3});
  EXPECT_EQ(sample.token, 0);
  EXPECT_NEAR(sample.logprob, expected[0], 1e-6);
  ASSERT_EQ(sample.top.size(), 3u);
  const int32_t most_likely[] = {2, 1, 3};  // 1 and 3 tie
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(sample.top[i].first, most_likely[i]);
    EXPECT_NEAR(sample.top[i].second, expected[most_likely[i]], 1e-6);
  }
}

TEST_F(SamplerEdgeTest, TopLogprobsAreOnlyWhatWasAskedFor) {
  EXPECT_TRUE(Run().top.empty());
  EXPECT_TRUE(sampler_.Score(logits_, 1, 0).top.empty());
  EXPECT_EQ(sampler_.Score(logits_, 1, 20).top.size(), 5u);  // the whole vocabulary
}

TEST(SamplerScoreTest, EqualsADoublePrecisionReference) {
  Sampler sampler;
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const int vocab = static_cast<int>(1 + rng() % 4000);
    const std::vector<float> logits = RandomLogits(vocab, 4, rng);
    const std::vector<double> expected = ReferenceLogSoftmax(logits);
    const auto token = static_cast<int32_t>(rng() % vocab);
    const Sample sample = sampler.Score(logits, token, 20);
    EXPECT_EQ(sample.token, token);
    EXPECT_NEAR(sample.logprob, expected[token], 2e-6 * (1 - expected[token]));

    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int a, int b) { return logits[a] > logits[b]; });
    ASSERT_EQ(sample.top.size(), std::min<size_t>(20, vocab));
    for (size_t i = 0; i < sample.top.size(); ++i) {
      EXPECT_EQ(sample.top[i].first, order[i]);
      EXPECT_NEAR(sample.top[i].second, expected[order[i]], 2e-6 * (1 - expected[order[i]]));
    }
  }
}

}  // namespace
}  // namespace espalier
