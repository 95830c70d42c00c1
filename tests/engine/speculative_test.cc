// Speculation changes when tokens are computed, never which.
#include <gtest/gtest.h>

#include <random>

#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

// A root that repeats itself, and below it branches that differ in all that may end or bend them.
TreeRequest RepetitiveTree(std::mt19937_64& rng, float temperature) {
  TreeRequest request;
  request.seed = rng();
  const std::vector<int32_t> phrase = RandomTokens(rng, 2 + static_cast<int>(rng() % 6));
  std::vector<int32_t> prompt;
  for (int i = 0; i < 4; ++i) prompt.insert(prompt.end(), phrase.begin(), phrase.end());
  request.nodes.push_back(Node(-1, prompt));
  const int children = 1 + static_cast<int>(rng() % 3);
  for (int i = 0; i < children; ++i) {
    Generation g = Greedy(1 + static_cast<int>(rng() % 40));
    g.n = 1 + static_cast<int>(rng() % 2);
    g.sampling.temperature = temperature;
    g.sampling.top_k = temperature > 0 ? 2 : 0;
    g.ignore_eos = rng() % 2 == 0;
    if (rng() % 3 == 0) g.min_tokens = std::min(4, *g.max_tokens);
    if (rng() % 3 == 0) g.stop_token_ids = RandomTokens(rng, 30);
    if (rng() % 4 == 0) g.stop = {std::string(1, static_cast<char>('a' + rng() % 26))};
    if (rng() % 4 == 0) g.sampling.frequency_penalty = 0.5f;
    request.nodes.push_back(Node(0, RandomTokens(rng, 1 + static_cast<int>(rng() % 4)), g));
    if (rng() % 2 == 0) {
      const int parent = static_cast<int>(request.nodes.size()) - 1;
      request.nodes.push_back(Node(parent, RandomTokens(rng, 2), Greedy(12)));
    }
  }
  return request;
}

// Branch ids follow the order of starting, which depends on the batch: by path.
void ExpectSameTree(const TreeRequest& request, const TreeResult& a, const TreeResult& b) {
  ASSERT_TRUE(a.status.ok()) << a.status;
  ASSERT_TRUE(b.status.ok()) << b.status;
  ASSERT_EQ(a.branches.size(), b.branches.size());
  EXPECT_EQ(a.usage.completion_tokens, b.usage.completion_tokens);
  for (const auto& [id, branch] : a.branches) {
    bool found = false;
    for (const auto& [other_id, other] : b.branches) {
      if (other.start.node != branch.start.node || other.start.sample != branch.start.sample ||
          PathOf(request, b, other) != PathOf(request, a, branch) ||
          other.tokens != branch.tokens) {
        continue;
      }
      found = true;
      EXPECT_EQ(branch.text, other.text);
      EXPECT_EQ(branch.end.reason, other.end.reason);
      EXPECT_EQ(branch.end.stop_reason, other.end.stop_reason);
      ASSERT_EQ(branch.logprobs.size(), other.logprobs.size());
      for (size_t i = 0; i < branch.logprobs.size(); ++i) {
        EXPECT_NEAR(branch.logprobs[i].logprob, other.logprobs[i].logprob, 1e-4);
      }
    }
    EXPECT_TRUE(found) << "node " << branch.start.node << " sample " << branch.start.sample;
  }
}

// Sums what was drafted and accepted over `count` trees.
Usage ExpectLossless(const EngineConfig& config, float temperature, int count, uint64_t seed) {
  EngineConfig plain_config = config;
  plain_config.speculative = Speculative::kOff;
  EngineConfig speculative_config = config;
  speculative_config.speculative = Speculative::kNgram;
  const std::unique_ptr<Engine> plain = MakeEngine(plain_config);
  const std::unique_ptr<Engine> speculative = MakeEngine(speculative_config);
  Usage sum;
  for (int i = 0; i < count; ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << seed + i);
    std::mt19937_64 rng(seed + i);
    const TreeRequest request = RepetitiveTree(rng, temperature);
    const TreeResult expected = RunTree(*plain, request);
    const TreeResult result = RunTree(*speculative, request);
    ExpectSameTree(request, expected, result);
    EXPECT_EQ(expected.usage.drafted_tokens, 0);
    EXPECT_LE(result.usage.accepted_tokens, result.usage.drafted_tokens);
    sum.drafted_tokens += result.usage.drafted_tokens;
    sum.accepted_tokens += result.usage.accepted_tokens;
    sum.preemptions += result.usage.preemptions;
    if (testing::Test::HasFailure()) break;
  }
  return sum;
}

TEST(SpeculativeTest, GreedyIsPlainDecodingOnAHundredTrees) {
  const Usage usage = ExpectLossless(ExactConfig(Sharing::kCache), 0, 100, 1);
  EXPECT_GT(usage.accepted_tokens, 100);
  EXPECT_GT(usage.drafted_tokens, usage.accepted_tokens) << "nothing was ever rejected";
}

TEST(SpeculativeTest, SamplingIsPlainDecoding) {
  const Usage usage = ExpectLossless(ExactConfig(Sharing::kTree), 1, 50, 1000);
  EXPECT_GT(usage.accepted_tokens, 10);
}

TEST(SpeculativeTest, WithoutSharingToo) {
  EXPECT_GT(ExpectLossless(ExactConfig(Sharing::kNone), 0, 20, 2000).accepted_tokens, 10);
}

TEST(SpeculativeTest, ARequestMayDecline) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.speculative = Speculative::kNgram;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  std::mt19937_64 rng(7);
  TreeRequest request = RepetitiveTree(rng, 0);
  for (PromptNode& node : request.nodes) {
    if (node.generation) node.generation->speculative = false;
  }
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.usage.drafted_tokens, 0);
  EXPECT_EQ(result.usage.verify_steps, 0);
}

}  // namespace
}  // namespace espalier
