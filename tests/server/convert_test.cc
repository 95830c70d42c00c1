#include "server/convert.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/utf8.h"

namespace espalier {
namespace {

using google::protobuf::FieldDescriptor;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

template <class Message>
Message FromText(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

TreeRequest FromRequestText(const std::string& text) {
  absl::StatusOr<TreeRequest> request = TakeTreeRequest(FromText<v1::GenerateRequest>(text));
  EXPECT_TRUE(request.ok()) << request.status();
  return *std::move(request);
}

// Token i is the byte i; ids above 255 are special.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> Encode(std::string_view text, bool) const override {
    return {text.begin(), text.end()};
  }
  std::string TokenBytes(int32_t id, bool) const override {
    return id >= 0 && id < 256 ? std::string(1, static_cast<char>(id)) : std::string();
  }
  int vocab_size() const override { return 257; }
  bool IsSpecial(int32_t id) const override { return id == 256; }
  std::optional<int32_t> FindPiece(std::string_view) const override { return std::nullopt; }
  std::optional<int32_t> bos() const override { return std::nullopt; }
  std::vector<int32_t> eos() const override { return {256}; }
  ChatFormat chat_format() const override { return ChatFormat::kNone; }
};

TEST(ConvertRequestTest, UnsetFieldsAreTheEnginesDefaults) {
  const TreeRequest request = FromRequestText("root { generation {} }");
  ASSERT_EQ(request.nodes.size(), 1u);
  EXPECT_FALSE(request.seed.has_value());
  EXPECT_FALSE(request.deadline.has_value());
  const PromptNode& node = request.nodes[0];
  EXPECT_EQ(node.parent, -1);
  EXPECT_EQ(std::get<std::string>(node.content), "");
  EXPECT_FALSE(node.score);
  ASSERT_TRUE(node.generation.has_value());
  const Generation& g = *node.generation;
  const Generation d;
  EXPECT_EQ(g.n, d.n);
  EXPECT_EQ(g.sampling.temperature, d.sampling.temperature);
  EXPECT_EQ(g.sampling.top_k, d.sampling.top_k);
  EXPECT_EQ(g.sampling.top_p, d.sampling.top_p);
  EXPECT_EQ(g.sampling.min_p, d.sampling.min_p);
  EXPECT_EQ(g.sampling.repetition_penalty, d.sampling.repetition_penalty);
  EXPECT_EQ(g.sampling.frequency_penalty, d.sampling.frequency_penalty);
  EXPECT_EQ(g.sampling.presence_penalty, d.sampling.presence_penalty);
  EXPECT_FALSE(g.max_tokens.has_value());
  EXPECT_EQ(g.min_tokens, 0);
  EXPECT_FALSE(g.logprobs.has_value());
  EXPECT_TRUE(g.speculative);
  EXPECT_FALSE(g.include_stop_str_in_output);
  EXPECT_FALSE(g.ignore_eos);
}

TEST(ConvertRequestTest, ANodeWithoutGenerationDoesNotGenerate) {
  EXPECT_FALSE(FromRequestText("root { text: 'a' }").nodes[0].generation.has_value());
}

TEST(ConvertRequestTest, ZeroIsNotUnset) {
  const TreeRequest request = FromRequestText(R"(
      seed: 0
      root { generation { n: 0 temperature: 0 top_p: 0 repetition_penalty: 0 max_tokens: 0
                          logprobs: 0 } })");
  EXPECT_EQ(request.seed, 0u);
  const Generation& g = *request.nodes[0].generation;
  EXPECT_EQ(g.n, 0);  // out of range: for the validator to say, not for us to mend
  EXPECT_EQ(g.sampling.temperature, 0);
  EXPECT_EQ(g.sampling.top_p, 0);
  EXPECT_EQ(g.sampling.repetition_penalty, 0);
  EXPECT_EQ(g.max_tokens, 0);
  EXPECT_EQ(g.logprobs, 0);
}

TEST(ConvertRequestTest, EveryFieldArrives) {
  const TreeRequest request = FromRequestText(R"(
      request_id: 'r' priority: -3 cache_salt: 's' seed: 18446744073709551615
      root {
        id: 'x'
        text: 'hello'
        score: true
        generation {
          n: 4 temperature: 0.5 top_k: 40 top_p: 0.25 min_p: 0.125 repetition_penalty: 1.5
          frequency_penalty: -0.5 presence_penalty: 0.75
          logit_bias { key: 9 value: -1 } logit_bias { key: 2 value: 100 }
          max_tokens: 7 min_tokens: 3 stop: 'a' stop: 'b' stop_token_ids: 11 stop_token_ids: 12
          include_stop_str_in_output: true ignore_eos: true logprobs: 5 speculative: false
        }
      })");
  EXPECT_EQ(request.request_id, "r");
  EXPECT_EQ(request.priority, -3);
  EXPECT_EQ(request.cache_salt, "s");
  EXPECT_EQ(request.seed, 18446744073709551615u);
  const PromptNode& node = request.nodes[0];
  EXPECT_EQ(node.id, "x");
  EXPECT_EQ(std::get<std::string>(node.content), "hello");
  EXPECT_TRUE(node.score);
  const Generation& g = *node.generation;
  EXPECT_EQ(g.n, 4);
  EXPECT_EQ(g.sampling.temperature, 0.5f);
  EXPECT_EQ(g.sampling.top_k, 40);
  EXPECT_EQ(g.sampling.top_p, 0.25f);
  EXPECT_EQ(g.sampling.min_p, 0.125f);
  EXPECT_EQ(g.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(g.sampling.frequency_penalty, -0.5f);
  EXPECT_EQ(g.sampling.presence_penalty, 0.75f);
  EXPECT_THAT(g.sampling.logit_bias, ElementsAre(Pair(2, 100.0f), Pair(9, -1.0f)));
  EXPECT_EQ(g.max_tokens, 7);
  EXPECT_EQ(g.min_tokens, 3);
  EXPECT_THAT(g.stop, ElementsAre("a", "b"));
  EXPECT_THAT(g.stop_token_ids, ElementsAre(11, 12));
  EXPECT_TRUE(g.include_stop_str_in_output);
  EXPECT_TRUE(g.ignore_eos);
  EXPECT_EQ(g.logprobs, 5);
  EXPECT_FALSE(g.speculative);
}

TEST(ConvertRequestTest, SearchPoliciesArrive) {
  const auto search = [](const std::string& text) {
    return FromRequestText("root { text: 'x' generation { " + text + " } }")
        .nodes[0]
        .generation->search;
  };
  EXPECT_TRUE(std::holds_alternative<std::monostate>(search("n: 2")));
  EXPECT_EQ(
      std::get<MajorityVote>(search("majority_vote { answer_pattern: 'a(b)' }")).answer_pattern,
      "a(b)");

  auto best = std::get<BestOfN>(search("best_of_n {}"));
  EXPECT_EQ(best.keep, 1);
  EXPECT_EQ(best.score, BranchScore::kMeanLogprob);
  best = std::get<BestOfN>(search("best_of_n { keep: 3 score: SCORE_CUMULATIVE_LOGPROB }"));
  EXPECT_EQ(best.keep, 3);
  EXPECT_EQ(best.score, BranchScore::kCumulativeLogprob);

  EXPECT_FALSE(best.judge);
  best =
      std::get<BestOfN>(search("best_of_n { judge { text: 'ok?' answers { text: 'yes' value: 2 } "
                               "answers { text: 'no' } } }"));
  ASSERT_TRUE(best.judge);
  EXPECT_EQ(std::get<std::string>(best.judge->prompt), "ok?");
  ASSERT_EQ(best.judge->answers.size(), 2u);
  EXPECT_EQ(best.judge->answers[0].text, "yes");
  EXPECT_EQ(best.judge->answers[0].value, 2.0f);
  EXPECT_EQ(best.judge->answers[1].value, 0.0f);
  best =
      std::get<BestOfN>(search("best_of_n { judge { messages { messages { role: 'user' } } } }"));
  EXPECT_EQ(std::get<std::vector<ChatMessage>>(best.judge->prompt)[0].role, "user");
  best = std::get<BestOfN>(search("best_of_n { judge { token_ids { ids: 5 } } }"));
  EXPECT_EQ(std::get<std::vector<int32_t>>(best.judge->prompt), std::vector<int32_t>{5});

  auto beam = std::get<BeamSearch>(search("beam_search { width: 4 }"));
  EXPECT_EQ(beam.width, 4);
  EXPECT_EQ(beam.num_return, 1);
  EXPECT_EQ(beam.length_penalty, 1.0f);
  EXPECT_EQ(beam.early_stopping, EarlyStopping::kHeuristic);
  beam = std::get<BeamSearch>(search(
      "beam_search { width: 4 num_return: 2 length_penalty: 0 early_stopping: EARLY_STOPPING_NEVER "
      "}"));
  EXPECT_EQ(beam.num_return, 2);
  EXPECT_EQ(beam.length_penalty, 0.0f);
  EXPECT_EQ(beam.early_stopping, EarlyStopping::kNever);
  EXPECT_EQ(beam.groups, 1);
  beam = std::get<BeamSearch>(search("beam_search { groups: 2 diversity_penalty: 0.5 }"));
  EXPECT_EQ(beam.groups, 2);
  EXPECT_EQ(beam.diversity_penalty, 0.5f);
  beam = std::get<BeamSearch>(search("beam_search { early_stopping: EARLY_STOPPING_ALWAYS }"));
  EXPECT_EQ(beam.early_stopping, EarlyStopping::kAlways);
}

TEST(ConvertRequestTest, ConstraintsArrive) {
  const Generation g = *FromRequestText(
                            "root { text: 'x' generation { regex: 'a+' choices { texts: 'b' texts: "
                            "'c' score: SCORE_MEAN_LOGPROB } } }")
                            .nodes[0]
                            .generation;
  EXPECT_EQ(g.regex, "a+");
  const Choices choices = std::get<Choices>(g.search);
  EXPECT_EQ(choices.texts, (std::vector<std::string>{"b", "c"}));
  EXPECT_EQ(choices.score, BranchScore::kMeanLogprob);
}

TEST(ConvertRequestTest, RefusesUnknownEnumValues) {
  v1::GenerateRequest request;
  v1::Generation& generation = *request.mutable_root()->mutable_generation();
  generation.mutable_best_of_n()->set_score(static_cast<v1::BestOfN::Score>(9));
  EXPECT_EQ(TakeTreeRequest(request).status().message(),
            "nodes[0].generation.best_of_n.score is 9; must be a value of the enum");
  generation.mutable_beam_search()->set_early_stopping(
      static_cast<v1::BeamSearch::EarlyStopping>(7));
  EXPECT_EQ(TakeTreeRequest(request).status().message(),
            "nodes[0].generation.beam_search.early_stopping is 7; must be a value of the enum");
}

TEST(ConvertRequestTest, TopKMinusOneMeansOff) {
  const auto top_k = [](const char* value) {
    return FromRequestText(std::string("root { generation { top_k: ") + value + " } }")
        .nodes[0]
        .generation->sampling.top_k;
  };
  EXPECT_EQ(top_k("-1"), 0);
  EXPECT_EQ(top_k("0"), 0);
  EXPECT_EQ(top_k("1"), 1);
  EXPECT_EQ(top_k("-2"), -2);  // the validator refuses it
}

TEST(ConvertRequestTest, ContentKeepsItsKind) {
  const TreeRequest request = FromRequestText(R"(
      root {
        messages { messages { role: 'system' content: 'a' } messages { role: 'user' } }
        children { token_ids { ids: 3 ids: -1 } }
        children { token_ids {} }
      })");
  const auto& messages = std::get<std::vector<ChatMessage>>(request.nodes[0].content);
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[0].content, "a");
  EXPECT_EQ(messages[1].role, "user");
  EXPECT_EQ(messages[1].content, "");
  EXPECT_THAT(std::get<std::vector<int32_t>>(request.nodes[1].content), ElementsAre(3, -1));
  EXPECT_THAT(std::get<std::vector<int32_t>>(request.nodes[2].content), ElementsAre());
}

TEST(ConvertRequestTest, ARootIsNeeded) {
  const absl::StatusOr<TreeRequest> request = TakeTreeRequest(v1::GenerateRequest());
  EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(request.status().message()), HasSubstr("root"));
}

// The recursive definition of depth-first order.
void FlattenNaively(const v1::PromptNode& node, int parent,
                    std::vector<std::pair<std::string, int>>* flat) {
  const int index = static_cast<int>(flat->size());
  flat->emplace_back(node.text(), parent);
  for (const v1::PromptNode& child : node.children()) FlattenNaively(child, index, flat);
}

TEST(ConvertRequestTest, FlattensDepthFirst) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    v1::GenerateRequest message;
    std::vector<v1::PromptNode*> nodes = {message.mutable_root()};
    const int count = 1 + static_cast<int>(random() % 200);
    while (static_cast<int>(nodes.size()) < count) {
      // Recent parents more often, so that deep trees come up as well as wide ones.
      const size_t back = std::min<size_t>(nodes.size(), 1 + random() % 5);
      nodes.push_back(nodes[nodes.size() - back]->add_children());
    }
    for (size_t i = 0; i < nodes.size(); ++i) nodes[i]->set_text(std::to_string(i));

    std::vector<std::pair<std::string, int>> expected;
    FlattenNaively(message.root(), -1, &expected);
    const absl::StatusOr<TreeRequest> request = TakeTreeRequest(message);
    ASSERT_TRUE(request.ok());
    std::vector<std::pair<std::string, int>> actual;
    for (const PromptNode& node : request->nodes) {
      actual.emplace_back(std::get<std::string>(node.content), node.parent);
    }
    EXPECT_EQ(actual, expected);
  }
}

TEST(ConvertRequestTest, DepthCostsNoStack) {
  v1::GenerateRequest message;
  v1::PromptNode* node = message.mutable_root();
  // Far beyond what the wire lets through; protobuf's own destructor is recursive, so not more.
  for (int i = 0; i < 5000; ++i) node = node->add_children();
  const absl::StatusOr<TreeRequest> request = TakeTreeRequest(std::move(message));
  ASSERT_TRUE(request.ok());
  ASSERT_EQ(request->nodes.size(), 5001u);
  EXPECT_EQ(request->nodes.back().parent, 4999);
}

TEST(ConvertRequestTest, LabelsAreIdsOrIndices) {
  const TreeRequest request =
      FromRequestText("root { children { id: 'a' children {} } children { id: 'b' } }");
  EXPECT_THAT(NodeLabels(request), ElementsAre("0", "a", "2", "b"));
}

TEST(ConvertRequestTest, ScoreIsATreeOfScoredChildren) {
  const absl::StatusOr<TreeRequest> request = TakeTreeRequest(FromText<v1::ScoreRequest>(R"(
      request_id: 'r' priority: 2 cache_salt: 's' text: 'Q: '
      continuations { text: 'yes' } continuations { token_ids { ids: 5 } })"));
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->request_id, "r");
  EXPECT_EQ(request->priority, 2);
  EXPECT_EQ(request->cache_salt, "s");
  ASSERT_EQ(request->nodes.size(), 3u);
  EXPECT_FALSE(request->nodes[0].score);
  EXPECT_EQ(std::get<std::string>(request->nodes[0].content), "Q: ");
  for (int i : {1, 2}) {
    EXPECT_EQ(request->nodes[i].parent, 0);
    EXPECT_TRUE(request->nodes[i].score);
    EXPECT_FALSE(request->nodes[i].generation.has_value());
  }
  EXPECT_EQ(std::get<std::string>(request->nodes[1].content), "yes");
  EXPECT_THAT(std::get<std::vector<int32_t>>(request->nodes[2].content), ElementsAre(5));
}

TEST(ConvertRequestTest, ScoreNamesWhatIsMissing) {
  const auto error_of = [](const char* text) {
    return std::string(TakeTreeRequest(FromText<v1::ScoreRequest>(text)).status().message());
  };
  EXPECT_THAT(error_of("continuations { text: 'a' }"), HasSubstr("prompt"));
  EXPECT_THAT(error_of("text: 'a'"), HasSubstr("continuations"));
  EXPECT_THAT(error_of("text: 'a' continuations { text: 'b' } continuations {}"),
              HasSubstr("continuations[1]"));
}

TEST(ConvertRequestTest, TokenizeOpensTheNextTurnUnlessToldOtherwise) {
  const auto opens = [](const char* text) {
    return TakePromptNode(FromText<v1::TokenizeRequest>(text))->generation.has_value();
  };
  EXPECT_TRUE(opens("messages {}"));
  EXPECT_TRUE(opens("messages {} add_generation_prompt: true"));
  EXPECT_FALSE(opens("messages {} add_generation_prompt: false"));
  EXPECT_THAT(std::string(TakePromptNode(v1::TokenizeRequest()).status().message()),
              HasSubstr("input"));
}

TEST(ConvertEventTest, EveryKindOfEvent) {
  const ByteTokenizer tokenizer;
  const EventWriter writer({"root", "leaf"}, &tokenizer);

  const auto started = writer.ToProto(TreeStarted{.tree_id = "ab", .seed = 7});
  EXPECT_EQ(started.tree_started().tree_id(), "ab");
  EXPECT_EQ(started.tree_started().seed(), 7u);

  auto branch =
      writer
          .ToProto(BranchStarted{
              .branch_id = 3, .parent_branch_id = 0, .node = 1, .sample = 2, .fork_token_index = 9})
          .branch_started();
  EXPECT_EQ(branch.branch_id(), 3);
  EXPECT_TRUE(branch.has_parent_branch_id());  // branch 0 is a parent, no absence of one
  EXPECT_EQ(branch.parent_branch_id(), 0);
  EXPECT_EQ(branch.node_id(), "leaf");
  EXPECT_EQ(branch.sample_index(), 2);
  EXPECT_EQ(branch.fork_token_index(), 9);
  branch = writer.ToProto(BranchStarted{.parent_branch_id = -1}).branch_started();
  EXPECT_FALSE(branch.has_parent_branch_id());
  EXPECT_EQ(branch.node_id(), "root");

  StepTokens step;
  step.branches.push_back(
      {.branch_id = 1,
       .text = "hi",
       .token_ids = {'h', 'i'},
       .logprobs = {{.token = 'h', .logprob = -0.5f, .top = {{'h', -0.5f}, {0xC3, -1.5f}}},
                    {.token = 256, .logprob = -2.0f, .top = {}}}});
  step.branches.push_back({.branch_id = 4, .text = {}, .token_ids = {}, .logprobs = {}});
  const auto tokens = writer.ToProto(std::move(step)).tokens();
  ASSERT_EQ(tokens.branches_size(), 2);
  EXPECT_EQ(tokens.branches(0).branch_id(), 1);
  EXPECT_EQ(tokens.branches(0).text(), "hi");
  EXPECT_THAT(tokens.branches(0).token_ids(), ElementsAre('h', 'i'));
  ASSERT_EQ(tokens.branches(0).logprobs_size(), 2);
  const v1::TokenLogprob& logprob = tokens.branches(0).logprobs(0);
  EXPECT_EQ(logprob.token_id(), 'h');
  EXPECT_EQ(logprob.logprob(), -0.5f);
  EXPECT_EQ(logprob.token(), "h");
  ASSERT_EQ(logprob.top_logprobs_size(), 2);
  EXPECT_EQ(logprob.top_logprobs(1).token_id(), 0xC3);
  EXPECT_EQ(logprob.top_logprobs(1).token(), "\xC3");  // half a character: bytes, not text
  EXPECT_EQ(tokens.branches(0).logprobs(1).token(), "");
  EXPECT_EQ(tokens.branches(1).branch_id(), 4);

  const auto finished = writer
                            .ToProto(BranchFinished{.branch_id = 2,
                                                    .reason = FinishReason::kLength,
                                                    .cumulative_logprob = -3.5,
                                                    .completion_tokens = 6,
                                                    .stop_reason = "\n"})
                            .branch_finished();
  EXPECT_EQ(finished.branch_id(), 2);
  EXPECT_EQ(finished.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finished.cumulative_logprob(), -3.5);
  EXPECT_EQ(finished.completion_tokens(), 6);
  EXPECT_EQ(finished.stop_reason(), "\n");
  EXPECT_FALSE(finished.has_score() || finished.has_threshold() || finished.has_rank());
  EXPECT_FALSE(finished.has_answer());

  const auto pruned =
      writer
          .ToProto(BranchFinished{
              .reason = FinishReason::kPruned, .stop_reason = "", .score = -2.0, .threshold = -1.5})
          .branch_finished();
  EXPECT_EQ(pruned.score(), -2.0);
  EXPECT_EQ(pruned.threshold(), -1.5);
  EXPECT_FALSE(pruned.has_rank());
  const auto kept = writer
                        .ToProto(BranchFinished{.stop_reason = "",
                                                .rank = 0,
                                                .answer = "42",
                                                .hypothesis_token_ids = {'h', 'i'},
                                                .hypothesis_text = "hi"})
                        .branch_finished();
  EXPECT_TRUE(kept.has_rank());
  EXPECT_EQ(kept.answer(), "42");
  EXPECT_THAT(kept.hypothesis_token_ids(), ElementsAre('h', 'i'));
  EXPECT_EQ(kept.hypothesis_text(), "hi");

  const auto scored =
      writer
          .ToProto(NodeScored{.node = 1,
                              .parent_branch_id = 5,
                              .logprobs = {{.token = 'x', .logprob = -1, .top = {}}}})
          .node_scored();
  EXPECT_EQ(scored.node_id(), "leaf");
  EXPECT_EQ(scored.parent_branch_id(), 5);
  ASSERT_EQ(scored.logprobs_size(), 1);
  EXPECT_EQ(scored.logprobs(0).token_id(), 'x');

  Usage usage;
  usage.kv_tokens_read_unique = 11;
  const auto last = writer.ToProto(TreeFinished{.status = absl::OkStatus(), .usage = usage});
  EXPECT_EQ(last.tree_finished().usage().kv_tokens_read_unique(), 11);
}

TEST(ConvertEventTest, FinishReasonsAreDistinct) {
  std::set<v1::FinishReason> seen;
  for (FinishReason reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kPruned, FinishReason::kCancelled,
        FinishReason::kDeadline, FinishReason::kError}) {
    const v1::FinishReason wire = ToProto(reason);
    EXPECT_NE(wire, v1::FINISH_REASON_UNSPECIFIED);
    EXPECT_TRUE(seen.insert(wire).second);
  }
  EXPECT_EQ(static_cast<int>(seen.size()), v1::FinishReason_descriptor()->value_count() - 1);
}

// Sets no scalar field twice to the same value, so that a mixed-up or forgotten field shows.
void ExpectAllNumbersSetAndDistinct(const google::protobuf::Message& message) {
  std::set<double> seen;
  const auto* reflection = message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    if (field->is_repeated()) continue;
    double value = 0;
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT32:
        value = reflection->GetInt32(message, field);
        break;
      case FieldDescriptor::CPPTYPE_INT64:
        value = static_cast<double>(reflection->GetInt64(message, field));
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        value = reflection->GetDouble(message, field);
        break;
      default:
        continue;
    }
    EXPECT_NE(value, 0) << field->name() << " was not set";
    EXPECT_TRUE(seen.insert(value).second) << field->name() << " holds another's value";
  }
}

TEST(ConvertInfoTest, EveryCounterArrives) {
  Usage usage;
  usage.prompt_tokens = 1;
  usage.cached_tokens = 2;
  usage.computed_tokens = 3;
  usage.completion_tokens = 4;
  usage.kv_tokens_read_unique = 5;
  usage.kv_tokens_read_logical = 6;
  usage.steps = 7;
  usage.preemptions = 8;
  usage.queue_ms = 9;
  usage.first_token_ms = 10;
  usage.total_ms = 11;
  usage.drafted_tokens = 12;
  usage.accepted_tokens = 13;
  usage.verify_steps = 14;
  const v1::Usage wire = ToProto(usage);
  ExpectAllNumbersSetAndDistinct(wire);
  EXPECT_EQ(wire.cached_tokens(), 2);
  EXPECT_EQ(wire.kv_tokens_read_logical(), 6);
  EXPECT_EQ(wire.total_ms(), 11);
  EXPECT_EQ(wire.drafted_tokens(), 12);
  EXPECT_EQ(wire.verify_steps(), 14);

  EngineStats stats;
  int next = 0;
  for (int64_t* field :
       {&stats.pages_total, &stats.pages_free, &stats.pages_cached, &stats.pages_locked,
        &stats.pages_retiring, &stats.kv_bytes, &stats.trees_finished, &stats.steps,
        &stats.preemptions, &stats.prompt_tokens, &stats.cached_tokens, &stats.computed_tokens,
        &stats.completion_tokens, &stats.kv_tokens_read_unique, &stats.kv_tokens_read_logical,
        &stats.drafted_tokens, &stats.accepted_tokens, &stats.verify_steps}) {
    *field = ++next;
  }
  for (int* field :
       {&stats.page_size, &stats.trees_waiting, &stats.trees_running, &stats.branches_live}) {
    *field = ++next;
  }
  for (double* field : {&stats.schedule_ms, &stats.plan_ms, &stats.forward_ms, &stats.sample_ms,
                        &stats.emit_ms, &stats.draft_ms, &stats.uptime_s}) {
    *field = ++next;
  }
  EngineConfig config;
  config.sharing = Sharing::kTree;
  const v1::GetServerStatsResponse response = ToProto(stats, config);
  ExpectAllNumbersSetAndDistinct(response);
  EXPECT_EQ(response.pages_locked(), 4);
  EXPECT_EQ(response.emit_ms(), stats.emit_ms);
  EXPECT_EQ(response.device(), "cpu");
  EXPECT_EQ(response.sharing(), "tree");
  EXPECT_FALSE(response.version().empty());
}

TEST(ConvertInfoTest, ModelInfoHoldsNoInvalidText) {
  ModelInfo info;
  info.name = "bad \xff name";  // checkpoints may say anything
  info.parameters = 100;
  info.weight_bytes = 101;
  info.max_context = 102;
  info.kv_type = "E4M3";
  info.chat_format = ChatFormat::kChatMl;
  info.config.max_positions = 103;
  info.config.vocab_size = 104;
  info.config.hidden_size = 105;
  info.config.intermediate_size = 106;
  info.config.num_layers = 107;
  info.config.num_heads = 108;
  info.config.num_kv_heads = 109;
  info.config.head_dim = 110;
  info.config.bos_token_id = 0;
  info.config.eos_token_ids = {2, 3};
  info.config.rope.scaling = RopeScaling::kLlama3;
  v1::GetModelInfoResponse response = ToProto(info);
  EXPECT_EQ(response.name(), "bad \xEF\xBF\xBD name");
  EXPECT_TRUE(response.has_bos_token_id());  // 0 is an id, no absence of one
  EXPECT_THAT(response.eos_token_ids(), ElementsAre(2, 3));
  EXPECT_EQ(response.kv_type(), "E4M3");
  EXPECT_EQ(response.chat_format(), "chatml");
  EXPECT_EQ(response.rope().scaling(), "llama3");
  EXPECT_EQ(response.num_kv_heads(), 109);
  response.set_bos_token_id(1);
  ExpectAllNumbersSetAndDistinct(response);

  info.config.bos_token_id = -1;
  EXPECT_FALSE(ToProto(info).has_bos_token_id());
}

TEST(ConvertInfoTest, TreeIsCutAtTheLimit) {
  const std::vector<TreeNodeInfo> nodes = {
      {.parent = -1, .head_text = "a\xC3"},
      {.parent = 0,
       .num_tokens = 5,
       .filled = 4,
       .locks = 3,
       .num_pages = 2,
       .indexed = true,
       .head_text = "b"},
      {.parent = 1, .head_text = "c"},
  };
  v1::DescribeTreeResponse response = ToProto(nodes, 3);
  EXPECT_FALSE(response.truncated());
  ASSERT_EQ(response.nodes_size(), 3);
  EXPECT_FALSE(response.nodes(0).has_parent());
  EXPECT_TRUE(IsValidUtf8(response.nodes(0).head_text()));
  EXPECT_TRUE(response.nodes(1).has_parent());
  EXPECT_EQ(response.nodes(1).num_tokens(), 5);
  EXPECT_EQ(response.nodes(1).num_filled(), 4);
  EXPECT_EQ(response.nodes(1).num_locks(), 3);
  EXPECT_EQ(response.nodes(1).num_pages(), 2);
  EXPECT_TRUE(response.nodes(1).indexed());

  response = ToProto(nodes, 2);
  EXPECT_TRUE(response.truncated());
  EXPECT_EQ(response.nodes_size(), 2);
}

}  // namespace
}  // namespace espalier
