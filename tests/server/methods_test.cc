// The other methods, health and reflection, from end to end.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "tests/server/raw_call.h"
#include "tests/server/server_fixture.h"
#include "tests/server/stream_log.h"

namespace espalier {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class MethodsTest : public ServerFixture {
 protected:
  template <class Request, class Response>
  grpc::Status Call(grpc::Status (v1::TreeDecoder::Stub::*method)(grpc::ClientContext*,
                                                                  const Request&, Response*),
                    const std::string& request, Response* response) {
    grpc::ClientContext context;
    return (stub_.get()->*method)(&context, FromText<Request>(request), response);
  }
};

TEST_F(MethodsTest, ScoreAgreesWithWhatGenerateReported) {
  Start();
  const StreamLog log = Generate(stub_.get(), FromText<v1::GenerateRequest>(R"(
      seed: 3
      root { text: 'The answer' generation { n: 3 max_tokens: 6 ignore_eos: true logprobs: 0 } })"));
  ASSERT_TRUE(log.status.ok()) << log.status.error_message();

  v1::ScoreRequest request;
  request.set_text("The answer");
  request.set_return_token_logprobs(true);
  for (const auto& [id, branch] : log.branches) {
    v1::TokenIds* ids = request.add_continuations()->mutable_token_ids();
    ids->mutable_ids()->Add(branch.token_ids.begin(), branch.token_ids.end());
  }
  grpc::ClientContext context;
  v1::ScoreResponse response;
  const grpc::Status status = stub_->Score(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.scores_size(), 3);
  int i = 0;
  for (const auto& [id, branch] : log.branches) {
    const v1::ContinuationScore& score = response.scores(i++);
    EXPECT_NEAR(score.sum_logprob(), branch.finished->cumulative_logprob(), 1e-3);
    EXPECT_NEAR(score.mean_logprob(), score.sum_logprob() / 6, 1e-9);
    EXPECT_EQ(score.num_tokens(), 6);
    ASSERT_EQ(score.logprobs_size(), 6);
    for (int t = 0; t < 6; ++t) {
      EXPECT_EQ(score.logprobs(t).token_id(), branch.token_ids[t]);
      EXPECT_NEAR(score.logprobs(t).logprob(), branch.logprobs[t], 1e-3);
    }
  }
  EXPECT_GT(response.usage().prompt_tokens(), 0);
  ExpectNothingHeld();
}

TEST_F(MethodsTest, ScoreKeepsTheOrderAndLeavesTokensOutUnlessAsked) {
  Start();
  v1::ScoreResponse response;
  const grpc::Status status = Call(&v1::TreeDecoder::Stub::Score,
                                   "text: 'x' continuations { text: 'abc' } "
                                   "continuations { text: 'a' } continuations { text: 'abcde' }",
                                   &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.scores_size(), 3);
  EXPECT_EQ(response.scores(0).num_tokens(), 3);
  EXPECT_EQ(response.scores(1).num_tokens(), 1);
  EXPECT_EQ(response.scores(2).num_tokens(), 5);
  // 'a' comes first in all three: what is longer is less likely.
  EXPECT_LT(response.scores(2).sum_logprob(), response.scores(0).sum_logprob());
  EXPECT_LT(response.scores(0).sum_logprob(), response.scores(1).sum_logprob());
  EXPECT_EQ(response.scores(0).logprobs_size(), 0);
}

TEST_F(MethodsTest, ScoreErrorsNameTheField) {
  Start();
  v1::ScoreResponse response;
  const auto error_of = [&](const char* request) {
    const grpc::Status status = Call(&v1::TreeDecoder::Stub::Score, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_THAT(error_of(""), HasSubstr("prompt: not set"));
  EXPECT_THAT(error_of("text: 'x'"), HasSubstr("continuations"));
  EXPECT_THAT(error_of("text: 'x' continuations { text: '' }"), HasSubstr("nodes[1]"));
  EXPECT_THAT(error_of("text: 'x' continuations { token_ids { ids: 300 } }"),
              HasSubstr("nodes[1].token_ids[0] is 300"));
}

TEST_F(MethodsTest, TokenizeAndDetokenizeAreInverse) {
  Start();
  v1::TokenizeResponse ids;
  ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::Tokenize, "text: 'h\xC3\xA9'", &ids).ok());
  EXPECT_THAT(ids.token_ids(), ElementsAre('h', 0xC3, 0xA9));

  v1::DetokenizeResponse text;
  ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::Detokenize,
                   "token_ids: 104 token_ids: 195 token_ids: 169", &text)
                  .ok());
  EXPECT_EQ(text.text(), "h\xC3\xA9");
  EXPECT_EQ(text.text_bytes(), "h\xC3\xA9");

  // Half a character: valid text, and the very bytes.
  ASSERT_TRUE(
      Call(&v1::TreeDecoder::Stub::Detokenize, "token_ids: 104 token_ids: 195", &text).ok());
  EXPECT_EQ(text.text(), "h\xEF\xBF\xBD");
  EXPECT_EQ(text.text_bytes(), "h\xC3");
}

TEST_F(MethodsTest, TokenizeErrorsNameTheField) {
  Start();
  v1::TokenizeResponse ids;
  v1::DetokenizeResponse text;
  EXPECT_THAT(Call(&v1::TreeDecoder::Stub::Tokenize, "", &ids).error_message(),
              HasSubstr("input: not set"));
  EXPECT_THAT(Call(&v1::TreeDecoder::Stub::Tokenize,
                   "messages { messages { role: 'user' content: 'a' } }", &ids)
                  .error_message(),
              HasSubstr("chat format"));
  for (const char* bad : {"token_ids: 1 token_ids: 256", "token_ids: 1 token_ids: -1"}) {
    const grpc::Status status = Call(&v1::TreeDecoder::Stub::Detokenize, bad, &text);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("token_ids[1]"));
  }
}

TEST_F(MethodsTest, ModelInfoDescribesTheModel) {
  Start();
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::GetModelInfo, "", &info).ok());
  EXPECT_EQ(info.architecture(), "llama");
  EXPECT_EQ(info.vocab_size(), 256);
  EXPECT_EQ(info.hidden_size(), 48);
  EXPECT_EQ(info.num_layers(), 2);
  EXPECT_EQ(info.num_heads(), 6);
  EXPECT_EQ(info.num_kv_heads(), 2);
  EXPECT_EQ(info.head_dim(), 8);
  EXPECT_EQ(info.max_context(), 512);
  EXPECT_TRUE(info.tied_embeddings());
  EXPECT_GT(info.parameters(), 256 * 48);
  EXPECT_EQ(info.kv_type(), "F32");
  EXPECT_EQ(info.chat_format(), "");
}

TEST_F(MethodsTest, StatsCountWhatRan) {
  Start();
  v1::GetServerStatsResponse before;
  ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::GetServerStats, "", &before).ok());
  EXPECT_EQ(before.trees_finished(), 0);
  EXPECT_EQ(before.device(), "cpu");
  EXPECT_EQ(before.sharing(), "cache");
  EXPECT_GT(before.pages_total(), 0);
  EXPECT_EQ(before.page_size(), 16);

  const StreamLog log = Generate(
      stub_.get(), FromText<v1::GenerateRequest>(
                       "root { text: 'abc' generation { n: 2 max_tokens: 9 ignore_eos: true } }"));
  ASSERT_TRUE(log.status.ok());
  ExpectNothingHeld();
  v1::GetServerStatsResponse after;
  ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::GetServerStats, "", &after).ok());
  EXPECT_EQ(after.trees_finished(), 1);
  EXPECT_EQ(after.completion_tokens(), 18);
  EXPECT_EQ(after.kv_tokens_read_unique(), log.usage->kv_tokens_read_unique());
  EXPECT_GT(after.forward_ms(), 0);
  EXPECT_GE(after.uptime_s(), before.uptime_s());
}

TEST_F(MethodsTest, DescribeTreeShowsTheCallersSaltOnly) {
  Start();
  ASSERT_TRUE(Generate(stub_.get(), FromText<v1::GenerateRequest>(R"(
                  cache_salt: 'alice'
                  root { text: 'the secret of alice is long enough for a page or two'
                         generation { n: 2 max_tokens: 20 ignore_eos: true } })"))
                  .status.ok());
  ExpectNothingHeld();
  v1::DescribeTreeResponse alice;
  ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::DescribeTree, "cache_salt: 'alice'", &alice).ok());
  ASSERT_GT(alice.nodes_size(), 1);
  EXPECT_FALSE(alice.truncated());
  std::string all_text;
  for (int i = 0; i < alice.nodes_size(); ++i) {
    const v1::TreeNode& node = alice.nodes(i);
    EXPECT_EQ(node.num_locks(), 0);
    EXPECT_LE(node.num_filled(), node.num_tokens());
    EXPECT_LT(node.has_parent() ? node.parent() : -1, i);
    all_text += node.head_text();
  }
  EXPECT_THAT(all_text, HasSubstr("the secret"));

  for (const char* other : {"cache_salt: 'bob'", "", "cache_salt: 'alic'"}) {
    v1::DescribeTreeResponse tree;
    ASSERT_TRUE(Call(&v1::TreeDecoder::Stub::DescribeTree, other, &tree).ok());
    for (const v1::TreeNode& node : tree.nodes()) EXPECT_EQ(node.num_tokens(), 0);
  }

  v1::DescribeTreeResponse cut;
  ASSERT_TRUE(
      Call(&v1::TreeDecoder::Stub::DescribeTree, "cache_salt: 'alice' max_nodes: 1", &cut).ok());
  EXPECT_EQ(cut.nodes_size(), 1);
  EXPECT_TRUE(cut.truncated());
  for (const char* bad : {"max_nodes: 0", "max_nodes: -1", "max_nodes: 65537"}) {
    EXPECT_THAT(Call(&v1::TreeDecoder::Stub::DescribeTree, bad, &cut).error_message(),
                HasSubstr("max_nodes"));
  }
}

TEST_F(MethodsTest, CacheIsSharedWithinASaltOnly) {
  Start();
  const auto cached_tokens = [this](const std::string& salt) {
    const StreamLog log =
        Generate(stub_.get(), FromText<v1::GenerateRequest>(
                                  "cache_salt: '" + salt +
                                  "' root { text: 'a prompt that is longer than one page of KV' "
                                  "generation { max_tokens: 1 } }"));
    EXPECT_TRUE(log.status.ok()) << log.status.error_message();
    return log.usage->cached_tokens();
  };
  EXPECT_EQ(cached_tokens("a"), 0);
  EXPECT_GT(cached_tokens("a"), 16);
  EXPECT_EQ(cached_tokens("b"), 0);
}

TEST_F(MethodsTest, HealthAndReflectionAnswer) {
  Start();
  // HealthCheckResponse{status: SERVING} for HealthCheckRequest{}, by hand: there are no stubs.
  std::string answer;
  ASSERT_TRUE(RawUnaryCall(NewChannel(), "/grpc.health.v1.Health/Check", "", &answer).ok());
  EXPECT_EQ(answer, std::string("\x08\x01", 2));

  // ServerReflectionRequest{list_services: ""}.
  const grpc::Status status =
      RawStreamCall(NewChannel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                    std::string("\x3A\x00", 2), &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_THAT(answer, HasSubstr("espalier.v1.TreeDecoder"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
}

}  // namespace
}  // namespace espalier
