#include "engine/sampler/token_history.h"

#include <map>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace espalier {
namespace {

TEST(TokenHistoryTest, CountsWhatWasGenerated) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    TokenHistory history;
    std::map<int32_t, int32_t> expected;
    for (int i = 0; i < 300; ++i) {
      const auto token = static_cast<int32_t>(rng() % 50);
      history.AddGenerated(token);
      ++expected[token];
    }
    std::map<int32_t, int32_t> counted;
    int32_t last = -1;
    for (const TokenHistory::Count& c : history.generated()) {
      EXPECT_GT(c.token, last);
      last = c.token;
      counted[c.token] = c.times;
    }
    EXPECT_EQ(counted, expected);
  }
}

TEST(TokenHistoryTest, KeepsEachPromptsDistinctTokens) {
  TokenHistory history;
  history.AddPrompt(std::vector<int32_t>{5, 3, 5, 9, 3});
  history.AddGenerated(3);
  history.AddPrompt(std::vector<int32_t>{9, 1});
  ASSERT_EQ(history.prompts().size(), 2u);
  EXPECT_THAT(*history.prompts()[0], testing::ElementsAre(3, 5, 9));
  EXPECT_THAT(*history.prompts()[1], testing::ElementsAre(1, 9));
}

TEST(TokenHistoryTest, AForkSharesThePromptAndCountsAlone) {
  TokenHistory parent;
  parent.AddPrompt(std::vector<int32_t>(4000, 7));
  parent.AddGenerated(1);
  TokenHistory child = parent;
  EXPECT_EQ(child.prompts()[0], parent.prompts()[0]);  // the same object
  child.AddGenerated(1);
  child.AddGenerated(2);
  ASSERT_EQ(parent.generated().size(), 1u);
  EXPECT_EQ(parent.generated()[0].times, 1);
  ASSERT_EQ(child.generated().size(), 2u);
  EXPECT_EQ(child.generated()[0].times, 2);
}

}  // namespace
}  // namespace espalier
