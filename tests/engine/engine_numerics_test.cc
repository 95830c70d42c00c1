// What the numbers of one request owe to others: nothing. Cold runs repeat bit for bit, and a value
// that is not finite ends its own request alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

#include "engine/engine.h"
#include "tests/support/changed_checkpoint.h"
#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

// Holds the engine thread in its first event while others are submitted, so that they all arrive in
// the step after the one in which this tree did.
class Gate : public OutputSink {
 public:
  void OnEvents() override {
    std::unique_lock lock(mutex_);
    reached_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void AwaitReached() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return reached_; });
  }
  void Open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  bool open_ = false;
};

// Runs requests that arrive in one step of an engine that runs a tree of its own already.
std::vector<TreeResult> RunTogether(Engine& engine, const std::vector<TreeRequest>& requests) {
  TreeRequest first;
  first.seed = 1;
  first.cache_salt = "gate";
  first.nodes = {Node(-1, {1, 2, 3}, Greedy(30))};
  auto gate = std::make_shared<Gate>();
  const absl::StatusOr<TreeHandle> held = engine.Submit(first, gate);
  EXPECT_TRUE(held.ok()) << held.status();
  gate->AwaitReached();
  std::vector<std::unique_ptr<TreeCall>> calls;
  for (const TreeRequest& request : requests) calls.push_back(*TreeCall::Start(engine, request));
  gate->Open();
  std::vector<TreeResult> results;
  for (auto& call : calls) results.push_back(call->Wait());
  return results;
}

uint32_t Bits(float value) { return std::bit_cast<uint32_t>(value); }

void ExpectSameBits(const TreeResult& a, const TreeResult& b) {
  ASSERT_TRUE(a.status.ok()) << a.status;
  ASSERT_TRUE(b.status.ok()) << b.status;
  ASSERT_EQ(a.branches.size(), b.branches.size());
  for (const auto& [id, branch] : a.branches) {
    SCOPED_TRACE(testing::Message() << "branch " << id);
    const BranchResult& other = b.branches.at(id);
    EXPECT_EQ(branch.start.node, other.start.node);
    EXPECT_EQ(branch.start.sample, other.start.sample);
    EXPECT_EQ(branch.start.parent_branch_id, other.start.parent_branch_id);
    EXPECT_EQ(branch.text, other.text);
    EXPECT_EQ(std::bit_cast<uint64_t>(branch.end.cumulative_logprob),
              std::bit_cast<uint64_t>(other.end.cumulative_logprob));
    ASSERT_EQ(branch.tokens, other.tokens);
    ASSERT_EQ(branch.logprobs.size(), other.logprobs.size());
    for (size_t i = 0; i < branch.logprobs.size(); ++i) {
      ASSERT_EQ(Bits(branch.logprobs[i].logprob), Bits(other.logprobs[i].logprob)) << "token " << i;
      ASSERT_EQ(branch.logprobs[i].top.size(), other.logprobs[i].top.size());
      for (size_t k = 0; k < branch.logprobs[i].top.size(); ++k) {
        const auto& [token_a, logprob_a] = branch.logprobs[i].top[k];
        const auto& [token_b, logprob_b] = other.logprobs[i].top[k];
        ASSERT_EQ(token_a, token_b) << "token " << i << " rank " << k;
        ASSERT_EQ(Bits(logprob_a), Bits(logprob_b)) << "token " << i << " rank " << k;
      }
    }
  }
  EXPECT_EQ(a.usage.steps, b.usage.steps);
  EXPECT_EQ(a.usage.computed_tokens, b.usage.computed_tokens);
  EXPECT_EQ(a.usage.kv_tokens_read_unique, b.usage.kv_tokens_read_unique);
}

struct Numbers {
  const char* name;
  const char* checkpoint;
  CpuPrecision precision;
  KvCacheDType kv_dtype = KvCacheDType::kAuto;
};

class EngineNumericsTest : public testing::TestWithParam<Numbers> {
 protected:
  static EngineConfig Config() {
    EngineConfig config = ExactConfig(Sharing::kCache);
    config.cpu_precision = GetParam().precision;
    config.kv_dtype = GetParam().kv_dtype;
    return config;
  }
};

INSTANTIATE_TEST_SUITE_P(
    Precisions, EngineNumericsTest,
    testing::Values(Numbers{"Float", "llama-gqa8-linear", CpuPrecision::kF32},
                    Numbers{"Quantised", "llama-gqa8-linear/model-q8_0.gguf", CpuPrecision::kAuto},
                    Numbers{"QuantisedFp8Kv", "llama-gqa8-linear/model-q8_0.gguf",
                            CpuPrecision::kAuto, KvCacheDType::kFp8}),
    [](const auto& numbers) { return numbers.param.name; });

// Several trees of shared and own prompts, sampled, on more threads than cores and with fewer pages
// than they would like: threads race and trees are preempted, yet nothing of that is in the bits.
TEST_P(EngineNumericsTest, TwoColdRunsGiveTheSameBits) {
  std::mt19937_64 rng(21);
  std::vector<TreeRequest> requests(3);
  const std::vector<int32_t> prompt = RandomTokens(rng, 150);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].seed = 100 + i;
    requests[i].nodes.push_back(Node(-1, i == 2 ? RandomTokens(rng, 90) : prompt));
    for (int child = 0; child < 6; ++child) {
      Generation sampled = Greedy(20 + child);
      sampled.n = 2;
      sampled.sampling.temperature = 1;
      requests[i].nodes.push_back(Node(0, RandomTokens(rng, 1 + child), sampled));
    }
    requests[i].nodes.push_back(Node(1, RandomTokens(rng, 3), Greedy(10)));
  }
  EngineConfig config = Config();
  config.num_threads = 4;
  config.max_batch_tokens = 64;
  const EngineStats ample = MakeEngine(config, GetParam().checkpoint)->Stats();
  config.kv_memory_bytes = ample.kv_bytes / ample.pages_total * 40;

  std::vector<TreeResult> runs[2];
  for (std::vector<TreeResult>& results : runs) {
    const std::unique_ptr<Engine> engine = MakeEngine(config, GetParam().checkpoint);
    results = RunTogether(*engine, requests);
    engine->Drain(absl::Seconds(30));
    EXPECT_GT(engine->Stats().preemptions, 0);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    ExpectSameBits(runs[0][i], runs[1][i]);
  }
}

TEST_P(EngineNumericsTest, ANaNFailsItsOwnRequestAlone) {
  std::mt19937_64 rng(22);
  const std::vector<int32_t> prompt = RandomTokens(rng, 40);
  std::vector<TreeRequest> mates(2);  // one shares the victims' prompt
  mates[0].nodes = {Node(-1, prompt), Node(0, RandomTokens(rng, 5), Greedy(25))};
  mates[1].nodes = {Node(-1, RandomTokens(rng, 30), Greedy(25))};

  const std::vector<TreeResult> alone =
      RunTogether(*MakeEngine(Config(), GetParam().checkpoint), mates);
  std::set<int32_t> used = {1, 2, 3};  // by RunTogether
  for (size_t i = 0; i < mates.size(); ++i) {
    ASSERT_TRUE(alone[i].status.ok()) << alone[i].status;
    for (const PromptNode& node : mates[i].nodes) {
      const auto& tokens = std::get<std::vector<int32_t>>(node.content);
      used.insert(tokens.begin(), tokens.end());
    }
    used.insert(alone[i].branches.at(0).tokens.begin(), alone[i].branches.at(0).tokens.end());
  }
  int32_t poison = 0;
  while (used.contains(poison)) ++poison;
  ASSERT_LT(poison, kTinyVocab - 1);

  // Poison in a prompt, in one of two questions below the mates' prompt, and drawn by a branch
  // while it decodes.
  std::vector<TreeRequest> together(3);
  together[0].nodes = {Node(-1, {5, 6, poison, 7}, Greedy(25))};
  together[1].nodes = {Node(-1, prompt), Node(0, {8, poison}, Greedy(25)),
                       Node(0, {9}, Greedy(25))};
  together[2].nodes = {Node(-1, prompt, Greedy(25))};
  together[2].nodes[0].generation->sampling.logit_bias = {{poison, 100.0f}};
  const size_t victims = together.size();
  together.insert(together.end(), mates.begin(), mates.end());

  const std::unique_ptr<Engine> engine = MakeEngine(
      Config(),
      std::make_unique<PoisonedCheckpoint>(OpenTinyCheckpoint(GetParam().checkpoint), poison));
  // Twice: what the failed requests left in the cache must not hurt whoever comes later.
  for (int round = 0; round < 2; ++round) {
    SCOPED_TRACE(testing::Message() << "round " << round << ", poison is token " << poison);
    const std::vector<TreeResult> results = RunTogether(*engine, together);
    for (size_t i = 0; i < victims; ++i) {
      SCOPED_TRACE(testing::Message() << "victim " << i);
      EXPECT_EQ(results[i].status.code(), absl::StatusCode::kInternal) << results[i].status;
      EXPECT_THAT(std::string(results[i].status.message()), HasSubstr("not finite"));
    }
    for (size_t i = 0; i < mates.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "mate " << i);
      const TreeResult& mate = results[victims + i];
      ASSERT_TRUE(mate.status.ok()) << mate.status;
      EXPECT_EQ(mate.branches.at(0).tokens, alone[i].branches.at(0).tokens);
    }
  }
  engine->Drain(absl::Seconds(30));
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

}  // namespace
}  // namespace espalier
