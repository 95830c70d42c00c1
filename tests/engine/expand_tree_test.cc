#include <limits>
#include <random>

#include "engine/validate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace espalier {
namespace {

using testing::HasSubstr;

ModelFacts Model() {
  return {.vocab_size = 100,
          .max_context = 1000,
          .chat_format = ChatFormat::kNone,
          .page_size = 16,
          .num_pages = 1000};
}

PromptNode Node(int parent, int n = 0, std::optional<int> max_tokens = std::nullopt) {
  PromptNode node;
  node.parent = parent;
  if (n > 0) {
    node.generation.emplace();
    node.generation->n = n;
    node.generation->max_tokens = max_tokens;
  }
  return node;
}

TreeRequest Request(std::vector<PromptNode> nodes) {
  TreeRequest request;
  request.nodes = std::move(nodes);
  return request;
}

void ExpectRefused(const absl::StatusOr<TreeExpansion>& result,
                   std::initializer_list<const char*> parts) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* part : parts) {
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(part));
  }
}

TEST(ExpandTreeTest, MultipliesInstancesAndCountsTokensAndPages) {
  // Three samples of a thought, each continued by two of an answer and by a plain node with one.
  const TreeRequest request = Request({Node(-1, 3, 20), Node(0, 2, 5), Node(0), Node(2, 1, 7)});
  const int tokens[] = {10, 4, 17, 0};
  const absl::StatusOr<TreeExpansion> result = ExpandTree(request, tokens, Model(), Limits());
  ASSERT_TRUE(result.ok()) << result.status();
  const int64_t instances[] = {1, 3, 3, 3};
  const int max_tokens[] = {20, 5, 0, 7};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(result->nodes[i].instances, instances[i]);
    EXPECT_EQ(result->nodes[i].max_tokens, max_tokens[i]);
  }
  EXPECT_EQ(result->width, 9);
  EXPECT_EQ(result->tokens, (10 + 3 * 20) + 3 * (4 + 2 * 5) + 3 * 17 + 3 * 7);
  EXPECT_EQ(result->path_pages, 1 + 2 + 2 + 0 + 1);  // 10, 20, 17, 0 and 7 tokens
}

// The definition: walks every branch of the tree one by one.
struct Walk {
  const TreeRequest& request;
  std::vector<int> node_tokens;
  std::vector<int64_t> instances;
  int64_t tokens = 0;

  void Instance(int node) {
    ++instances[node];
    tokens += node_tokens[node];
    const std::optional<Generation>& g = request.nodes[node].generation;
    for (int sample = 0; sample < (g ? g->n : 1); ++sample) {
      if (g) tokens += *g->max_tokens;
      for (size_t child = 0; child < request.nodes.size(); ++child) {
        if (request.nodes[child].parent == node) Instance(static_cast<int>(child));
      }
    }
  }
};

TEST(ExpandTreeTest, EqualsWalkingEveryBranch) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    TreeRequest request;
    std::vector<int> tokens;
    const int count = static_cast<int>(1 + rng() % 10);
    for (int i = 0; i < count; ++i) {
      request.nodes.push_back(Node(i == 0 ? -1 : static_cast<int>(rng() % i),
                                   static_cast<int>(rng() % 4), static_cast<int>(1 + rng() % 9)));
      tokens.push_back(static_cast<int>(1 + rng() % 20));
    }
    Walk walk{.request = request,
              .node_tokens = tokens,
              .instances = std::vector<int64_t>(count),
              .tokens = 0};
    walk.Instance(0);
    const absl::StatusOr<TreeExpansion> result = ExpandTree(request, tokens, Model(), Limits());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->tokens, walk.tokens);
    for (int i = 0; i < count; ++i) EXPECT_EQ(result->nodes[i].instances, walk.instances[i]);
  }
}

TEST(ExpandTreeTest, UnsetMaxTokensIs256OrWhatTheContextLeaves) {
  const TreeRequest request = Request({Node(-1, 1)});
  for (const auto& [tokens, expected] : {std::pair{1, 256}, {744, 256}, {745, 255}, {999, 1}}) {
    const absl::StatusOr<TreeExpansion> result =
        ExpandTree(request, {&tokens, 1}, Model(), Limits());
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->nodes[0].max_tokens, expected);
  }
  const int full[] = {1000};
  ExpectRefused(ExpandTree(request, full, Model(), Limits()),
                {"nodes[0].generation.max_tokens", "1000"});
}

TEST(ExpandTreeTest, SetMaxTokensMustFitIntoTheContext) {
  const TreeRequest request = Request({Node(-1, 1, 100), Node(0, 1, 50)});
  const int fits[] = {600, 250};
  EXPECT_TRUE(ExpandTree(request, fits, Model(), Limits()).ok());
  const int over[] = {600, 251};
  ExpectRefused(ExpandTree(request, over, Model(), Limits()),
                {"nodes[1].generation.max_tokens is 50", "951", "1000"});
}

TEST(ExpandTreeTest, PromptsMustFitIntoTheContext) {
  TreeRequest request = Request({Node(-1, 1, 100), Node(0)});
  request.nodes[1].score = true;
  const int fits[] = {600, 300};
  EXPECT_TRUE(ExpandTree(request, fits, Model(), Limits()).ok());
  const int over[] = {600, 301};
  ExpectRefused(ExpandTree(request, over, Model(), Limits()), {"nodes[1]", "301", "700", "1000"});
}

TEST(ExpandTreeTest, MinTokensMustFitIntoWhatTheContextLeaves) {
  TreeRequest request = Request({Node(-1, 1)});
  request.nodes[0].generation->min_tokens = 100;
  const int fits[] = {900};
  EXPECT_TRUE(ExpandTree(request, fits, Model(), Limits()).ok());
  const int over[] = {901};
  ExpectRefused(ExpandTree(request, over, Model(), Limits()),
                {"nodes[0].generation.min_tokens is 100", "99"});
}

TEST(ExpandTreeTest, TheRootAndScoredNodesHaveTokens) {
  TreeRequest request = Request({Node(-1), Node(0)});
  request.nodes[1].score = true;
  const int fits[] = {1, 1};
  EXPECT_TRUE(ExpandTree(request, fits, Model(), Limits()).ok());
  const int empty_root[] = {0, 1};
  ExpectRefused(ExpandTree(request, empty_root, Model(), Limits()), {"nodes[0]"});
  const int empty_score[] = {1, 0};
  ExpectRefused(ExpandTree(request, empty_score, Model(), Limits()), {"nodes[1]"});
  request.nodes[1] = Node(0, 1);
  EXPECT_TRUE(ExpandTree(request, empty_score, Model(), Limits()).ok());
}

TEST(ExpandTreeTest, LimitsTokensOfTheTree) {
  const TreeRequest request = Request({Node(-1, 4, 10), Node(0, 2, 5)});
  const int tokens[] = {7, 3};
  Limits limits;
  limits.max_tree_tokens = 7 + 4 * 10 + 4 * (3 + 2 * 5);
  EXPECT_TRUE(ExpandTree(request, tokens, Model(), limits).ok());
  --limits.max_tree_tokens;
  ExpectRefused(ExpandTree(request, tokens, Model(), limits), {"nodes", "99", "98"});
}

TEST(ExpandTreeTest, TokensDoNotOverflow) {
  std::vector<PromptNode> nodes;
  for (int i = 0; i < 60; ++i) nodes.push_back(Node(i - 1, 1 << 30, 1));
  const std::vector<int> tokens(60, 1);
  ExpectRefused(ExpandTree(Request(std::move(nodes)), tokens, Model(), Limits()),
                {"9223372036854775807"});
}

TEST(ExpandTreeTest, APathMustFitIntoThePoolAlone) {
  const TreeRequest request = Request({Node(-1), Node(0, 50, 33), Node(0, 1, 1)});
  const int tokens[] = {17, 16, 1};
  ModelFacts model = Model();
  model.num_pages = 2 + 1 + 3;  // samples do not count: they need not run together
  const absl::StatusOr<TreeExpansion> fits = ExpandTree(request, tokens, model, Limits());
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(fits->path_pages, 6);
  --model.num_pages;
  ExpectRefused(ExpandTree(request, tokens, model, Limits()), {"nodes[1]", "6 KV pages", "has 5"});
}

TEST(ExpandTreeTest, AJudgeTakesContextPagesTokensAndWidth) {
  TreeRequest request = Request({Node(-1, 3, 20)});
  BestOfN best;
  best.judge.emplace().answers.resize(4);
  request.nodes[0].generation->search = best;
  const int tokens[] = {10};
  const JudgeTokens judge[] = {{.longest = 17, .total = 50}};
  ModelFacts model = Model();
  model.max_context = 47;
  model.num_pages = 1 + 2 + 2;
  const absl::StatusOr<TreeExpansion> fits = ExpandTree(request, tokens, model, Limits(), judge);
  ASSERT_TRUE(fits.ok()) << fits.status();
  EXPECT_EQ(fits->tokens, 10 + 3 * (20 + 50));
  EXPECT_EQ(fits->width, 3 * 4);
  EXPECT_EQ(fits->path_pages, 5);
  --model.num_pages;
  ExpectRefused(ExpandTree(request, tokens, model, Limits(), judge),
                {"nodes[0] is up to 47 tokens", "5 KV pages", "has 4"});
  model.num_pages = 5;
  --model.max_context;
  ExpectRefused(ExpandTree(request, tokens, model, Limits(), judge),
                {"nodes[0].generation.max_tokens is 20", "before 17 of its judge", "has 46"});
}

}  // namespace
}  // namespace espalier
