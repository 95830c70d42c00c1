#include "engine/tree/decode_tree.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/random_forest.h"

namespace espalier {
namespace {

using testing::RandomChance;
using testing::RandomInt;
using testing::Rng;

constexpr int kEos = 255;
// No token that is drawn begins it.
const std::string kNeverSaid = "\xFE";

std::string Written(const std::vector<TokenLogprob>& logprobs) {
  return absl::StrJoin(logprobs, ",", [](std::string* out, const TokenLogprob& t) {
    absl::StrAppend(out, t.token, ":", t.logprob);
  });
}

std::string Written(const TreeEvent& event) {
  if (const auto* started = std::get_if<BranchStarted>(&event)) {
    return absl::StrCat("start ", started->branch_id);
  }
  if (const auto* step = std::get_if<StepTokens>(&event)) {
    std::string all = "tokens";
    for (const BranchTokens& b : step->branches) {
      absl::StrAppend(&all, " ", b.branch_id, "(", b.text, ")", absl::StrJoin(b.token_ids, ","),
                      "(", Written(b.logprobs), ")");
    }
    return all;
  }
  if (const auto* end = std::get_if<BranchFinished>(&event)) {
    return absl::StrCat("end ", end->branch_id, " ", static_cast<int>(end->reason), " ",
                        end->stop_reason, " ", end->cumulative_logprob, " ",
                        end->completion_tokens);
  }
  return "other";
}

// The events of a tree whose branches draw at random, several tokens in some steps. With
// `stop_rate` of its nodes having a stop string, whose texts are needed at once.
std::vector<std::string> Events(uint64_t seed, double stop_rate) {
  Rng rng(seed);
  Rng stop_rng(seed);
  FakeTokenizer tokenizer(256);
  auto outbox = std::make_shared<Outbox>(1000, nullptr);
  std::vector<TreeNode> nodes(1);
  nodes[0].tokens = {1};
  const int num_nodes = RandomInt(rng, 1, 5);
  for (int i = 1; i <= num_nodes; ++i) {
    nodes[0].children.push_back(i);
    TreeNode& node = nodes.emplace_back();
    node.parent = 0;
    node.tokens = {2};
    node.max_tokens = RandomInt(rng, 1, 20);
    Generation& g = node.generation.emplace();
    g.n = RandomInt(rng, 1, 3);
    g.min_tokens = RandomInt(rng, 0, 3);
    if (RandomChance(rng, 0.5)) g.logprobs = 0;
    if (RandomChance(rng, 0.2)) g.stop_token_ids = {7};
    if (RandomChance(stop_rng, stop_rate)) g.stop = {kNeverSaid};
  }
  DecodeTree tree({.tree_id = "tree",
                   .cache_salt = "",
                   .seed = seed,
                   .deadline = std::nullopt,
                   .nodes = nodes,
                   .outbox = outbox,
                   .tokenizer = &tokenizer,
                   .submitted = absl::UnixEpoch()});
  std::vector<int> live;
  for (int prompt : tree.AddChildren(tree.AddRoot())) {
    for (int i = 0; i < tree.fanout(prompt); ++i) live.push_back(tree.AddBranch(prompt, i));
  }
  const int steps = RandomInt(rng, 1, 25);
  for (int step = 0; step < steps; ++step) {
    std::erase_if(live, [&](int branch) {
      bool finished = false;
      for (int i = RandomChance(rng, 0.2) ? 3 : 1; i > 0 && !finished; --i) {
        Sample sample;
        sample.token = RandomChance(rng, 0.05) ? kEos : RandomInt(rng, 0, 253);
        sample.logprob = -0.01f * static_cast<float>(RandomInt(rng, 0, 300));
        finished = tree.Accept(branch, sample, absl::UnixEpoch()).finished;
      }
      return finished;
    });
    // The last step's events are told by Finish.
    if (step + 1 < steps) tree.Flush();
  }
  tree.Finish(absl::OkStatus(), FinishReason::kCancelled, absl::UnixEpoch());
  outbox->Deliver();
  std::vector<std::string> events;
  while (std::optional<TreeEvent> event = outbox->Pop()) events.push_back(Written(*event));
  return events;
}

TEST(DecodeTreeTest, ClientsHearTheSameWhetherTextWaitsOrNot) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const std::vector<std::string> at_once = Events(seed, 1);
    EXPECT_EQ(Events(seed, 0), at_once);
    EXPECT_EQ(Events(seed, 0.5), at_once);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace espalier
