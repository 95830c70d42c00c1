// Branches whose text a regular expression or a choice decides, on whole engines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <re2/re2.h>

#include <random>
#include <string>

#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

using testing::HasSubstr;

TEST(ConstrainedTest, TextsMatchTheirPattern) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 rng(seed);
  int stopped = 0;
  for (const std::string pattern :
       {R"(\d{4}-\d{2}-\d{2})", "(yes|no|maybe)", "[a-c]+x", R"(\{"a": (true|false|\d+)\})",
        "a?b?c?d{1,3}", ".*", "(\u00e9|\u20ac)+!", "[^a-y]{5,9}"}) {
    SCOPED_TRACE(pattern);
    for (float temperature : {0.0f, 1.0f, 2.0f}) {
      TreeRequest request;
      request.seed = rng();
      Generation g;
      g.n = 6;
      g.max_tokens = 40;
      g.sampling.temperature = temperature;
      g.sampling.logit_bias = {{'z', 5.0f}};
      g.sampling.frequency_penalty = 0.5f;
      g.regex = pattern;
      request.nodes = {Node(-1, RandomTokens(rng, 7), g), Node(0, {1, 2}, Greedy(3))};
      const TreeResult result = RunTree(*engine, request);
      ASSERT_TRUE(result.status.ok()) << result.status;
      for (const auto& [id, branch] : result.branches) {
        if (branch.start.node != 0) continue;
        if (branch.end.reason == FinishReason::kLength) continue;
        ASSERT_EQ(branch.end.reason, FinishReason::kStop);
        EXPECT_TRUE(RE2::FullMatch(branch.text, pattern)) << branch.text;
        ++stopped;
      }
    }
  }
  EXPECT_GT(stopped, 60);
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST(ConstrainedTest, LogprobsAreThoseOfTheRawLogits) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  std::mt19937_64 rng(5);
  const std::vector<int32_t> prompt = RandomTokens(rng, 9);
  Generation g = Greedy(12);
  g.regex = "[0-9]{8}";
  g.ignore_eos = false;
  TreeRequest request;
  request.nodes = {Node(-1, prompt, g)};
  const TreeResult constrained = RunTree(*engine, request);
  ASSERT_TRUE(constrained.status.ok()) << constrained.status;
  const BranchResult& branch = constrained.Branch(0);
  ASSERT_EQ(branch.tokens.size(), 8u);
  EXPECT_EQ(branch.end.reason, FinishReason::kStop);
  PromptNode scored = Node(0, branch.tokens);
  scored.score = true;
  request.nodes = {Node(-1, prompt), scored};
  const TreeResult scores = RunTree(*engine, request);
  ASSERT_EQ(scores.scores.size(), 1u);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(branch.logprobs[i].logprob, scores.scores[0].logprobs[i].logprob, 1e-4);
  }
}

TEST(ConstrainedTest, AChoiceIsTheBestOfItsExactScores) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  const std::vector<std::string> texts = {"red", "green", "blue", "reddish", "a"};
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    const std::vector<int32_t> prompt = RandomTokens(rng, 12);
    for (BranchScore score : {BranchScore::kCumulativeLogprob, BranchScore::kMeanLogprob}) {
      TreeRequest plain;
      plain.nodes = {Node(-1, prompt)};
      for (const std::string& text : texts) {
        PromptNode& node = plain.nodes.emplace_back();
        node.parent = 0;
        node.content = text;
        node.score = true;
      }
      const TreeResult scored = RunTree(*engine, plain);
      ASSERT_EQ(scored.scores.size(), texts.size());
      std::vector<double> expected(texts.size());
      for (const NodeScored& node : scored.scores) {
        for (const TokenLogprob& token : node.logprobs) expected[node.node - 1] += token.logprob;
        if (score == BranchScore::kMeanLogprob) {
          expected[node.node - 1] /= static_cast<double>(node.logprobs.size());
        }
      }
      const auto best = std::ranges::max_element(expected) - expected.begin();

      TreeRequest request;
      Generation g;
      g.search = Choices{.texts = texts, .score = score};
      request.nodes = {Node(-1, prompt, g), Node(0, {1, 2}, Greedy(3))};
      const TreeResult result = RunTree(*engine, request);
      ASSERT_TRUE(result.status.ok()) << result.status;
      ASSERT_EQ(result.branches.size(), texts.size() + 1);
      for (const auto& [id, branch] : result.branches) {
        if (branch.start.node != 0) continue;
        const int choice = branch.start.sample;
        EXPECT_EQ(branch.text, texts[choice]);
        EXPECT_NEAR(*branch.end.score, expected[choice], 1e-4);
        EXPECT_EQ(branch.end.rank.has_value(), choice == best);
        EXPECT_EQ(branch.end.reason, choice == best ? FinishReason::kStop : FinishReason::kPruned);
        if (choice == best) result.Branch(1, 0, id);
      }
    }
  }
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST(ConstrainedTest, RefusalsNameTheField) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  const auto refusal = [&](const Generation& g) {
    TreeRequest request;
    request.nodes = {Node(-1, {1, 2, 3}, g)};
    return std::string(TreeCall::Start(*engine, request).status().message());
  };
  Generation g;
  g.regex = "a(b";
  EXPECT_THAT(refusal(g), HasSubstr("nodes[0].generation.regex: byte 3"));
  g.regex = "(a|b)*a(a|b){20}";
  EXPECT_THAT(refusal(g), HasSubstr("nodes[0].generation.regex: the pattern needs more states"));
  g.regex = std::string(4097, 'a');
  EXPECT_THAT(refusal(g), HasSubstr("generation.regex is 4097 bytes; must be at most 4096"));
  g.regex = "a+";
  g.ignore_eos = true;
  EXPECT_THAT(refusal(g), HasSubstr("generation.ignore_eos is set; must be unset with regex"));
  g.ignore_eos = false;
  g.search = BeamSearch{.width = 2};
  EXPECT_THAT(refusal(g), HasSubstr("generation.regex is set; must be unset with beam_search"));
  g.search = Choices{.texts = {"a"}};
  EXPECT_THAT(refusal(g), HasSubstr("generation.regex is set; must be unset with choices"));
  g.regex.clear();
  g.sampling.top_k = 4;
  EXPECT_THAT(refusal(g), HasSubstr("generation.top_k is set; must be unset with choices"));
  g.sampling.top_k = 0;
  g.search = Choices{};
  EXPECT_THAT(refusal(g), HasSubstr("generation.choices.texts is 0 entries"));
  g.search = Choices{.texts = std::vector<std::string>(257, "a")};
  EXPECT_THAT(refusal(g), HasSubstr("generation.choices.texts is 257"));
  g.search = Choices{.texts = {"a", ""}};
  EXPECT_THAT(refusal(g), HasSubstr("generation.choices.texts[1] comes to 0 tokens"));
}

}  // namespace
}  // namespace espalier
