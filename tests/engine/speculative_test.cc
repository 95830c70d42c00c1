// Speculation changes when tokens are computed, never which.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>

#include "engine/draft_model.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

constexpr const char* kModel = "llama-gqa8-linear";
constexpr const char* kOtherModel = "llama-gqa4-llama3";

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
void ExpectSameTree(const TreeRequest& request, const TreeResult& a, const TreeResult& b,
                    double tolerance) {
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
        EXPECT_NEAR(branch.logprobs[i].logprob, other.logprobs[i].logprob, tolerance);
      }
    }
    EXPECT_TRUE(found) << "node " << branch.start.node << " sample " << branch.start.sample;
  }
}

// Sums what was drafted and accepted over `count` trees. `draft`: the draft model's checkpoint;
// empty: by n-grams.
Usage ExpectLossless(EngineConfig config, const std::string& draft, float temperature, int count,
                     uint64_t seed) {
  config.speculative = Speculative::kOff;
  const std::unique_ptr<Engine> plain = MakeEngine(config);
  config.speculative = draft.empty() ? Speculative::kNgram : Speculative::kDraft;
  config.draft_model_path = draft;
  config.draft_shape.adaptive = false;
  const std::unique_ptr<Engine> speculative = MakeEngine(
      config, OpenTinyCheckpoint(kModel), draft.empty() ? nullptr : OpenTinyCheckpoint(draft));
  Usage sum;
  for (int i = 0; i < count; ++i) {
    SCOPED_TRACE(testing::Message() << "seed " << seed + i);
    std::mt19937_64 rng(seed + i);
    const TreeRequest request = RepetitiveTree(rng, temperature);
    const TreeResult expected = RunTree(*plain, request);
    const TreeResult result = RunTree(*speculative, request);
    ExpectSameTree(request, expected, result, LogprobTolerance(config.kv_dtype));
    EXPECT_EQ(expected.usage.drafted_tokens, 0);
    EXPECT_LE(result.usage.accepted_tokens, result.usage.drafted_tokens);
    sum.drafted_tokens += result.usage.drafted_tokens;
    sum.accepted_tokens += result.usage.accepted_tokens;
    sum.verify_steps += result.usage.verify_steps;
    sum.preemptions += result.usage.preemptions;
    if (testing::Test::HasFailure()) break;
  }
  return sum;
}

TEST(SpeculativeTest, GreedyIsPlainDecodingOnAHundredTrees) {
  const Usage usage = ExpectLossless(ExactConfig(Sharing::kCache), "", 0, 100, 1);
  EXPECT_GT(usage.accepted_tokens, 100);
  EXPECT_GT(usage.drafted_tokens, usage.accepted_tokens) << "nothing was ever rejected";
}

TEST(SpeculativeTest, SamplingIsPlainDecoding) {
  const Usage usage = ExpectLossless(ExactConfig(Sharing::kTree), "", 1, 50, 1000);
  EXPECT_GT(usage.accepted_tokens, 10);
}

TEST(SpeculativeTest, WithoutSharingToo) {
  EXPECT_GT(ExpectLossless(ExactConfig(Sharing::kNone), "", 0, 20, 2000).accepted_tokens, 10);
}

TEST(SpeculativeTest, AModelThatDraftsForItself) {
  const Usage greedy = ExpectLossless(ExactConfig(Sharing::kCache), kModel, 0, 100, 3000);
  EXPECT_GT(greedy.accepted_tokens, greedy.verify_steps / 2);
  const Usage sampled = ExpectLossless(ExactConfig(Sharing::kTree), kModel, 1, 50, 4000);
  EXPECT_GT(sampled.accepted_tokens, sampled.verify_steps / 2);
  EXPECT_GT(ExpectLossless(ExactConfig(Sharing::kNone), kModel, 0, 20, 5000).accepted_tokens, 10);
}

// The draft is all accepted, to its depth, though what was drafted last has no KV of the draft
// model's.
TEST(SpeculativeTest, AChainOfAModelThatDraftsForItself) {
  for (Sharing sharing : {Sharing::kNone, Sharing::kTree, Sharing::kCache}) {
    EngineConfig config = ExactConfig(sharing);
    config.speculative = Speculative::kDraft;
    config.draft_model_path = kModel;
    config.draft_shape = {.children = {1, 1, 1}, .adaptive = false};
    const std::unique_ptr<Engine> engine =
        MakeEngine(config, OpenTinyCheckpoint(kModel), OpenTinyCheckpoint(kModel));
    std::mt19937_64 rng(11);
    TreeRequest request;
    request.nodes.push_back(Node(-1, RandomTokens(rng, 12)));
    for (int i = 0; i < 3; ++i) {
      request.nodes.push_back(Node(0, RandomTokens(rng, 2), Greedy(41)));
    }
    const TreeResult result = RunTree(*engine, request);
    ASSERT_TRUE(result.status.ok()) << result.status;
    // The prompt's step gives a branch its first token, every other step four.
    EXPECT_EQ(result.usage.verify_steps, 3 * 10);
    EXPECT_EQ(result.usage.drafted_tokens, 3 * 30);
    EXPECT_EQ(result.usage.accepted_tokens, 3 * 30);
  }
}

// What is accepted is copied with its scaled elements, in the model's cache and the draft model's.
TEST(SpeculativeTest, WithFp8Kv) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.kv_dtype = KvCacheDType::kFp8;
  EXPECT_GT(ExpectLossless(config, "", 0, 30, 10000).accepted_tokens, 10);
  EXPECT_GT(ExpectLossless(config, kModel, 0, 30, 11000).accepted_tokens, 10);
  config.kv_memory_bytes = 24 * 16 * 256;  // as few pages as in WithFewPages
  EXPECT_GT(ExpectLossless(config, kModel, 0, 30, 12000).accepted_tokens, 10);
}

TEST(SpeculativeTest, ADraftModelThatKnowsNothing) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  const Usage usage = ExpectLossless(config, kOtherModel, 0, 50, 6000);
  EXPECT_GT(usage.drafted_tokens, 100);
  EXPECT_LT(usage.accepted_tokens, usage.drafted_tokens / 4);
}

TEST(SpeculativeTest, StaticTreesOfDrafts) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.speculative_rows = 64;
  config.draft_shape.children = {3, 2, 2, 1};
  EXPECT_GT(ExpectLossless(config, kModel, 1, 40, 7000).accepted_tokens, 10);
  config.draft_shape.children = {1};
  EXPECT_GT(ExpectLossless(config, kModel, 0, 20, 8000).accepted_tokens, 10);
}

// A pool that holds hardly more than one path: drafts meet preemption.
TEST(SpeculativeTest, WithFewPages) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.kv_memory_bytes = 24 * 16 * 1024;
  EXPECT_GT(ExpectLossless(config, kModel, 0, 50, 9000).accepted_tokens, 10);
}

// The first token of many branches against the probabilities that the model gives: what is drawn
// must not follow the draft model.
TEST(SpeculativeTest, SamplesHaveTheModelsDistribution) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.speculative = Speculative::kDraft;
  config.draft_model_path = kModel;
  config.draft_shape = {.children = {2, 2}, .adaptive = false};
  const std::unique_ptr<Engine> engine =
      MakeEngine(config, OpenTinyCheckpoint(kModel), OpenTinyCheckpoint(kModel));
  std::mt19937_64 rng(11);
  constexpr int kTrees = 600;
  constexpr int kTop = 8;  // tokens that are told apart
  const std::vector<int32_t> prompt = RandomTokens(rng, 12);
  int64_t accepted = 0;
  // Chi-square of every token's choice given its path: each contributes one degree of freedom per
  // bin beyond the first, summed over all paths that many trees share.
  std::map<std::vector<int32_t>, std::map<int32_t, int>> counts;
  std::map<std::vector<int32_t>, std::vector<std::pair<int32_t, float>>> rows;
  for (int i = 0; i < kTrees; ++i) {
    TreeRequest request;
    request.seed = rng();
    Generation g = Greedy(4);
    g.sampling.temperature = 1;
    g.sampling.top_k = kTop;
    g.logprobs = kTop;
    request.nodes.push_back(Node(-1, prompt, g));
    const TreeResult result = RunTree(*engine, request);
    ASSERT_TRUE(result.status.ok()) << result.status;
    accepted += result.usage.accepted_tokens;
    const BranchResult& branch = result.branches.begin()->second;
    std::vector<int32_t> path;
    for (size_t t = 0; t < branch.tokens.size(); ++t) {
      ++counts[path][branch.tokens[t]];
      rows[path] = branch.logprobs[t].top;
      path.push_back(branch.tokens[t]);
    }
  }
  EXPECT_GT(accepted, kTrees / 4);
  double chi_square = 0;
  int freedom = 0;
  for (const auto& [path, drawn] : counts) {
    int total = 0;
    for (const auto& [token, count] : drawn) total += count;
    if (total < 60) continue;
    double sum = 0;
    for (const auto& [token, logprob] : rows[path]) sum += std::exp(logprob);
    for (const auto& [token, logprob] : rows[path]) {
      const double expected = total * std::exp(logprob) / sum;
      const auto found = drawn.find(token);
      const double seen = found == drawn.end() ? 0 : found->second;
      chi_square += (seen - expected) * (seen - expected) / expected;
    }
    freedom += kTop - 1;
  }
  // Five standard deviations.
  EXPECT_GT(freedom, 2 * kTop);
  EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2.0 * freedom));
}

TEST(SpeculativeTest, ADraftModelMustShareTheTokens) {
  EXPECT_TRUE(CheckSameTokens(FakeTokenizer(256), FakeTokenizer(256)).ok());
  const absl::Status smaller = CheckSameTokens(FakeTokenizer(256), FakeTokenizer(255));
  EXPECT_EQ(smaller.message(),
            "draft_model has a tokenizer of 255 tokens; it must be the model's, which has 256");
}

TEST(SpeculativeTest, TheConfigurationIsChecked) {
  const auto message = [](auto change) {
    EngineConfig config = ExactConfig(Sharing::kCache);
    config.speculative = Speculative::kDraft;
    config.draft_model_path = "somewhere";
    change(config);
    return std::string(CheckDraftConfig(config).message());
  };
  EXPECT_EQ(message([](EngineConfig&) {}), "");
  EXPECT_EQ(message([](EngineConfig& c) { c.draft_model_path = ""; }),
            "speculative is draft, and draft_model is not set");
  EXPECT_EQ(message([](EngineConfig& c) { c.speculative = Speculative::kNgram; }),
            "draft_model is \"somewhere\", and speculative is not draft");
  EXPECT_EQ(message([](EngineConfig& c) { c.draft_shape.depth = 17; }),
            "draft_depth is 17; must be between 1 and 16");
  EXPECT_EQ(message([](EngineConfig& c) {
              c.draft_shape.children = {16, 16};
            }),
            "the number of tokens of draft_shape is 272; must be between 1 and 256");
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
