// Search policies on tiny checkpoints: what lives on is what the policy's meaning says, however
// the search shares, batches or is preempted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <random>

#include "engine/engine.h"
#include "nlohmann/json.hpp"
#include "tests/support/tiny_engine.h"
#include "tests/support/tree_runner.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

nlohmann::json Golden() {
  std::ifstream file(ESPALIER_SOURCE_DIR "/tests/golden/beam_search.json");
  return nlohmann::json::parse(file);
}

EarlyStopping ParseEarlyStopping(const std::string& text) {
  if (text == "true") return EarlyStopping::kAlways;
  return text == "never" ? EarlyStopping::kNever : EarlyStopping::kHeuristic;
}

TreeRequest BeamRequest(const nlohmann::json& golden, const nlohmann::json& test) {
  Generation g;
  g.max_tokens = golden["max_tokens"].get<int>();
  g.ignore_eos = true;
  g.stop_token_ids = golden["stop_token_ids"].get<std::vector<int32_t>>();
  g.search = BeamSearch{.width = test["width"].get<int>(),
                        .num_return = test["width"].get<int>(),
                        .length_penalty = test["length_penalty"].get<float>(),
                        .early_stopping = ParseEarlyStopping(test["early_stopping"])};
  TreeRequest request;
  request.nodes = {
      Node(-1, golden["prompts"][test["prompt"].get<int>()].get<std::vector<int32_t>>(), g)};
  return request;
}

// Generated tokens from the prompt's end to the branch's.
std::vector<int32_t> GeneratedPath(const TreeResult& result, const BranchResult& branch) {
  if (branch.start.parent_branch_id < 0) return branch.tokens;
  const BranchResult& parent = result.branches.at(branch.start.parent_branch_id);
  std::vector<int32_t> path = GeneratedPath(result, parent);
  const auto parent_tokens = static_cast<std::ptrdiff_t>(parent.tokens.size());
  const int fork = branch.start.fork_token_index - parent.start.fork_token_index;
  path.resize(path.size() - static_cast<size_t>(parent_tokens - fork));
  path.insert(path.end(), branch.tokens.begin(), branch.tokens.end());
  return path;
}

// What the search returned, best first.
std::vector<const BranchResult*> Ranked(const TreeResult& result) {
  std::map<int, const BranchResult*> by_rank;
  for (const auto& [id, branch] : result.branches) {
    if (branch.end.rank) by_rank[*branch.end.rank] = &branch;
  }
  std::vector<const BranchResult*> ranked;
  for (const auto& [rank, branch] : by_rank) ranked.push_back(branch);
  return ranked;
}

void ExpectHypotheses(const TreeResult& result, const nlohmann::json& test) {
  ASSERT_TRUE(result.status.ok()) << result.status;
  const std::vector<const BranchResult*> ranked = Ranked(result);
  ASSERT_EQ(ranked.size(), test["hypotheses"].size());
  for (size_t i = 0; i < ranked.size(); ++i) {
    const nlohmann::json& expected = test["hypotheses"][i];
    EXPECT_EQ(GeneratedPath(result, *ranked[i]), expected["tokens"].get<std::vector<int32_t>>());
    EXPECT_EQ(ranked[i]->end.hypothesis_token_ids, GeneratedPath(result, *ranked[i]));
    if (expected["score"].is_null()) continue;
    EXPECT_NEAR(*ranked[i]->end.score, expected["score"].get<double>(), 1e-4);
  }
}

TEST(BeamSearchPolicy, EqualsTransformers) {
  const nlohmann::json golden = Golden();
  const std::unique_ptr<Engine> engine =
      MakeEngine(ExactConfig(Sharing::kCache), golden["checkpoint"]);
  for (const nlohmann::json& test : golden["cases"]) {
    SCOPED_TRACE(testing::Message() << "prompt " << test["prompt"] << ", width " << test["width"]
                                    << ", length penalty " << test["length_penalty"]
                                    << ", early stopping " << test["early_stopping"]);
    ExpectHypotheses(RunTree(*engine, BeamRequest(golden, test)), test);
    if (testing::Test::HasFatalFailure()) return;
  }
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST(BeamSearchPolicy, DoesNotDependOnSharingChunksMatesOrMemory) {
  const nlohmann::json golden = Golden();
  for (const Sharing sharing : {Sharing::kNone, Sharing::kTree, Sharing::kCache}) {
    EngineConfig config = ExactConfig(sharing);
    config.max_batch_tokens = 7;
    config.max_live_branches = 3;
    config.kv_memory_bytes = 32 << 10;
    const std::unique_ptr<Engine> engine = MakeEngine(config, golden["checkpoint"]);
    std::vector<std::unique_ptr<TreeCall>> calls;
    std::vector<nlohmann::json> tests;
    for (const nlohmann::json& test : golden["cases"]) {
      if (test["width"] != 4 || test["prompt"].get<int>() > 4) continue;
      calls.push_back(*TreeCall::Start(*engine, BeamRequest(golden, test)));
      tests.push_back(test);
    }
    for (size_t i = 0; i < calls.size(); ++i) ExpectHypotheses(calls[i]->Wait(), tests[i]);
    EXPECT_EQ(engine->Stats().pages_locked, 0);
    EXPECT_GT(engine->Stats().preemptions, 0);
  }
}

// ---- diverse beams, against a search that is written down as the paper has it

struct NaiveHypothesis {
  std::vector<int32_t> tokens;
  double logprob = 0;
  double score = 0;  // once it has ended
};

// Log-probabilities of every token after the prompt and `tokens`.
std::vector<double> NextLogprobs(Engine& engine, const std::vector<int32_t>& prompt,
                                 const std::vector<int32_t>& tokens) {
  std::vector<int32_t> path = prompt;
  path.insert(path.end(), tokens.begin(), tokens.end());
  TreeRequest request;
  request.nodes = {Node(-1, path, Greedy(1))};
  const TreeResult result = RunTree(engine, request);
  std::vector<double> row(kTinyVocab);
  for (const auto& [token, logprob] : result.Branch(0).logprobs.at(0).top) row[token] = logprob;
  return row;
}

std::vector<NaiveHypothesis> NaiveDiverseBeams(Engine& engine, const std::vector<int32_t>& prompt,
                                               const Generation& g) {
  const auto& beam = std::get<BeamSearch>(g.search);
  const size_t width = beam.width / beam.groups;
  const auto score = [&](double logprob, size_t tokens) {
    return logprob / std::pow(static_cast<double>(tokens), beam.length_penalty);
  };
  std::vector<std::vector<NaiveHypothesis>> running(beam.groups, {NaiveHypothesis()});
  std::vector<std::vector<NaiveHypothesis>> ended(beam.groups);
  for (int step = 0; step < *g.max_tokens; ++step) {
    std::map<int32_t, int> taken;
    for (int group = 0; group < beam.groups; ++group) {
      std::vector<NaiveHypothesis>& alive = running[group];
      std::vector<NaiveHypothesis>& done = ended[group];
      if (done.size() == width) {
        double best = -1e30;
        for (const NaiveHypothesis& h : alive) {
          best = std::max(best, score(h.logprob, h.tokens.size()));
        }
        if (best <= done.back().score) alive.clear();
      }
      struct Choice {
        double value;
        double logprob;
        size_t source;
        int32_t token;
      };
      std::vector<Choice> choices;
      for (size_t i = 0; i < alive.size(); ++i) {
        const std::vector<double> row = NextLogprobs(engine, prompt, alive[i].tokens);
        for (int32_t token = 0; token < kTinyVocab; ++token) {
          const double logprob = alive[i].logprob + row[token];
          const double value = logprob - beam.diversity_penalty * taken[token];
          choices.push_back({value, logprob, i, token});
        }
      }
      std::ranges::stable_sort(choices, std::ranges::greater(), &Choice::value);
      std::vector<NaiveHypothesis> next;
      for (size_t rank = 0; rank < choices.size() && next.size() < width; ++rank) {
        const Choice& c = choices[rank];
        NaiveHypothesis h = alive[c.source];
        h.logprob = c.logprob;
        const bool stops = std::ranges::find(g.stop_token_ids, c.token) != g.stop_token_ids.end();
        if (!stops) h.tokens.push_back(c.token);
        if (!stops && step + 1 < *g.max_tokens) {
          ++taken[c.token];
          next.push_back(std::move(h));
          continue;
        }
        if (rank >= width) {
          if (step + 1 == *g.max_tokens) break;
          continue;
        }
        h.score = score(c.logprob, step + 1);
        done.push_back(std::move(h));
      }
      std::ranges::stable_sort(done, std::ranges::greater(), &NaiveHypothesis::score);
      if (done.size() > width) done.resize(width);
      alive = std::move(next);
    }
  }
  std::vector<NaiveHypothesis> all;
  for (const auto& group : ended) all.insert(all.end(), group.begin(), group.end());
  std::ranges::stable_sort(all, std::ranges::greater(), &NaiveHypothesis::score);
  all.resize(std::min(all.size(), static_cast<size_t>(beam.num_return)));
  return all;
}

TEST(BeamSearchPolicy, DiverseGroupsEqualANaiveSearch) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  int differing = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    std::mt19937_64 rng(seed);
    Generation g;
    g.max_tokens = 4 + static_cast<int>(seed % 5);
    g.ignore_eos = true;
    g.stop_token_ids = RandomTokens(rng, 12);
    const int groups = 2 + static_cast<int>(seed % 2);
    const int width = groups * (1 + static_cast<int>(seed % 3));
    BeamSearch beam{.width = width,
                    .num_return = width,
                    .length_penalty = seed % 4 == 0 ? 0.0f : 1.0f,
                    .groups = groups,
                    .diversity_penalty = 0.25f * static_cast<float>(1 + seed % 8)};
    g.search = beam;
    SCOPED_TRACE(testing::Message() << "seed " << seed << ", width " << width << ", groups "
                                    << groups << ", penalty " << beam.diversity_penalty);
    const std::vector<int32_t> prompt = RandomTokens(rng, 10);
    TreeRequest request;
    request.nodes = {Node(-1, prompt, g)};
    const TreeResult result = RunTree(*engine, request);
    ASSERT_TRUE(result.status.ok()) << result.status;
    const std::vector<const BranchResult*> ranked = Ranked(result);
    const std::vector<NaiveHypothesis> expected = NaiveDiverseBeams(*engine, prompt, g);
    ASSERT_EQ(ranked.size(), expected.size());
    for (size_t i = 0; i < ranked.size(); ++i) {
      EXPECT_EQ(ranked[i]->end.hypothesis_token_ids, expected[i].tokens);
      EXPECT_NEAR(*ranked[i]->end.score, expected[i].score, 1e-4);
    }
    beam.groups = 1;
    beam.diversity_penalty = 0;
    request.nodes[0].generation->search = beam;
    const TreeResult plain = RunTree(*engine, request);
    differing +=
        Ranked(plain).back()->end.hypothesis_token_ids != ranked.back()->end.hypothesis_token_ids;
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(differing, 6) << "groups changed hardly anything";
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TreeRequest SampledRequest(uint64_t seed, int n) {
  std::mt19937_64 rng(seed);
  Generation g;
  g.n = n;
  g.max_tokens = 24;
  g.ignore_eos = true;
  g.stop_token_ids = {3, 17, 60, 101, 150, 201, 220};
  g.logprobs = 0;
  TreeRequest request;
  request.seed = seed;
  request.nodes = {Node(-1, RandomTokens(rng, 12), g)};
  return request;
}

TEST(BestOfNPolicy, KeepsTheBestOfTheSameSamples) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    for (const BranchScore score : {BranchScore::kMeanLogprob, BranchScore::kCumulativeLogprob}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed);
      TreeRequest request = SampledRequest(seed, 9);
      const TreeResult all = RunTree(*engine, request);
      ASSERT_TRUE(all.status.ok()) << all.status;
      std::vector<std::pair<double, int>> scores;
      for (const auto& [id, branch] : all.branches) {
        const double divisor =
            score == BranchScore::kMeanLogprob ? std::max(branch.end.completion_tokens, 1) : 1;
        scores.emplace_back(-branch.end.cumulative_logprob / divisor, branch.start.sample);
      }
      std::ranges::sort(scores);

      constexpr int kKeep = 3;
      request.nodes[0].generation->search = BestOfN{.keep = kKeep, .score = score};
      request.nodes.push_back(Node(0, {1, 2}, Greedy(3)));
      const TreeResult best = RunTree(*engine, request);
      ASSERT_TRUE(best.status.ok()) << best.status;
      const std::vector<const BranchResult*> ranked = Ranked(best);
      ASSERT_EQ(ranked.size(), static_cast<size_t>(kKeep));
      int64_t children = 0;
      for (int i = 0; i < kKeep; ++i) {
        EXPECT_EQ(ranked[i]->start.sample, scores[i].second);
        EXPECT_NEAR(*ranked[i]->end.score, -scores[i].first, 1e-4);
        EXPECT_EQ(ranked[i]->tokens, all.Branch(0, scores[i].second).tokens);
        best.Branch(1, 0, ranked[i]->start.branch_id);
      }
      for (const auto& [id, branch] : best.branches) {
        if (branch.start.node == 1) ++children;
        if (branch.start.node == 1 || branch.end.rank) continue;
        EXPECT_EQ(branch.end.reason, FinishReason::kPruned);
        ASSERT_TRUE(branch.end.score && branch.end.threshold);
        EXPECT_LE(*branch.end.score, *branch.end.threshold);
      }
      EXPECT_EQ(children, kKeep);
      EXPECT_LE(best.usage.completion_tokens, all.usage.completion_tokens + kKeep * 3);
    }
  }
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

// Sampled to the end and searched by hand: a branch's choices depend on its own path only.
TEST(TreeOfThought, KeepsTheBestOfEachLevelOverAllPaths) {
  constexpr int kLevels = 3;
  constexpr int kKeep = 3;
  EngineConfig config = ExactConfig(Sharing::kCache);
  const std::unique_ptr<Engine> engine = MakeEngine(config);
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TreeRequest request = SampledRequest(seed, 4);
    for (int level = 1; level < kLevels; ++level) {
      request.nodes.push_back(
          Node(level - 1, {static_cast<int32_t>(level)}, request.nodes[0].generation));
    }
    const TreeResult all = RunTree(*engine, request);
    ASSERT_TRUE(all.status.ok()) << all.status;
    std::vector<std::vector<std::vector<int32_t>>> expected;  // [levels] kept tokens, best first
    std::vector<int> parents = {-1};
    for (int level = 0; level < kLevels; ++level) {
      std::vector<std::pair<double, int>> scores;
      for (const auto& [id, branch] : all.branches) {
        if (branch.start.node != level) continue;
        if (std::ranges::find(parents, branch.start.parent_branch_id) == parents.end()) continue;
        scores.emplace_back(
            -branch.end.cumulative_logprob / std::max(branch.end.completion_tokens, 1), id);
      }
      std::ranges::sort(scores);
      parents.clear();
      expected.emplace_back();
      for (int i = 0; i < kKeep; ++i) {
        parents.push_back(scores[i].second);
        expected.back().push_back(all.branches.at(scores[i].second).tokens);
      }
    }

    for (PromptNode& node : request.nodes) {
      node.generation->search = BestOfN{.keep = kKeep, .across_paths = true};
    }
    const TreeResult searched = RunTree(*engine, request);
    ASSERT_TRUE(searched.status.ok()) << searched.status;
    EXPECT_EQ(searched.branches.size(), 4u + 2 * 4 * kKeep);
    std::vector<std::vector<std::vector<int32_t>>> kept(kLevels,
                                                        std::vector<std::vector<int32_t>>(kKeep));
    for (const auto& [id, branch] : searched.branches) {
      if (branch.end.rank) {
        kept[branch.start.node].at(*branch.end.rank) = branch.tokens;
      } else {
        EXPECT_EQ(branch.end.reason, FinishReason::kPruned);
        EXPECT_LE(*branch.end.score, *branch.end.threshold);
      }
    }
    EXPECT_EQ(kept, expected);
  }
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

// ---- branches that the model judges

// What a judge must say of a branch: its answers' probabilities by score nodes of another request.
double NaiveJudgement(Engine& engine, const std::vector<int32_t>& path, const Judge& judge) {
  TreeRequest request;
  request.nodes = {Node(-1, path), Node(0, std::get<std::vector<int32_t>>(judge.prompt))};
  for (const Judge::Answer& answer : judge.answers) {
    PromptNode& node = request.nodes.emplace_back();
    node.parent = 1;
    node.content = answer.text;
    node.score = true;
  }
  const TreeResult result = RunTree(engine, request);
  EXPECT_TRUE(result.status.ok()) << result.status;
  double sum = 0;
  double weight = 0;
  for (const NodeScored& scored : result.scores) {
    double logprob = 0;
    for (const TokenLogprob& token : scored.logprobs) logprob += token.logprob;
    sum += std::exp(logprob) * judge.answers[scored.node - 2].value;
    weight += std::exp(logprob);
  }
  return sum / weight;
}

TEST(BestOfNPolicy, KeepsWhatTheModelThinksBest) {
  for (const Sharing sharing : {Sharing::kNone, Sharing::kTree, Sharing::kCache}) {
    EngineConfig config = ExactConfig(sharing);
    if (sharing == Sharing::kTree) {
      // Answers wait for pages and places.
      config.max_batch_tokens = 9;
      config.max_live_branches = 3;
      config.kv_memory_bytes = 32 << 10;
    }
    const std::unique_ptr<Engine> engine = MakeEngine(config);
    const std::unique_ptr<Engine> reference = MakeEngine(ExactConfig(Sharing::kCache));
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      SCOPED_TRACE(testing::Message() << "seed " << seed);
      std::mt19937_64 rng(seed);
      TreeRequest request = SampledRequest(seed, 5);
      const auto root = std::get<std::vector<int32_t>>(request.nodes[0].content);
      Judge judge;
      judge.prompt = RandomTokens(rng, 1 + static_cast<int>(seed % 6));
      judge.answers = {{"yes", 2.0f}, {"no", -1.0f}, {"unclear", 0.5f}};
      judge.answers.resize(2 + seed % 2);
      request.nodes[0].generation->search = BestOfN{.keep = 2, .judge = judge};
      request.nodes.push_back(Node(0, {1, 2}, Greedy(3)));
      const TreeResult result = RunTree(*engine, request);
      ASSERT_TRUE(result.status.ok()) << result.status;
      const std::vector<const BranchResult*> ranked = Ranked(result);
      ASSERT_EQ(ranked.size(), 2u);
      EXPECT_GE(*ranked[0]->end.score, *ranked[1]->end.score);
      EXPECT_TRUE(result.scores.empty()) << "a judge's answers are not the client's";
      for (const auto& [id, branch] : result.branches) {
        if (branch.start.node != 0) continue;
        std::vector<int32_t> path = root;
        path.insert(path.end(), branch.tokens.begin(), branch.tokens.end());
        EXPECT_NEAR(*branch.end.score, NaiveJudgement(*reference, path, judge), 1e-4);
        if (branch.end.rank) {
          result.Branch(1, 0, id);  // its child goes on from it
        } else {
          EXPECT_EQ(branch.end.reason, FinishReason::kPruned);
          EXPECT_LE(*branch.end.score, *ranked[1]->end.score);
          EXPECT_EQ(*branch.end.threshold, *ranked[1]->end.score);
        }
      }
      EXPECT_EQ(result.branches.size(), 7u);
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_EQ(engine->Stats().pages_locked, 0);
  }
}

TEST(TreeOfThought, IsSearchedByJudgement) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  std::mt19937_64 rng(5);
  Judge judge;
  judge.prompt = RandomTokens(rng, 4);
  judge.answers = {{"good", 1.0f}, {"bad", 0.0f}};
  TreeRequest request = SampledRequest(5, 4);
  Generation level = *request.nodes[0].generation;
  level.search = BestOfN{.keep = 2, .across_paths = true, .judge = judge};
  request.nodes[0].generation = level;
  for (int i = 0; i < 2; ++i) request.nodes.push_back(Node(i, {7}, level));
  const TreeResult result = RunTree(*engine, request);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.branches.size(), 4u + 8u + 8u);
  for (int node = 0; node < 3; ++node) {
    std::vector<double> kept;
    std::vector<double> pruned;
    for (const auto& [id, branch] : result.branches) {
      if (branch.start.node != node) continue;
      (branch.end.rank ? kept : pruned).push_back(*branch.end.score);
    }
    ASSERT_EQ(kept.size(), 2u);
    EXPECT_GE(std::ranges::min(kept), std::ranges::max(pruned));
  }
}

TEST(MajorityVotePolicy, KeepsABranchWithTheMostFrequentAnswer) {
  const std::unique_ptr<Engine> engine = MakeEngine(ExactConfig(Sharing::kCache));
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TreeRequest request = SampledRequest(seed, 11);
    const TreeResult all = RunTree(*engine, request);
    ASSERT_TRUE(all.status.ok()) << all.status;
    // The last digit or capital.
    const auto answer_of = [](const std::string& text) {
      const size_t at = text.find_last_of("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ");
      return at == std::string::npos ? std::string() : text.substr(at, 1);
    };
    std::map<std::string, int> votes;
    for (const auto& [id, branch] : all.branches) ++votes[answer_of(branch.text)];
    votes.erase("");
    int most = 0;
    for (const auto& [answer, count] : votes) most = std::max(most, count);

    request.nodes[0].generation->search = MajorityVote{.answer_pattern = "([0-9A-Z])[^0-9A-Z]*$"};
    request.nodes.push_back(Node(0, {1, 2}, Greedy(3)));
    const TreeResult result = RunTree(*engine, request);
    ASSERT_TRUE(result.status.ok()) << result.status;
    const std::vector<const BranchResult*> ranked = Ranked(result);
    ASSERT_EQ(ranked.size(), 1u);
    const BranchResult& kept = *ranked[0];
    EXPECT_EQ(kept.tokens, all.Branch(0, kept.start.sample).tokens);
    EXPECT_EQ(kept.end.answer.value_or(""), answer_of(kept.text));
    EXPECT_EQ(votes[kept.end.answer.value_or("")], most);
    result.Branch(1, 0, kept.start.branch_id);
    for (const auto& [id, branch] : result.branches) {
      if (branch.start.node != 0 || branch.end.rank) continue;
      EXPECT_EQ(branch.end.reason, FinishReason::kPruned);
      EXPECT_LE(*branch.end.score, *branch.end.threshold);
    }
    EXPECT_EQ(result.branches.size(), all.branches.size() + 1);
  }
  EXPECT_EQ(engine->Stats().pages_locked, 0);
}

TEST(BeamSearchPolicy, ChildrenOfABeamContinueItsHypotheses) {
  const nlohmann::json golden = Golden();
  const std::unique_ptr<Engine> engine =
      MakeEngine(ExactConfig(Sharing::kCache), golden["checkpoint"]);
  for (const nlohmann::json& test : golden["cases"]) {
    if (test["width"] != 4 || test["early_stopping"] != "false") continue;
    TreeRequest request = BeamRequest(golden, test);
    std::get<BeamSearch>(request.nodes[0].generation->search).num_return = 2;
    request.nodes.push_back(Node(0, {5, 6}, Greedy(4)));
    const TreeResult result = RunTree(*engine, request);
    ASSERT_TRUE(result.status.ok()) << result.status;
    for (const BranchResult* hypothesis : Ranked(result)) {
      const BranchResult& child = result.Branch(1, 0, hypothesis->start.branch_id);
      std::vector<int32_t> path = std::get<std::vector<int32_t>>(request.nodes[0].content);
      const std::vector<int32_t> generated = GeneratedPath(result, *hypothesis);
      path.insert(path.end(), generated.begin(), generated.end());
      EXPECT_EQ(child.start.fork_token_index, static_cast<int>(path.size()) + 2);
      path.insert(path.end(), {5, 6});
      TreeRequest alone;
      alone.nodes = {Node(-1, path, Greedy(4))};
      EXPECT_EQ(child.tokens, RunTree(*engine, alone).branches.at(0).tokens);
    }
    EXPECT_EQ(Ranked(result).size(), 2u);
  }
}

}  // namespace
}  // namespace espalier
