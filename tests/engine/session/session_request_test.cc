#include "engine/session/session_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <variant>
#include <vector>

namespace espalier {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Tokens = std::vector<int32_t>;

const Tokens& TokensOf(const PromptNode& node) { return std::get<Tokens>(node.content); }

class SessionRequestTest : public testing::Test {
 protected:
  SessionRequestTest() {
    EXPECT_TRUE(tree_.Add(SessionTree::kNoParent, Tokens{1, 2, 3}).ok());
    EXPECT_TRUE(tree_.Fork(0, 2).ok());
    EXPECT_TRUE(tree_.Extend(2, Tokens{4}).ok());
    EXPECT_TRUE(tree_.Add(SessionTree::kNoParent, Tokens{9, 9}).ok());
  }
  SessionTree tree_{SessionLimits(), 100};
};

TEST_F(SessionRequestTest, PathsShareWhatTheyBeginWith) {
  const auto request = GenerateFrom(tree_, std::vector<int>{2, 1}, Generation());
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->nodes.size(), 3u);
  // The path of branch 1 keeps a token of its own.
  EXPECT_THAT(TokensOf(request->nodes[0]), ElementsAre(1, 2));
  EXPECT_THAT(TokensOf(request->nodes[1]), ElementsAre(3, 4));
  EXPECT_THAT(TokensOf(request->nodes[2]), ElementsAre(3));
  EXPECT_FALSE(request->nodes[0].generation.has_value());
  EXPECT_TRUE(request->nodes[2].generation.has_value());
  EXPECT_THAT(request->branch_of_node, ElementsAre(-1, 2, 1));
}

TEST_F(SessionRequestTest, OneBranchIsOneNode) {
  const auto request = GenerateFrom(tree_, std::vector<int>{2}, Generation());
  ASSERT_TRUE(request.ok()) << request.status();
  ASSERT_EQ(request->nodes.size(), 1u);
  EXPECT_THAT(TokensOf(request->nodes[0]), ElementsAre(1, 2, 3, 4));
}

TEST_F(SessionRequestTest, Refusals) {
  const auto refusal = [&](std::vector<int> branches) {
    return GenerateFrom(tree_, branches, Generation()).status();
  };
  EXPECT_THAT(refusal({}).message(), HasSubstr("generate.branches is 0 entries"));
  EXPECT_THAT(refusal({1, 1}).message(), HasSubstr("has branch 1 twice"));
  EXPECT_THAT(refusal({1, 3}).message(), HasSubstr("begin with different tokens"));
  EXPECT_THAT(refusal({0}).message(), HasSubstr("branch 0 has 2 children; must be a leaf"));
  EXPECT_EQ(refusal({7}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ScoreAfter(tree_, 1, {}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace espalier
