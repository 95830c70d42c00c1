#include "engine/validate.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace espalier {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Small, so that each limit can be reached.
Limits SmallLimits() {
  return {.max_nodes = 6,
          .max_depth = 4,
          .max_width = 24,
          .max_n = 8,
          .max_tree_tokens = 1000,
          .max_logprobs = 5,
          .max_stop_strings = 3,
          .max_stop_bytes = 10,
          .max_stop_token_ids = 4,
          .max_logit_bias = 2,
          .max_text_bytes = 50,
          .max_label_bytes = 12,
          .max_messages = 3,
          .max_waiting_trees = 1};
}

ModelFacts Model() {
  return {.vocab_size = 100,
          .max_context = 300,
          .chat_format = ChatFormat::kChatMl,
          .page_size = 16,
          .num_pages = 100};
}

class ValidateTreeTest : public testing::Test {
 protected:
  ValidateTreeTest() {
    request_.nodes.resize(2);
    request_.nodes[0].content = "root";
    request_.nodes[1].parent = 0;
    request_.nodes[1].content = "question";
    request_.nodes[1].generation.emplace();
  }

  Generation& generation() { return *request_.nodes[1].generation; }
  SamplingParams& sampling() { return generation().sampling; }
  PromptNode& AddNode(int parent) {
    PromptNode& node = request_.nodes.emplace_back();
    node.parent = parent;
    node.generation.emplace();
    return node;
  }

  absl::Status Validate() const { return ValidateTree(request_, model_, limits_); }
  void ExpectAccepted() const { EXPECT_EQ(Validate(), absl::OkStatus()); }
  // Refused, by a message that names the field, and what else it must name.
  void ExpectRefused(const std::string& field, const std::string& value = "",
                     const std::string& limit = "") const {
    const absl::Status status = Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(field), HasSubstr(value), HasSubstr(limit)));
  }
  // `value` in [low, high] is accepted, what lies just outside is refused.
  template <typename Value>
  void ExpectRange(Value* value, Value low, Value below, Value high, Value above,
                   const std::string& field) const {
    for (Value accepted : {low, high}) {
      *value = accepted;
      EXPECT_EQ(Validate(), absl::OkStatus()) << field << " " << accepted;
    }
    for (Value refused : {below, above}) {
      *value = refused;
      ExpectRefused(field);
    }
    *value = low;
  }
  void ExpectFloatRange(float* value, float low, float high, const std::string& field) const {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    const float before = *value;
    ExpectRange(value, low, std::nextafter(low, -kInf), high, std::nextafter(high, kInf), field);
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf}) {
      *value = bad;
      ExpectRefused(field, absl::StrCat(bad));
    }
    *value = before;
  }

  TreeRequest request_;
  ModelFacts model_ = Model();
  Limits limits_ = SmallLimits();
};

TEST_F(ValidateTreeTest, AcceptsAPlainTree) { ExpectAccepted(); }

TEST_F(ValidateTreeTest, NamesFieldValueAndLimit) {
  sampling().top_p = 1.5f;
  EXPECT_EQ(Validate().message(),
            "nodes[1].generation.top_p is 1.5; must be greater than 0 and at most 1");
}

TEST_F(ValidateTreeTest, LimitsBestOfN) {
  generation().n = 5;
  BestOfN& best = generation().search.emplace<BestOfN>();
  ExpectRange(&best.keep, 1, 0, 5, 6, "nodes[1].generation.best_of_n.keep");
}

TEST_F(ValidateTreeTest, LimitsJudges) {
  const std::string field = "nodes[1].generation.best_of_n.judge";
  limits_.max_judge_answers = 3;
  limits_.max_stop_bytes = 4;
  Judge& judge = generation().search.emplace<BestOfN>().judge.emplace();
  judge.prompt = "Good?";
  judge.answers = {{"yes", 1.0f}, {"no", 0.0f}};
  ExpectAccepted();
  judge.answers.resize(1);
  ExpectRefused(field + ".answers is 1 entries; must be from 2 to 3");
  judge.answers = {{"a"}, {"b"}, {"c"}, {"d"}};
  ExpectRefused(field + ".answers is 4 entries; must be from 2 to 3");
  judge.answers = {{"yes"}, {"yess"}};
  ExpectRefused(field + ".answers[0].text is the beginning of another answer");
  judge.answers = {{"yes"}, {""}};
  ExpectRefused(field + ".answers[1].text is 0 bytes; must be from 1 to 4");
  judge.answers = {{"yes", 2e6f}, {"no"}};
  ExpectRefused(field + ".answers[0].value");
  judge.answers = {{"yes"}, {"no"}};
  judge.prompt = std::vector<int32_t>{-1};
  ExpectRefused(field + ".prompt: nodes[1].token_ids[0] is -1");
  judge.prompt = std::vector<ChatMessage>{{"judge", "?"}};
  ExpectRefused(field + ".prompt");
}

TEST_F(ValidateTreeTest, ASearchAcrossPathsNeedsOneAbove) {
  request_.nodes[0].generation.emplace().n = 2;
  generation().n = 2;
  generation().search = BestOfN{.keep = 4, .across_paths = true};
  ExpectRefused("nodes[1].generation.best_of_n.across_paths is set; must be unset below nodes[0]");
  request_.nodes[0].generation->search = BestOfN{.keep = 2, .across_paths = true};
  ExpectAccepted();
  generation().search = BestOfN{.keep = 5, .across_paths = true};
  ExpectRefused(
      "nodes[1].generation.best_of_n.keep is 5; must be from 1 to 4, n on each of 2 paths");
}

TEST_F(ValidateTreeTest, LimitsMajorityVote) {
  limits_.max_pattern_bytes = 8;
  std::string& pattern = generation().search.emplace<MajorityVote>().answer_pattern;
  for (const char* accepted : {"a", "is (.*)."}) {
    pattern = accepted;
    ExpectAccepted();
  }
  const std::string field = "nodes[1].generation.majority_vote.answer_pattern";
  pattern = "";
  ExpectRefused(field, "0 bytes", "from 1 to 8");
  pattern = "is (.*).b";
  ExpectRefused(field, "9 bytes", "from 1 to 8");
  for (const char* bad : {"(", "a)(b", "(?=a)", "*", "\\1"}) {
    pattern = bad;
    ExpectRefused(field, bad, "RE2");
  }
  pattern = "\xff";
  ExpectRefused(field, "not valid UTF-8");
}

TEST_F(ValidateTreeTest, LimitsBeamSearch) {
  limits_.max_beam_width = 6;
  limits_.max_beam_candidates = 9;
  model_.num_eos = 3;
  BeamSearch& beam = generation().search.emplace<BeamSearch>();
  ExpectRange(&beam.width, 1, 0, 6, 7, "nodes[1].generation.beam_search.width");
  beam.width = 4;
  ExpectRange(&beam.num_return, 1, 0, 4, 5, "nodes[1].generation.beam_search.num_return");
  ExpectFloatRange(&beam.length_penalty, -10, 10, "nodes[1].generation.beam_search.length_penalty");
  beam.groups = 2;
  ExpectFloatRange(&beam.diversity_penalty, 0, 100,
                   "nodes[1].generation.beam_search.diversity_penalty");
  beam.groups = 3;
  ExpectRefused("nodes[1].generation.beam_search.groups", "3", "a divisor of 4");
  beam.groups = 1;
  beam.diversity_penalty = 0.5f;
  ExpectRefused("nodes[1].generation.beam_search.diversity_penalty", "0.5", "0 with 1 group");
  beam.diversity_penalty = 0;
  generation().stop_token_ids = {1, 2};
  ExpectAccepted();
  generation().stop_token_ids = {1, 2, 3};
  ExpectRefused("nodes[1].generation.beam_search.width", "4", "at most 3");
  generation().ignore_eos = true;
  ExpectAccepted();
}

TEST_F(ValidateTreeTest, BeamSearchRefusesWhatItDoesNotApply) {
  generation().search = BeamSearch{.width = 2};
  const Generation accepted = generation();
  const auto refuses = [&](const std::string& field, auto change) {
    generation() = accepted;
    change(generation());
    ExpectRefused("nodes[1].generation." + field, "unset with beam_search");
  };
  refuses("n", [](Generation& g) { g.n = 2; });
  refuses("stop", [](Generation& g) { g.stop = {"x"}; });
  refuses("temperature", [](Generation& g) { g.sampling.temperature = 0.5f; });
  refuses("top_k", [](Generation& g) { g.sampling.top_k = 2; });
  refuses("top_p", [](Generation& g) { g.sampling.top_p = 0.5f; });
  refuses("min_p", [](Generation& g) { g.sampling.min_p = 0.5f; });
  refuses("repetition_penalty", [](Generation& g) { g.sampling.repetition_penalty = 1.5f; });
  refuses("frequency_penalty", [](Generation& g) { g.sampling.frequency_penalty = 1; });
  refuses("presence_penalty", [](Generation& g) { g.sampling.presence_penalty = 1; });
  refuses("logit_bias", [](Generation& g) { g.sampling.logit_bias = {{1, 1.0f}}; });
  generation() = accepted;
  ExpectAccepted();
}

TEST_F(ValidateTreeTest, WidthCountsWhatASearchKeeps) {
  limits_.max_width = 8;
  generation().n = 8;
  AddNode(1).generation->n = 3;
  ExpectRefused("nodes", "24", "8");
  generation().search = BestOfN{.keep = 2};
  ExpectAccepted();
  generation().search = BestOfN{.keep = 3};
  ExpectRefused("nodes", "9", "8");
}

TEST_F(ValidateTreeTest, LimitsNodes) {
  while (request_.nodes.size() < 6) AddNode(0);
  ExpectAccepted();
  AddNode(0);
  ExpectRefused("nodes", "7", "6");
  request_.nodes.clear();
  ExpectRefused("nodes", "0");
}

TEST_F(ValidateTreeTest, LimitsDepth) {
  AddNode(1);
  AddNode(2);
  ExpectAccepted();
  AddNode(3);
  ExpectRefused("nodes[4].depth", "5", "4");
}

TEST_F(ValidateTreeTest, WantsOneRootAndParentsFirst) {
  for (int parent : {-1, -2, 1, 2, 100}) {
    request_.nodes[1].parent = parent;
    ExpectRefused("nodes[1].parent", absl::StrCat(parent));
  }
  request_.nodes[1].parent = 0;
  request_.nodes[0].parent = 0;
  ExpectRefused("nodes[0].parent", "0");
}

TEST_F(ValidateTreeTest, LimitsWidthOfSamplesThatMultiply) {
  AddNode(1).generation->n = 4;
  AddNode(1).generation->n = 2;
  generation().n = 4;  // 4 branches, each continued by 4 + 2
  ExpectAccepted();
  AddNode(1);
  ExpectRefused("nodes", "28", "24");
}

TEST_F(ValidateTreeTest, WidthCountsWhoeverIsAliveTogether) {
  request_.nodes[0].generation.emplace();
  request_.nodes[0].generation->n = 8;
  generation().n = 1;
  EXPECT_EQ(MaxWidth(request_), 8);
  AddNode(0).generation->n = 2;
  EXPECT_EQ(MaxWidth(request_), 24);
  ExpectAccepted();
  request_.nodes[2].generation->n = 3;
  ExpectRefused("nodes", "32", "24");
}

TEST_F(ValidateTreeTest, WidthDoesNotOverflow) {
  TreeRequest request;
  for (int i = 0; i < 64; ++i) {
    PromptNode& node = request.nodes.emplace_back();
    node.parent = i - 1;
    node.generation.emplace();
    node.generation->n = std::numeric_limits<int>::max();
  }
  EXPECT_EQ(MaxWidth(request), std::numeric_limits<int64_t>::max());
}

TEST_F(ValidateTreeTest, LimitsN) {
  ExpectRange(&generation().n, 1, 0, 8, 9, "nodes[1].generation.n");
}

TEST_F(ValidateTreeTest, LimitsLabels) {
  request_.request_id = request_.cache_salt = request_.nodes[1].id = std::string(12, 'x');
  ExpectAccepted();
  for (std::string* label : {&request_.request_id, &request_.cache_salt, &request_.nodes[1].id}) {
    const std::string field = label == &request_.request_id   ? "request_id"
                              : label == &request_.cache_salt ? "cache_salt"
                                                              : "nodes[1].id";
    label->push_back('x');
    ExpectRefused(field, "13", "12");
    label->pop_back();
  }
}

TEST_F(ValidateTreeTest, WhatIsEchoedIsText) {
  request_.request_id = "\xFF";
  ExpectRefused("request_id", "UTF-8");
  request_.request_id = "é";
  request_.nodes[1].id = "\xC3";
  ExpectRefused("nodes[1].id", "UTF-8");
  request_.nodes[1].id = "é";
  generation().stop = {"\xE4"};
  ExpectRefused("nodes[1].generation.stop[0]", "UTF-8");
  generation().stop = {"é"};
  request_.cache_salt = "\xFF";  // stays here
  request_.nodes[0].content = "\xFF";
  ExpectAccepted();
}

TEST_F(ValidateTreeTest, IdsAreUnique) {
  request_.nodes[0].id = "a";
  request_.nodes[1].id = "a";
  ExpectRefused("nodes[1].id", "\"a\"");
  request_.nodes[0].id = "1";
  request_.nodes[1].id = "";  // stands for "1"
  ExpectRefused("nodes[1].id", "\"1\"");
  request_.nodes[1].id = "0";
  ExpectAccepted();
}

TEST_F(ValidateTreeTest, LimitsText) {
  request_.nodes[1].content = std::string(50, 'x');
  ExpectAccepted();
  request_.nodes[1].content = std::string(51, 'x');
  ExpectRefused("nodes[1].text", "51", "50");
}

TEST_F(ValidateTreeTest, TokenIdsAreInTheVocabularyAndTheContext) {
  request_.nodes[1].content = std::vector<int32_t>{0, 99};
  ExpectAccepted();
  for (int32_t token : {-1, 100}) {
    request_.nodes[1].content = std::vector<int32_t>{0, token};
    ExpectRefused("nodes[1].token_ids[1]", absl::StrCat(token), "99");
  }
  request_.nodes[1].content = std::vector<int32_t>(300, 1);
  ExpectAccepted();
  request_.nodes[1].content = std::vector<int32_t>(301, 1);
  ExpectRefused("nodes[1].token_ids", "301", "300");
}

TEST_F(ValidateTreeTest, LimitsMessages) {
  std::vector<ChatMessage> messages(3, {.role = "user", .content = "Hello"});
  request_.nodes[1].content = messages;
  ExpectAccepted();
  messages.push_back({.role = "assistant", .content = ""});
  request_.nodes[1].content = messages;
  ExpectRefused("nodes[1].messages", "4", "3");
  request_.nodes[1].content = std::vector<ChatMessage>{};
  ExpectRefused("nodes[1].messages", "0");

  request_.nodes[1].content =
      std::vector<ChatMessage>{{.role = "system", .content = std::string(25, 'x')},
                               {.role = "user", .content = std::string(25, 'x')}};
  ExpectAccepted();
  request_.nodes[1].content =
      std::vector<ChatMessage>{{.role = "system", .content = std::string(25, 'x')},
                               {.role = "user", .content = std::string(26, 'x')}};
  ExpectRefused("nodes[1].messages", "51", "50");
}

TEST_F(ValidateTreeTest, MessagesHaveKnownRolesAndAModelThatChats) {
  for (const char* role : {"", "User", "tool", "user "}) {
    request_.nodes[1].content =
        std::vector<ChatMessage>{{.role = "user", .content = ""}, {.role = role, .content = ""}};
    ExpectRefused("nodes[1].messages[1].role");
  }
  for (const char* role : {"system", "user", "assistant"}) {
    request_.nodes[1].content = std::vector<ChatMessage>{{.role = role, .content = ""}};
    ExpectAccepted();
  }
  model_.chat_format = ChatFormat::kNone;
  ExpectRefused("nodes[1].messages", "chat format");
}

TEST_F(ValidateTreeTest, EveryLeafHasAPurpose) {
  request_.nodes[1].generation.reset();
  ExpectRefused("nodes[1]", "generation", "score");
  request_.nodes[1].score = true;
  ExpectAccepted();
}

TEST_F(ValidateTreeTest, AScoredNodeIsALeafBelowAnother) {
  request_.nodes[1].score = true;
  ExpectRefused("nodes[1].score");  // it generates
  request_.nodes[1].generation.reset();
  AddNode(1);
  ExpectRefused("nodes[1].score");  // it has a child
  request_.nodes.resize(1);
  request_.nodes[0].score = true;
  ExpectRefused("nodes[0].score");
}

TEST_F(ValidateTreeTest, LimitsSamplingParameters) {
  ExpectFloatRange(&sampling().temperature, 0, 100, "nodes[1].generation.temperature");
  ExpectFloatRange(&sampling().min_p, 0, 1, "nodes[1].generation.min_p");
  ExpectFloatRange(&sampling().frequency_penalty, -2, 2, "nodes[1].generation.frequency_penalty");
  ExpectFloatRange(&sampling().presence_penalty, -2, 2, "nodes[1].generation.presence_penalty");
  // Open at 0.
  const float tiny = std::numeric_limits<float>::denorm_min();
  ExpectFloatRange(&sampling().top_p, tiny, 1, "nodes[1].generation.top_p");
  ExpectFloatRange(&sampling().repetition_penalty, tiny, 10,
                   "nodes[1].generation.repetition_penalty");
  ExpectRange(&sampling().top_k, -1, -2, std::numeric_limits<int>::max(), -100,
              "nodes[1].generation.top_k");
}

TEST_F(ValidateTreeTest, LimitsLogitBias) {
  sampling().logit_bias = {{0, 100.0f}, {99, -100.0f}};
  ExpectAccepted();
  sampling().logit_bias.emplace_back(1, 0.0f);
  ExpectRefused("nodes[1].generation.logit_bias", "3", "2");
  sampling().logit_bias = {{5, 0.0f}};
  ExpectFloatRange(&sampling().logit_bias[0].second, -100, 100,
                   "nodes[1].generation.logit_bias[5]");
  ExpectRange(&sampling().logit_bias[0].first, 0, -1, 99, 100,
              "nodes[1].generation.logit_bias key");
}

TEST_F(ValidateTreeTest, LimitsStopStrings) {
  generation().stop = {"a", "b", std::string(10, 'c')};
  ExpectAccepted();
  generation().stop.push_back("d");
  ExpectRefused("nodes[1].generation.stop", "4", "3");
  generation().stop = {"a", std::string(11, 'c')};
  ExpectRefused("nodes[1].generation.stop[1]", "11", "10");
  generation().stop = {""};
  ExpectRefused("nodes[1].generation.stop[0]", "0");
}

TEST_F(ValidateTreeTest, LimitsStopTokenIds) {
  generation().stop_token_ids = {0, 1, 2, 99};
  ExpectAccepted();
  generation().stop_token_ids.push_back(3);
  ExpectRefused("nodes[1].generation.stop_token_ids", "5", "4");
  generation().stop_token_ids = {0};
  ExpectRange(&generation().stop_token_ids[0], 0, -1, 99, 100,
              "nodes[1].generation.stop_token_ids[0]");
}

TEST_F(ValidateTreeTest, LimitsTokensOfAGeneration) {
  generation().max_tokens = 1;
  ExpectRange(&*generation().max_tokens, 1, 0, 300, 301, "nodes[1].generation.max_tokens");
  generation().max_tokens = 40;
  ExpectRange(&generation().min_tokens, 0, -1, 40, 41, "nodes[1].generation.min_tokens");
  generation().max_tokens.reset();
  ExpectRange(&generation().min_tokens, 0, -1, 256, 257, "nodes[1].generation.min_tokens");
}

TEST_F(ValidateTreeTest, LimitsLogprobs) {
  generation().logprobs = 0;
  ExpectRange(&*generation().logprobs, 0, -1, 5, 6, "nodes[1].generation.logprobs");
}

}  // namespace
}  // namespace espalier
