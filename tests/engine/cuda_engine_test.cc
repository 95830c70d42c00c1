// The engine on a CUDA device. bf16 rounds differently with every batch, so results that come of
// different batches are compared by their log-probabilities, and tokens as far as no two candidates
// are closer than the tolerance; results of the same steps are compared bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "engine/kv_scales.h"
#include "kernels/cuda/cuda_device.h"
#include "model/checkpoint/random_checkpoint.h"
#include "tests/support/changed_checkpoint.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

constexpr int kTop = 20;
// Of a log-probability: twice what bf16 costs the tiny checkpoint against fp32. The logits'
// deviation is 1 to 3.
constexpr float kTolerance = 0.25f;
// The same with KV of E4M3, which itself moves that checkpoint's log-probabilities by up to 0.6:
// what bf16 changes tips elements over the borders of its rounding.
constexpr float kFp8Tolerance = 0.8f;

// A model of 128-wide heads, wide enough for every kernel's tiles.
class RandomModel {
 public:
  RandomModel() {
    path_ = std::filesystem::temp_directory_path() / "espalier_cuda_XXXXXX";
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
    std::ofstream(path_ + "/config.json") << R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256,
      "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4,
      "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
      "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
      "eos_token_id": 255, "tie_word_embeddings": false})";
  }
  ~RandomModel() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct CudaCase {
  std::string model;  // below tests/golden/tiny, or "random"
  KvCacheDType kv_dtype = KvCacheDType::kAuto;

  std::string Name() const {
    std::string name = model;
    std::erase(name, '-');
    return kv_dtype == KvCacheDType::kFp8 ? name + "Fp8" : name;
  }
};

class CudaEngineTest : public testing::TestWithParam<CudaCase> {
 protected:
  void SetUp() override {
    if (cuda::NumDevices() == 0) GTEST_SKIP() << "SKIPPED: there is no CUDA device";
  }

  EngineConfig Config(Sharing sharing) const {
    EngineConfig config = ExactConfig(sharing);
    config.device = Device::kCuda;
    config.kv_dtype = GetParam().kv_dtype;
    config.kv_memory_bytes = 64 << 20;
    config.limits.max_logprobs = kTop;
    return config;
  }
  float ToleranceToCpu() const {
    return GetParam().kv_dtype == KvCacheDType::kFp8 ? kFp8Tolerance : kTolerance;
  }
  std::unique_ptr<Engine> Make(EngineConfig config) {
    if (!IsRandom()) return MakeEngine(config, GetParam().model);
    config.random_weights = kRandomWeights;
    config.model_path = random_.path();
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(config);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
  // With itself as the draft model.
  std::unique_ptr<Engine> MakeDrafted(EngineConfig config) {
    config.draft_model_path = GetParam().model;
    if (!IsRandom()) return MakeEngine(config, OpenCheckpoint(), OpenCheckpoint());
    config.random_weights = kRandomWeights;
    config.model_path = config.draft_model_path = random_.path();
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(config);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }

  static bool IsRandom() { return GetParam().model == "random"; }
  std::unique_ptr<Checkpoint> OpenCheckpoint() const {
    if (!IsRandom()) return OpenTinyCheckpoint(GetParam().model);
    auto checkpoint = RandomCheckpoint::Open(random_.path(), kRandomWeights);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return *std::move(checkpoint);
  }

 private:
  static constexpr uint64_t kRandomWeights = 7;

  RandomModel random_;
};

Generation GreedyTop(int max_tokens) {
  Generation generation = Greedy(max_tokens);
  generation.logprobs = kTop;
  return generation;
}

TreeRequest RandomTree(std::mt19937_64& rng, float temperature) {
  TreeRequest request;
  request.seed = rng();
  request.nodes.push_back(Node(-1, RandomTokens(rng, 1 + static_cast<int>(rng() % 300))));
  const int children = 2 + static_cast<int>(rng() % 20);
  for (int i = 0; i < children; ++i) {
    request.nodes.push_back(Node(0, RandomTokens(rng, 1 + static_cast<int>(rng() % 40)),
                                 GreedyTop(1 + static_cast<int>(rng() % 40))));
    request.nodes.back().generation->n = 1 + static_cast<int>(rng() % 3);
    if (rng() % 2 == 0) {
      request.nodes.push_back(Node(static_cast<int>(request.nodes.size()) - 1,
                                   RandomTokens(rng, 1 + static_cast<int>(rng() % 9)),
                                   GreedyTop(1 + static_cast<int>(rng() % 20))));
    }
  }
  for (PromptNode& node : request.nodes) {
    if (node.generation) node.generation->sampling.temperature = temperature;
  }
  return request;
}

// Tokens compared before the branches parted on a close choice, if they did.
int ExpectCloseBranch(const BranchResult& a, const BranchResult& b, float tolerance,
                      float* largest) {
  const size_t length = std::min(a.tokens.size(), b.tokens.size());
  for (size_t i = 0; i < length; ++i) {
    std::map<int32_t, float> row;
    for (const auto& [token, logprob] : b.logprobs[i].top) row[token] = logprob;
    // The last few of the list may be others.
    for (size_t k = 0; k < kTop / 2; ++k) {
      const auto& [token, logprob] = a.logprobs[i].top[k];
      const auto found = row.find(token);
      if (found == row.end()) {
        ADD_FAILURE() << "token " << token << " of rank " << k << " is missing at " << i;
        return static_cast<int>(i);
      }
      *largest = std::max(*largest, std::abs(found->second - logprob));
      EXPECT_NEAR(found->second, logprob, tolerance) << "token " << i << " rank " << k;
    }
    if (a.tokens[i] != b.tokens[i]) {
      EXPECT_LT(a.logprobs[i].top[0].second - row[b.tokens[i]], 2 * tolerance)
          << "token " << i << " is no close choice";
      return static_cast<int>(i);
    }
  }
  EXPECT_EQ(a.tokens.size(), b.tokens.size());
  return static_cast<int>(length);
}

TEST_P(CudaEngineTest, TreeEqualsItsPathsAsIndependentRequests) {
  const std::unique_ptr<Engine> tree_engine = Make(Config(Sharing::kCache));
  const std::unique_ptr<Engine> path_engine = Make(Config(Sharing::kNone));
  float largest = 0;
  int compared = 0;
  int total = 0;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const TreeRequest request = RandomTree(rng, /*temperature=*/0);
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
      compared += ExpectCloseBranch(branch, path.branches.at(0), kTolerance, &largest);
      total += static_cast<int>(branch.tokens.size());
      if (HasFailure()) return;
    }
  }
  // Close choices are rare: most of the text has to agree.
  EXPECT_GT(compared, total * 8 / 10);
  std::printf("%s: %d of %d tokens compared, largest difference of a log-probability %.4f\n",
              GetParam().Name().c_str(), compared, total, largest);
}

TEST_P(CudaEngineTest, StaysCloseToTheCpu) {
  const std::unique_ptr<Engine> device_engine = Make(Config(Sharing::kCache));
  EngineConfig on_cpu = Config(Sharing::kCache);
  on_cpu.device = Device::kCpu;
  const std::unique_ptr<Engine> cpu_engine = Make(on_cpu);
  float largest = 0;
  int compared = 0;
  std::mt19937_64 rng(11);
  for (int i = 0; i < 12; ++i) {
    TreeRequest request;
    request.nodes = {Node(-1, RandomTokens(rng, 1 + static_cast<int>(rng() % 100)), GreedyTop(16))};
    const TreeResult a = RunTree(*device_engine, request);
    const TreeResult b = RunTree(*cpu_engine, request);
    ASSERT_TRUE(a.status.ok()) << a.status;
    ASSERT_TRUE(b.status.ok()) << b.status;
    compared += ExpectCloseBranch(a.branches.at(0), b.branches.at(0), ToleranceToCpu(), &largest);
    if (HasFailure()) return;
  }
  EXPECT_GT(compared, 12 * 16 / 2);
  std::printf("%s: %d tokens compared with fp32 on the CPU, largest difference %.4f\n",
              GetParam().Name().c_str(), compared, largest);
}

void ExpectSameBits(const TreeResult& a, const TreeResult& b) {
  ASSERT_TRUE(a.status.ok()) << a.status;
  ASSERT_TRUE(b.status.ok()) << b.status;
  ASSERT_EQ(a.branches.size(), b.branches.size());
  for (const auto& [id, branch] : a.branches) {
    SCOPED_TRACE(testing::Message() << "branch " << id);
    const BranchResult& other = b.branches.at(id);
    ASSERT_EQ(branch.tokens, other.tokens);
    ASSERT_EQ(branch.logprobs.size(), other.logprobs.size());
    for (size_t i = 0; i < branch.logprobs.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(branch.logprobs[i].logprob),
                std::bit_cast<uint32_t>(other.logprobs[i].logprob))
          << "token " << i;
    }
  }
}

// Trees one after the other, so that steps are the same however threads run.
TEST_P(CudaEngineTest, ColdRunsAndGraphsGiveTheSameBits) {
  std::mt19937_64 rng(21);
  std::vector<TreeRequest> requests;
  for (int i = 0; i < 3; ++i) requests.push_back(RandomTree(rng, i == 0 ? 0.0f : 1.0f));
  std::vector<TreeResult> first;
  for (const bool graphs : {true, true, false}) {
    SCOPED_TRACE(graphs ? "graphs" : "no graphs");
    EngineConfig config = Config(Sharing::kCache);
    config.cuda_graphs = graphs;
    const std::unique_ptr<Engine> engine = Make(config);
    for (size_t i = 0; i < requests.size(); ++i) {
      const TreeResult result = RunTree(*engine, requests[i]);
      if (first.size() < requests.size()) {
        first.push_back(result);
      } else {
        ExpectSameBits(first[i], result);
      }
    }
  }
}

TEST_P(CudaEngineTest, EveryAttentionVariantServes) {
  std::mt19937_64 rng(31);
  const TreeRequest request = RandomTree(rng, /*temperature=*/0);
  const TreeResult expected = RunTree(*Make(Config(Sharing::kCache)), request);
  ASSERT_TRUE(expected.status.ok()) << expected.status;
  float largest = 0;
  for (const AttentionVariant variant :
       {AttentionVariant::kSequence, AttentionVariant::kNode, AttentionVariant::kNodeChunk,
        AttentionVariant::kFlatten}) {
    SCOPED_TRACE(static_cast<int>(variant));
    EngineConfig config = Config(Sharing::kCache);
    config.attention = variant;
    const TreeResult result = RunTree(*Make(config), request);
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (const auto& [id, branch] : expected.branches) {
      const BranchResult& other = result.branches.at(id);
      if (branch.start.parent_branch_id >= 0) continue;  // its parent may have parted
      ExpectCloseBranch(branch, other, kTolerance, &largest);
      if (HasFailure()) return;
    }
  }
}

TEST_P(CudaEngineTest, PenaltiesBiasAndScoresWork) {
  const std::unique_ptr<Engine> engine = Make(Config(Sharing::kCache));
  std::mt19937_64 rng(41);
  TreeRequest request;
  Generation generation = GreedyTop(30);
  generation.sampling.repetition_penalty = 1.3f;
  generation.sampling.logit_bias = {{17, 100.0f}};
  request.nodes = {Node(-1, RandomTokens(rng, 20), generation), Node(0, {5, 6, 7})};
  request.nodes[1].score = true;
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  for (const int32_t token : result.branches.at(0).tokens) EXPECT_EQ(token, 17);
  ASSERT_EQ(result.scores.size(), 1u);
}

TEST_P(CudaEngineTest, ConstraintsHold) {
  const std::unique_ptr<Engine> engine = Make(Config(Sharing::kCache));
  std::mt19937_64 rng(43);
  Generation digits;
  digits.n = 5;
  digits.max_tokens = 30;
  digits.regex = "[0-9]{2,6}x";
  Generation choice;
  choice.search = Choices{.texts = {"red", "green", "blue", "reddish"}};
  TreeRequest request;
  request.seed = 7;
  request.nodes = {Node(-1, RandomTokens(rng, 40)), Node(0, {5, 6}, digits),
                   Node(0, {7, 8}, choice)};
  for (const std::string text : {"red", "green", "blue", "reddish"}) {
    PromptNode& scored = request.nodes.emplace_back();
    scored.parent = 2;
    scored.content = text;
    scored.score = true;
  }
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  int kept = 0;
  for (const auto& [id, branch] : result.branches) {
    if (branch.start.node == 1) {
      ASSERT_EQ(branch.end.reason, FinishReason::kStop);
      EXPECT_EQ(branch.text.back(), 'x');
      EXPECT_EQ(branch.text.find_first_not_of("0123456789"), branch.text.size() - 1);
      EXPECT_GE(branch.text.size(), 3u);
      EXPECT_LE(branch.text.size(), 7u);
    } else {
      EXPECT_EQ(branch.text, std::get<Choices>(choice.search).texts[branch.start.sample]);
      kept += branch.end.rank.has_value() ? 1 : 0;
    }
  }
  EXPECT_EQ(kept, 1);
  ASSERT_EQ(result.branches.size(), 9u);
}

TEST_P(CudaEngineTest, DraftsAreVerified) {
  EngineConfig config = Config(Sharing::kCache);
  config.speculative = Speculative::kNgram;
  const std::unique_ptr<Engine> engine = Make(config);
  const std::unique_ptr<Engine> plain = Make(Config(Sharing::kCache));
  std::mt19937_64 rng(47);
  Usage total;
  float largest = 0;
  for (int round = 0; round < 8; ++round) {
    const std::vector<int32_t> phrase = RandomTokens(rng, 6);
    std::vector<int32_t> prompt;
    for (int i = 0; i < 6; ++i) prompt.insert(prompt.end(), phrase.begin(), phrase.end());
    TreeRequest request;
    request.nodes = {Node(-1, prompt), Node(0, {1, 2}, GreedyTop(40)), Node(0, {3}, GreedyTop(40))};
    const TreeResult drafted = RunTree(*engine, request);
    const TreeResult expected = RunTree(*plain, request);
    ASSERT_TRUE(drafted.status.ok()) << drafted.status;
    for (const int node : {1, 2}) {
      ExpectCloseBranch(expected.Branch(node), drafted.Branch(node), kTolerance, &largest);
    }
    total.drafted_tokens += drafted.usage.drafted_tokens;
    total.accepted_tokens += drafted.usage.accepted_tokens;
  }
  EXPECT_GT(total.drafted_tokens, 20);
  EXPECT_GT(total.accepted_tokens, 5);
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST_P(CudaEngineTest, TreesOfDraftsAreVerified) {
  EngineConfig config = Config(Sharing::kCache);
  config.speculative = Speculative::kDraft;
  const std::unique_ptr<Engine> plain = Make(Config(Sharing::kCache));
  for (const std::vector<int>& children : {std::vector<int>{}, {3, 2, 1}, {1, 1, 1, 1}}) {
    config.draft_shape.children = children;
    config.draft_shape.adaptive = false;
    const std::unique_ptr<Engine> engine = MakeDrafted(config);
    std::mt19937_64 rng(48);
    Usage total;
    float largest = 0;
    for (int round = 0; round < 8; ++round) {
      TreeRequest request;
      request.nodes = {Node(-1, RandomTokens(rng, 5 + 20 * round)), Node(0, {1, 2}, GreedyTop(40)),
                       Node(0, {3}, GreedyTop(30)), Node(1, {4, 5}, GreedyTop(20))};
      const TreeResult drafted = RunTree(*engine, request);
      const TreeResult expected = RunTree(*plain, request);
      ASSERT_TRUE(drafted.status.ok()) << drafted.status;
      for (const int node : {1, 2}) {
        ExpectCloseBranch(expected.Branch(node), drafted.Branch(node), kTolerance, &largest);
      }
      total.drafted_tokens += drafted.usage.drafted_tokens;
      total.accepted_tokens += drafted.usage.accepted_tokens;
      total.verify_steps += drafted.usage.verify_steps;
    }
    // The draft model is the model itself: most of what it is sure of is accepted.
    EXPECT_GT(total.accepted_tokens, total.verify_steps / 2);
    engine->Drain(absl::Seconds(10));
    EXPECT_EQ(engine->Stats().pages_locked, 0);
  }
}

// A beam search's hypotheses, best first.
std::vector<BranchResult> Hypotheses(const TreeResult& result) {
  std::vector<BranchResult> kept;
  for (const auto& [id, branch] : result.branches) {
    if (branch.end.rank) kept.push_back(branch);
  }
  std::ranges::sort(kept, {}, [](const BranchResult& b) { return *b.end.rank; });
  return kept;
}

// Its hypotheses are what their scores say, by scoring each on the same engine, and about as good
// as those that fp32 finds on the CPU.
TEST_P(CudaEngineTest, BeamSearchFindsWhatItSays) {
  const std::unique_ptr<Engine> engine = Make(Config(Sharing::kCache));
  EngineConfig cpu_config = Config(Sharing::kCache);
  cpu_config.device = Device::kCpu;
  const std::unique_ptr<Engine> cpu = Make(cpu_config);
  std::mt19937_64 rng(49);
  for (const int width : {1, 4, 8}) {
    for (const float penalty : {1.0f, 0.0f}) {
      SCOPED_TRACE(testing::Message() << "width " << width << " penalty " << penalty);
      const std::vector<int32_t> prompt = RandomTokens(rng, 60);
      Generation g;
      g.max_tokens = 20;
      g.search = BeamSearch{.width = width, .num_return = width, .length_penalty = penalty};
      TreeRequest request;
      request.nodes = {Node(-1, prompt, g)};
      const TreeResult result = RunTree(*engine, request);
      ASSERT_TRUE(result.status.ok()) << result.status;
      const std::vector<BranchResult> found = Hypotheses(result);
      ASSERT_EQ(static_cast<int>(found.size()), width);
      for (size_t i = 0; i < found.size(); ++i) {
        std::vector<int32_t> tokens = found[i].end.hypothesis_token_ids;
        for (size_t j = 0; j < i; ++j) {
          EXPECT_NE(tokens, found[j].end.hypothesis_token_ids);
          EXPECT_GE(*found[j].end.score, *found[i].end.score);
        }
        if (found[i].end.reason == FinishReason::kStop) {
          tokens.push_back(std::stoi(found[i].end.stop_reason));
        }
        TreeRequest scoring;
        scoring.nodes = {Node(-1, prompt), Node(0, tokens)};
        scoring.nodes[1].score = true;
        const TreeResult scored = RunTree(*engine, scoring);
        ASSERT_TRUE(scored.status.ok()) << scored.status;
        double sum = 0;
        for (const TokenLogprob& t : scored.scores.at(0).logprobs) sum += t.logprob;
        EXPECT_NEAR(*found[i].end.score * std::pow(tokens.size(), penalty), sum,
                    0.1 * kTolerance * static_cast<double>(tokens.size()));
      }
      const TreeResult expected = RunTree(*cpu, request);
      ASSERT_TRUE(expected.status.ok()) << expected.status;
      const double best = *Hypotheses(expected).at(0).end.score;
      const double tokens = penalty == 0 ? 20 : 1;
      EXPECT_NEAR(*found[0].end.score, best, ToleranceToCpu() * tokens);
    }
  }
  engine->Drain(absl::Seconds(10));
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST_P(CudaEngineTest, JudgesSayWhatScoresSay) {
  const std::unique_ptr<Engine> engine = Make(Config(Sharing::kCache));
  std::mt19937_64 rng(50);
  const std::vector<int32_t> prompt = RandomTokens(rng, 70);
  const std::vector<int32_t> question = RandomTokens(rng, 9);
  Generation g;
  g.n = 6;
  g.max_tokens = 20;
  Judge judge;
  judge.prompt = question;
  judge.answers = {{"y", 1.0f}, {"n", 0.0f}};
  g.search = BestOfN{.keep = 2, .judge = judge};
  TreeRequest request;
  request.seed = 3;
  request.nodes = {Node(-1, prompt, g)};
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  ASSERT_EQ(Hypotheses(result).size(), 2u);
  for (const auto& [id, branch] : result.branches) {
    std::vector<int32_t> path = prompt;
    path.insert(path.end(), branch.tokens.begin(), branch.tokens.end());
    TreeRequest scoring;
    scoring.nodes = {Node(-1, path), Node(0, question), Node(1, {'y'}), Node(1, {'n'})};
    scoring.nodes[2].score = scoring.nodes[3].score = true;
    const TreeResult scored = RunTree(*engine, scoring);
    ASSERT_TRUE(scored.status.ok()) << scored.status;
    std::map<int, double> logprob;
    for (const NodeScored& s : scored.scores) logprob[s.node] = s.logprobs.at(0).logprob;
    const double expected = 1 / (1 + std::exp(logprob[3] - logprob[2]));
    EXPECT_NEAR(*branch.end.score, expected, kTolerance / 2);
  }
}

TEST_P(CudaEngineTest, PinsKeepAPathInTheCache) {
  const std::unique_ptr<Engine> engine = Make(Config(Sharing::kCache));
  std::mt19937_64 rng(53);
  const std::vector<int32_t> prompt = RandomTokens(rng, 100);
  TreeRequest request;
  request.nodes = {Node(-1, prompt, GreedyTop(5))};
  ASSERT_TRUE(RunTree(*engine, request).status.ok());
  PinUpdate update;
  update.owner = "session";
  update.pin = {{0, prompt}};
  engine->UpdatePins(update);
  const TreeResult again = RunTree(*engine, request);
  EXPECT_EQ(again.usage.cached_tokens, 100);
  EXPECT_GT(engine->Stats().pages_locked, 0);
  engine->UnpinAll("session");
  ASSERT_TRUE(RunTree(*engine, request).status.ok());
  engine->Drain(absl::Seconds(10));
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST_P(CudaEngineTest, AnswersWhenPagesRunOut) {
  EngineConfig config = Config(Sharing::kCache);
  config.kv_memory_bytes = IsRandom() ? 3 << 20 : 400 << 10;
  const std::unique_ptr<Engine> engine = Make(config);
  std::mt19937_64 rng(51);
  std::vector<std::unique_ptr<TreeCall>> calls;
  for (int i = 0; i < 6; ++i) {
    calls.push_back(*TreeCall::Start(*engine, RandomTree(rng, 1.0f)));
  }
  for (auto& call : calls) {
    const TreeResult result = call->Wait();
    EXPECT_TRUE(result.status.ok() || absl::IsResourceExhausted(result.status)) << result.status;
  }
  engine->Drain(absl::Seconds(10));
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

// With weights of which some can be poisoned.
class CudaStoredWeightsTest : public CudaEngineTest {};

TEST_P(CudaStoredWeightsTest, ANaNFailsItsOwnRequestAlone) {
  const int32_t poison = 77;
  std::mt19937_64 rng(61);
  const auto clean_tokens = [&](int count) {
    std::vector<int32_t> tokens = RandomTokens(rng, count);
    std::ranges::replace(tokens, poison, poison + 1);
    return tokens;
  };
  Generation generation = GreedyTop(25);
  generation.sampling.logit_bias = {{poison, -100.0f}};
  TreeRequest mate;
  const std::vector<int32_t> prompt = clean_tokens(40);
  mate.nodes = {Node(-1, prompt), Node(0, clean_tokens(5), generation)};
  TreeRequest victim;
  victim.nodes = {Node(-1, prompt), Node(0, {8, poison}, generation), Node(0, {9}, generation)};

  const TreeResult alone = RunTree(*Make(Config(Sharing::kCache)), mate);
  ASSERT_TRUE(alone.status.ok()) << alone.status;
  const std::unique_ptr<Engine> engine = MakeEngine(
      Config(Sharing::kCache), std::make_unique<PoisonedCheckpoint>(OpenCheckpoint(), poison));
  float largest = 0;
  // Twice: what the failed request left in the cache must not hurt whoever comes later.
  for (int round = 0; round < 2; ++round) {
    SCOPED_TRACE(round);
    const auto failing = *TreeCall::Start(*engine, victim);
    const auto running = *TreeCall::Start(*engine, mate);
    const TreeResult failed = failing->Wait();
    EXPECT_EQ(failed.status.code(), absl::StatusCode::kInternal) << failed.status;
    const TreeResult result = running->Wait();
    ASSERT_TRUE(result.status.ok()) << result.status;
    ExpectCloseBranch(alone.branches.at(0), result.branches.at(0), kTolerance, &largest);
  }
}

class CudaFp8Test : public CudaEngineTest {};

// Calibration runs in KV of the device's own type, so that a maximum at a border may cross it.
TEST_P(CudaFp8Test, ScalesAreThoseOfTheCpuOrNextToThem) {
  constexpr int kRows = 100;
  const auto find = [&](Context ctx) {
    const std::unique_ptr<Checkpoint> checkpoint = OpenCheckpoint();
    auto model = Llama::Create(ctx, checkpoint.get(), kRows, 1);
    EXPECT_TRUE(model.ok()) << model.status();
    const ModelConfig& config = checkpoint->config();
    auto scales = FindKvScales(&ctx, model->get(), FakeTokenizer(kTinyVocab),
                               {.num_layers = config.num_layers,
                                .num_kv_heads = config.num_kv_heads,
                                .head_dim = config.head_dim,
                                .dtype = DType::kE4M3},
                               {.max_rows = kRows, .max_context = config.max_positions});
    EXPECT_TRUE(scales.ok()) << scales.status();
    return *std::move(scales);
  };
  std::string error;
  std::unique_ptr<Context> device = Context::Cuda(0, DType::kBF16, 4, &error);
  ASSERT_NE(device, nullptr) << error;
  const KvScales expected = find(Context::Cpu(4, CpuPrecision::kF32));
  const KvScales scales = find(std::move(*device));
  ASSERT_EQ(scales.k.size(), expected.k.size());
  ASSERT_EQ(scales.v.size(), expected.v.size());
  for (size_t i = 0; i < expected.k.size(); ++i) {
    EXPECT_LE(std::abs(std::log2(scales.k[i] / expected.k[i])), 1) << "layer and head " << i;
    EXPECT_LE(std::abs(std::log2(scales.v[i] / expected.v[i])), 1) << "layer and head " << i;
  }
}

const CudaCase kStored = {"llama-head64-llama3"};
const CudaCase kStoredFp8 = {"llama-head64-llama3", KvCacheDType::kFp8};
const CudaCase kRandom = {"random"};
const CudaCase kRandomFp8 = {"random", KvCacheDType::kFp8};
const auto kCaseName = [](const auto& its) { return its.param.Name(); };

INSTANTIATE_TEST_SUITE_P(Checkpoints, CudaEngineTest,
                         testing::Values(kStored, kRandom, kStoredFp8, kRandomFp8), kCaseName);
INSTANTIATE_TEST_SUITE_P(Checkpoints, CudaStoredWeightsTest, testing::Values(kStored, kStoredFp8),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(Checkpoints, CudaFp8Test, testing::Values(kStoredFp8, kRandomFp8),
                         kCaseName);

}  // namespace
}  // namespace espalier
