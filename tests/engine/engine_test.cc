// The engine on tiny random checkpoints: a tree is what its paths are alone, however they share,
// batch, wait or are preempted.
#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <random>

#include "absl/time/clock.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

// A root, questions below it, and below some of them another turn.
TreeRequest RandomTree(std::mt19937_64& rng) {
  TreeRequest request;
  request.seed = rng();
  request.nodes.push_back(Node(-1, RandomTokens(rng, 1 + static_cast<int>(rng() % 70))));
  if (rng() % 2 == 0) request.nodes[0].generation = Greedy(1 + static_cast<int>(rng() % 20));
  const int children = 2 + static_cast<int>(rng() % 5);
  for (int i = 0; i < children; ++i) {
    request.nodes.push_back(Node(0, RandomTokens(rng, 1 + static_cast<int>(rng() % 20)),
                                 Greedy(1 + static_cast<int>(rng() % 24))));
    request.nodes.back().generation->n = 1 + static_cast<int>(rng() % 2);
    if (rng() % 2 == 0) {
      request.nodes.push_back(Node(static_cast<int>(request.nodes.size()) - 1,
                                   RandomTokens(rng, 1 + static_cast<int>(rng() % 9)),
                                   Greedy(1 + static_cast<int>(rng() % 12))));
    }
  }
  return request;
}

void ExpectSameBranch(const BranchResult& a, const BranchResult& b,
                      KvCacheDType kv_dtype = KvCacheDType::kAuto) {
  ASSERT_EQ(a.tokens, b.tokens);
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t i = 0; i < a.logprobs.size(); ++i) {
    std::vector<float> row_a(kTinyVocab), row_b(kTinyVocab);
    for (const auto& [token, logprob] : a.logprobs[i].top) row_a[token] = logprob;
    for (const auto& [token, logprob] : b.logprobs[i].top) row_b[token] = logprob;
    ASSERT_EQ(a.logprobs[i].top.size(), static_cast<size_t>(kTinyVocab));
    for (int t = 0; t < kTinyVocab; ++t) {
      ASSERT_NEAR(row_a[t], row_b[t], LogprobTolerance(kv_dtype)) << "token " << i;
    }
  }
}

struct TinyCase {
  std::string checkpoint;
  KvCacheDType kv_dtype = KvCacheDType::kAuto;
};

class EngineTest : public testing::TestWithParam<TinyCase> {
 protected:
  static std::unique_ptr<Engine> Make(Sharing sharing) {
    EngineConfig config = ExactConfig(sharing);
    config.kv_dtype = GetParam().kv_dtype;
    return MakeEngine(config, GetParam().checkpoint);
  }
};

TEST_P(EngineTest, TreeEqualsItsPathsAsIndependentRequests) {
  const std::unique_ptr<Engine> tree_engine = Make(Sharing::kCache);
  const std::unique_ptr<Engine> path_engine = Make(Sharing::kNone);
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const TreeRequest request = RandomTree(rng);
    const TreeResult tree = RunTree(*tree_engine, request);
    ASSERT_TRUE(tree.status.ok()) << tree.status;
    for (const auto& [id, branch] : tree.branches) {
      SCOPED_TRACE(testing::Message() << "branch " << id);
      TreeRequest alone;
      Generation generation = *request.nodes[branch.start.node].generation;
      generation.n = 1;
      alone.nodes = {Node(-1, PathOf(request, tree, branch), generation)};
      const TreeResult path = RunTree(*path_engine, alone);
      ASSERT_TRUE(path.status.ok()) << path.status;
      ExpectSameBranch(branch, path.branches.at(0), GetParam().kv_dtype);
      if (HasFatalFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, EngineTest,
                         testing::Values(TinyCase{"llama-mha"}, TinyCase{"llama-gqa3-tied"},
                                         TinyCase{"llama-gqa8-linear"},
                                         TinyCase{"llama-head64-llama3"}, TinyCase{"qwen2-bias"},
                                         TinyCase{"llama-gqa3-tied", KvCacheDType::kFp8},
                                         TinyCase{"llama-head64-llama3", KvCacheDType::kFp8},
                                         TinyCase{"qwen2-bias", KvCacheDType::kFp8}),
                         [](const auto& tiny) {
                           std::string id = tiny.param.checkpoint;
                           std::erase(id, '-');
                           return tiny.param.kv_dtype == KvCacheDType::kFp8 ? id + "Fp8" : id;
                         });

class EngineKvTest : public testing::TestWithParam<KvCacheDType> {
 protected:
  static EngineConfig Config(Sharing sharing) {
    EngineConfig config = ExactConfig(sharing);
    config.kv_dtype = GetParam();
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(DTypes, EngineKvTest,
                         testing::Values(KvCacheDType::kAuto, KvCacheDType::kFp8),
                         [](const auto& param) { return param.index == 0 ? "Auto" : "Fp8"; });

TEST_P(EngineKvTest, ResultsDoNotDependOnSharingChunksOrMates) {
  for (uint64_t seed = 10; seed < 14; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    TreeRequest request = RandomTree(rng);
    for (PromptNode& node : request.nodes) {
      if (node.generation) node.generation->sampling.temperature = 1;
    }
    const std::unique_ptr<Engine> reference = MakeEngine(Config(Sharing::kNone));
    const TreeResult expected = RunTree(*reference, request);
    ASSERT_TRUE(expected.status.ok()) << expected.status;
    for (const Sharing sharing : {Sharing::kNone, Sharing::kTree, Sharing::kCache}) {
      EngineConfig config = Config(sharing);
      config.max_batch_tokens = 7;
      config.max_live_branches = 3;
      const std::unique_ptr<Engine> engine = MakeEngine(config);
      // Mates of the same and of other content.
      std::vector<std::unique_ptr<TreeCall>> mates;
      for (int i = 0; i < 3; ++i) {
        mates.push_back(*TreeCall::Start(*engine, i == 0 ? request : RandomTree(rng)));
      }
      const TreeResult result = RunTree(*engine, request);
      ASSERT_TRUE(result.status.ok()) << result.status;
      ASSERT_EQ(result.branches.size(), expected.branches.size());
      for (const auto& [id, branch] : expected.branches) {
        // Branch ids follow the order of starting, which depends on the batch: compare by path.
        bool found = false;
        for (const auto& [other_id, other] : result.branches) {
          if (other.start.node != branch.start.node || other.start.sample != branch.start.sample ||
              PathOf(request, result, other) != PathOf(request, expected, branch)) {
            continue;
          }
          if (other.tokens != branch.tokens) continue;
          found = true;
          ExpectSameBranch(branch, other, GetParam());
          if (HasFatalFailure()) return;
        }
        EXPECT_TRUE(found) << "node " << branch.start.node << " sample " << branch.start.sample;
      }
      for (auto& mate : mates) EXPECT_TRUE(mate->Wait().status.ok());
    }
  }
}

TEST_P(EngineKvTest, PreemptionChangesNothing) {
  std::mt19937_64 rng(77);
  std::vector<TreeRequest> requests;
  for (int i = 0; i < 4; ++i) {
    // 4 pages of prompt and 3 for each of 12 branches.
    TreeRequest& request = requests.emplace_back();
    request.nodes.push_back(Node(-1, RandomTokens(rng, 60)));
    for (int child = 0; child < 12; ++child) {
      request.nodes.push_back(Node(0, RandomTokens(rng, 6), Greedy(40)));
    }
  }
  const std::unique_ptr<Engine> ample = MakeEngine(Config(Sharing::kNone));
  const EngineStats whole = ample->Stats();
  EngineConfig config = Config(Sharing::kCache);
  config.kv_memory_bytes = whole.kv_bytes / whole.pages_total * 14;
  const std::unique_ptr<Engine> scarce = MakeEngine(config);
  ASSERT_EQ(scarce->Stats().pages_total, 14);
  std::vector<std::unique_ptr<TreeCall>> calls;
  for (const TreeRequest& request : requests) {
    absl::StatusOr<std::unique_ptr<TreeCall>> call = TreeCall::Start(*scarce, request);
    ASSERT_TRUE(call.ok()) << call.status();
    calls.push_back(*std::move(call));
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    const TreeResult result = calls[i]->Wait();
    ASSERT_TRUE(result.status.ok()) << result.status;
    const TreeResult expected = RunTree(*ample, requests[i]);
    std::multiset<std::vector<int32_t>> got, want;
    for (const auto& [id, branch] : result.branches) got.insert(branch.tokens);
    for (const auto& [id, branch] : expected.branches) want.insert(branch.tokens);
    EXPECT_EQ(got, want);
  }
  scarce->Drain(absl::Seconds(10));
  EXPECT_GT(scarce->Stats().preemptions, 0);
  const EngineStats stats = scarce->Stats();
  EXPECT_EQ(stats.pages_locked, 0);
  EXPECT_EQ(stats.pages_free + stats.pages_cached, 14);
}

// Looks at the statistics when it is told of an event, before the engine goes on.
class StatisticsSink : public OutputSink {
 public:
  explicit StatisticsSink(const Engine* engine) : engine_(engine) {}
  void OnEvents() override {
    const std::lock_guard lock(mutex_);
    seen_.push_back(engine_->Stats());
    changed_.notify_all();
  }
  std::vector<EngineStats> AwaitEnd() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !seen_.empty() && seen_.back().trees_finished > 0; });
    return seen_;
  }

 private:
  const Engine* const engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<EngineStats> seen_;
};

// A client that acts on an event at once finds it in the statistics.
TEST(Engine, StatisticsAreNoOlderThanEvents) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  TreeRequest request;
  request.nodes = {Node(-1, {1, 2, 3}, Greedy(4))};
  auto sink = std::make_shared<StatisticsSink>(engine.get());
  ASSERT_TRUE(engine->Submit(request, sink).ok());
  const std::vector<EngineStats> seen = sink->AwaitEnd();
  EXPECT_EQ(seen.front().trees_waiting, 1);
  // A step whose token ends within a character says nothing; the others are counted when they do.
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_GT(seen[i].steps, seen[i - 1].steps);
  EXPECT_EQ(seen.back().steps, 4);
  EXPECT_EQ(seen.back().trees_finished, 1);
  EXPECT_EQ(seen.back().completion_tokens, 4);
  EXPECT_EQ(seen.back().branches_live, 0);
  EXPECT_EQ(seen.back().pages_locked, 0);
}

// A few-shot tree computes and reads what the tree says, and no more.
TEST(Engine, UsageIsWhatTheTreePredicts) {
  constexpr int kBranches = 16, kPrompt = 96, kQuestion = 5, kTokens = 12;
  std::mt19937_64 rng(3);
  TreeRequest request;
  request.nodes.push_back(Node(-1, RandomTokens(rng, kPrompt)));
  for (int i = 0; i < kBranches; ++i) {
    std::vector<int32_t> question = RandomTokens(rng, kQuestion);
    question[0] = i;  // no two share their first token
    request.nodes.push_back(Node(0, question, Greedy(kTokens)));
  }
  // The last token of a branch is never computed: nothing follows it.
  constexpr int kDecodeSteps = kTokens - 1;

  const std::unique_ptr<Engine> shared = MakeEngine(ExactConfig(Sharing::kTree));
  const Usage tree = RunTree(*shared, request).usage;
  EXPECT_EQ(tree.prompt_tokens, kPrompt + kBranches * kQuestion);
  EXPECT_EQ(tree.cached_tokens, 0);
  EXPECT_EQ(tree.completion_tokens, kBranches * kTokens);
  EXPECT_EQ(tree.computed_tokens, kPrompt + kBranches * (kQuestion + kDecodeSteps));
  EXPECT_EQ(tree.steps, 1 + kDecodeSteps);
  int64_t unique = kPrompt + kBranches * kQuestion;
  int64_t logical = kPrompt + kBranches * (kPrompt + kQuestion);
  for (int step = 1; step <= kDecodeSteps; ++step) {
    unique += kPrompt + kBranches * (kQuestion + step);
    logical += kBranches * (kPrompt + kQuestion + step);
  }
  EXPECT_EQ(tree.kv_tokens_read_unique, unique);
  EXPECT_EQ(tree.kv_tokens_read_logical, logical);

  const std::unique_ptr<Engine> unshared = MakeEngine(ExactConfig(Sharing::kNone));
  const Usage none = RunTree(*unshared, request).usage;
  EXPECT_EQ(none.computed_tokens, kBranches * (kPrompt + kQuestion + kDecodeSteps));
  EXPECT_EQ(none.kv_tokens_read_unique, none.kv_tokens_read_logical);

  // The same request again: the cache has all of it but what was never computed.
  const std::unique_ptr<Engine> cached = MakeEngine(ExactConfig(Sharing::kCache));
  EXPECT_EQ(RunTree(*cached, request).usage.cached_tokens, 0);
  const Usage again = RunTree(*cached, request).usage;
  EXPECT_EQ(again.cached_tokens, again.prompt_tokens);
  // Each question's last token is queried again for its logits.
  EXPECT_EQ(again.computed_tokens, kBranches * (1 + kDecodeSteps));
}

TEST(Engine, SaltsDoNotShare) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  std::mt19937_64 rng(5);
  TreeRequest request;
  request.nodes = {Node(-1, RandomTokens(rng, 40), Greedy(4))};
  request.cache_salt = "a";
  RunTree(*engine, request);
  EXPECT_EQ(RunTree(*engine, request).usage.cached_tokens, 40);
  request.cache_salt = "b";
  EXPECT_EQ(RunTree(*engine, request).usage.cached_tokens, 0);
  EXPECT_GT((*engine->DescribeTree("a", 100)).size(), 1u);
  EXPECT_TRUE((*engine->DescribeTree("c", 100)).empty());
}

// Requests that arrive together compute their common prefix once.
TEST(Engine, SiblingsShareOnePrefill) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  std::mt19937_64 rng(6);
  const std::vector<int32_t> prefix = RandomTokens(rng, 500);
  std::vector<std::unique_ptr<TreeCall>> calls;
  for (int i = 0; i < 4; ++i) {
    TreeRequest request;
    std::vector<int32_t> tokens = prefix;
    tokens.push_back(i);
    request.nodes = {Node(-1, tokens, Greedy(2))};
    calls.push_back(*TreeCall::Start(*engine, request));
  }
  for (auto& call : calls) ASSERT_TRUE(call->Wait().status.ok());
  // Each request: its own last token and one decoded token.
  EXPECT_EQ(engine->Stats().computed_tokens, 500 + 4 * 2);
}

TEST(Engine, ScoresAreTheLogprobsOfTheSameTokensGenerated) {
  for (const Sharing sharing : {Sharing::kNone, Sharing::kCache}) {
    EngineConfig config = ExactConfig(sharing);
    config.max_batch_tokens = 9;
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    std::mt19937_64 rng(8);
    const std::vector<int32_t> prompt = RandomTokens(rng, 21);
    TreeRequest generate;
    generate.nodes = {Node(-1, prompt, Greedy(15))};
    const BranchResult branch = RunTree(*engine, generate).branches.at(0);

    TreeRequest score;
    score.nodes = {Node(-1, prompt), Node(0, branch.tokens), Node(0, {branch.tokens[0]})};
    score.nodes[1].score = score.nodes[2].score = true;
    const TreeResult result = RunTree(*engine, score);
    ASSERT_TRUE(result.status.ok()) << result.status;
    ASSERT_EQ(result.scores.size(), 2u);
    for (const NodeScored& scored : result.scores) {
      ASSERT_EQ(scored.logprobs.size(), scored.node == 1 ? 15u : 1u);
      for (size_t i = 0; i < scored.logprobs.size(); ++i) {
        EXPECT_EQ(scored.logprobs[i].token, branch.tokens[i]);
        EXPECT_NEAR(scored.logprobs[i].logprob, branch.logprobs[i].logprob, 1e-4);
      }
    }
  }
}

TEST(Engine, ChildrenContinueAfterAStopStringsCut) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  std::mt19937_64 rng(9);
  TreeRequest request;
  request.nodes = {Node(-1, RandomTokens(rng, 30), Greedy(20))};
  const std::vector<int32_t> full = RunTree(*engine, request).branches.at(0).tokens;
  // Stops at the text of the 7th and 8th tokens; FakeTokenizer's tokens are single bytes, and only
  // those below 0x80 are text by themselves.
  size_t at = 0;
  while (at + 1 < full.size() && (full[at] >= 0x80 || full[at + 1] >= 0x80)) ++at;
  ASSERT_LT(at + 1, full.size());
  const std::string stop = {static_cast<char>(full[at]), static_cast<char>(full[at + 1])};
  request.nodes[0].generation->stop = {stop};
  request.nodes.push_back(Node(0, {1, 2, 3}, Greedy(6)));
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  const BranchResult& stopped = result.Branch(0);
  EXPECT_EQ(stopped.end.reason, FinishReason::kStop);
  EXPECT_EQ(stopped.end.stop_reason, stop);
  EXPECT_THAT(stopped.tokens, testing::ElementsAreArray(full.begin(), full.begin() + at));

  const BranchResult& child = result.Branch(1, 0, stopped.start.branch_id);
  TreeRequest alone;
  alone.nodes = {Node(-1, PathOf(request, result, child), Greedy(6))};
  const std::unique_ptr<Engine> fresh = MakeEngine(ExactConfig(Sharing::kNone));
  ExpectSameBranch(child, RunTree(*fresh, alone).branches.at(0));
}

TEST(Engine, CancelAndDeadlineEndATreeAndFreeItsPages) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  std::mt19937_64 rng(11);
  TreeRequest endless;
  endless.nodes = {Node(-1, RandomTokens(rng, 10), Greedy(480))};
  endless.nodes[0].generation->logprobs.reset();
  endless.nodes[0].generation->n = 8;
  std::unique_ptr<TreeCall> cancelled = *TreeCall::Start(*engine, endless);
  ASSERT_TRUE(engine->Cancel(cancelled->tree_id()).ok());
  const TreeResult result = cancelled->Wait();
  EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled);
  for (const auto& [id, branch] : result.branches) {
    EXPECT_EQ(branch.end.reason, FinishReason::kCancelled);
  }
  endless.deadline = absl::Now() + absl::Milliseconds(30);
  const TreeResult late = RunTree(*engine, endless);
  EXPECT_EQ(late.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(engine->Cancel("no such tree").code(), absl::StatusCode::kNotFound);
  engine->Drain(absl::Seconds(10));
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST(Engine, DrainFinishesWhatRunsAndRefusesWhatComes) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  TreeRequest request;
  request.nodes = {Node(-1, {1, 2, 3}, Greedy(50))};
  std::unique_ptr<TreeCall> running = *TreeCall::Start(*engine, request);
  engine->Drain(absl::Seconds(60));
  const TreeResult result = running->Wait();
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.branches.at(0).tokens.size(), 50u);
  EXPECT_EQ(RunTree(*engine, request).status.code(), absl::StatusCode::kUnavailable);
}

TEST(Engine, RefusesWhatItCannotDo) {
  EngineConfig config = ExactConfig(Sharing::kCache);
  config.max_context = 64;
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  TreeRequest request;
  request.nodes = {Node(-1, std::vector<int32_t>(60, 1), Greedy(5))};
  const absl::Status too_long = RunTree(*engine, request).status;
  EXPECT_EQ(too_long.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(too_long.message()), HasSubstr("64"));
  request.nodes = {Node(-1, {1, kTinyVocab}, Greedy(5))};
  EXPECT_THAT(std::string(RunTree(*engine, request).status.message()), HasSubstr("token_ids[1]"));

  config.kv_memory_bytes = 100;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(ESPALIER_SOURCE_DIR "/tests/golden/tiny/llama-mha");
  ASSERT_TRUE(checkpoint.ok());
  const absl::Status too_small =
      Engine::Create(config, *std::move(checkpoint), std::make_unique<FakeTokenizer>(kTinyVocab))
          .status();
  EXPECT_THAT(std::string(too_small.message()), HasSubstr("kv_memory is 100 bytes"));
}

}  // namespace
}  // namespace espalier
