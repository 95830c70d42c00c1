// Generate from end to end: a client, gRPC, the server, the engine and a model.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "engine/utf8.h"
#include "tests/server/server_fixture.h"
#include "tests/server/stream_log.h"

namespace espalier {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::StartsWith;

class GenerateTest : public ServerFixture {
 protected:
  StreamLog Run(const std::string& request) {
    return Generate(stub_.get(), FromText<v1::GenerateRequest>(request));
  }
};

// Every token is a byte.
std::string BytesOf(const BranchLog& branch) {
  return std::string(branch.token_ids.begin(), branch.token_ids.end());
}

std::string AsText(const std::string& bytes) {
  std::string text;
  AppendAsUtf8(bytes, &text);
  return text;
}

constexpr char kFewShot[] = R"(
    request_id: 'few-shot' seed: 7
    root {
      id: 'examples' text: '1+1=2\n2+2=4\n'
      children { id: 'q0' text: '3+3='
                 generation { n: 2 max_tokens: 5 ignore_eos: true logprobs: 0 temperature: 0 } }
      children { id: 'q1' text: '44+4='
                 generation { max_tokens: 6 ignore_eos: true logprobs: 0 } }
      children { text: '5+5='
                 generation { n: 3 max_tokens: 1 ignore_eos: true logprobs: 0 } }
    })";

TEST_F(GenerateTest, StreamsAFewShotTree) {
  Start();
  const StreamLog log = Run(kFewShot);
  ASSERT_TRUE(log.status.ok()) << log.status.error_message();
  EXPECT_THAT(log.tree_id, MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(log.seed, 7u);
  ASSERT_EQ(log.branches.size(), 6u);
  for (const auto& [id, branch] : log.branches) {
    SCOPED_TRACE(id);
    EXPECT_FALSE(branch.started.has_parent_branch_id());
    EXPECT_EQ(branch.text, AsText(BytesOf(branch)));
    ASSERT_TRUE(branch.finished.has_value());
    EXPECT_EQ(branch.finished->finish_reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(branch.finished->completion_tokens(), static_cast<int>(branch.token_ids.size()));
    ASSERT_EQ(branch.logprobs.size(), branch.token_ids.size());
    EXPECT_NEAR(std::accumulate(branch.logprobs.begin(), branch.logprobs.end(), 0.0),
                branch.finished->cumulative_logprob(), 1e-4);
  }
  const std::vector<BranchLog> q0 = log.OfNode("q0");
  ASSERT_EQ(q0.size(), 2u);
  EXPECT_EQ(q0[0].started.sample_index(), 0);
  EXPECT_EQ(q0[1].started.sample_index(), 1);
  EXPECT_EQ(q0[0].started.fork_token_index(), 12 + 4);
  EXPECT_EQ(q0[0].token_ids.size(), 5u);
  EXPECT_EQ(q0[0].token_ids, q0[1].token_ids);  // greedy
  ASSERT_EQ(log.OfNode("q1").size(), 1u);
  EXPECT_EQ(log.OfNode("q1")[0].started.fork_token_index(), 12 + 5);
  EXPECT_EQ(log.OfNode("q1")[0].token_ids.size(), 6u);
  EXPECT_EQ(log.OfNode("3").size(), 3u);  // no id: the index

  ASSERT_TRUE(log.usage.has_value());
  EXPECT_EQ(log.usage->completion_tokens(), 2 * 5 + 6 + 3);
  EXPECT_GT(log.usage->prompt_tokens(), 0);
  EXPECT_GT(log.usage->steps(), 0);
  EXPECT_GT(log.usage->kv_tokens_read_unique(), 0);
  EXPECT_LT(log.usage->kv_tokens_read_unique(), log.usage->kv_tokens_read_logical());
  EXPECT_GE(log.usage->total_ms(), log.usage->first_token_ms());
  ExpectNothingHeld();
}

TEST_F(GenerateTest, EqualSeedsGiveEqualTreesAndOthersDoNot) {
  Start();
  const std::string request =
      "root { text: 'ab' generation { n: 4 max_tokens: 20 ignore_eos: true } }";
  const StreamLog first = Run("seed: 1 " + request);
  const StreamLog again = Run("seed: 1 " + request);
  const StreamLog other = Run("seed: 2 " + request);
  ASSERT_EQ(first.branches.size(), 4u);
  bool samples_differ = false;
  bool seeds_differ = false;
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(first.OfNode("0")[i].token_ids, again.OfNode("0")[i].token_ids);
    samples_differ |= first.OfNode("0")[i].token_ids != first.OfNode("0")[0].token_ids;
    seeds_differ |= first.OfNode("0")[i].token_ids != other.OfNode("0")[i].token_ids;
  }
  EXPECT_TRUE(samples_differ);
  EXPECT_TRUE(seeds_differ);

  // An unset seed is drawn, and the echo reproduces it.
  const StreamLog drawn = Run(request);
  const StreamLog replay = Run("seed: " + std::to_string(drawn.seed) + " " + request);
  EXPECT_EQ(drawn.OfNode("0")[3].token_ids, replay.OfNode("0")[3].token_ids);
  EXPECT_NE(Run(request).seed, drawn.seed);
}

TEST_F(GenerateTest, ChildrenContinueEveryBranchOfTheirParent) {
  Start();
  const StreamLog log = Run(R"(
      root { id: 'thought' text: 'think: ' generation { n: 3 max_tokens: 4 ignore_eos: true }
             children { id: 'answer' text: ' so '
                        generation { n: 2 max_tokens: 3 ignore_eos: true } } })");
  ASSERT_TRUE(log.status.ok()) << log.status.error_message();
  const std::vector<BranchLog> thoughts = log.OfNode("thought");
  const std::vector<BranchLog> answers = log.OfNode("answer");
  ASSERT_EQ(thoughts.size(), 3u);
  ASSERT_EQ(answers.size(), 6u);
  for (const BranchLog& thought : thoughts) {
    EXPECT_EQ(2, std::count_if(answers.begin(), answers.end(), [&](const BranchLog& answer) {
                return answer.started.has_parent_branch_id() &&
                       answer.started.parent_branch_id() == thought.started.branch_id();
              }));
  }
  EXPECT_EQ(answers[0].started.fork_token_index(), 7 + 4 + 4);
}

TEST_F(GenerateTest, TokenIdsAreTakenAsTheyAre) {
  Start();
  const std::string generation = "generation { temperature: 0 max_tokens: 8 ignore_eos: true } }";
  const StreamLog text = Run("root { text: 'AB' " + generation);
  const StreamLog ids = Run("root { token_ids { ids: 65 ids: 66 } " + generation);
  ASSERT_TRUE(ids.status.ok()) << ids.status.error_message();
  EXPECT_EQ(text.OfNode("0")[0].token_ids, ids.OfNode("0")[0].token_ids);
}

TEST_F(GenerateTest, StopStringsAndStopTokensEndABranch) {
  Start();
  const auto run = [this](const std::string& fields) {
    return Run("root { text: 'Zz' generation { temperature: 0 max_tokens: 40 ignore_eos: true " +
               fields + " } }")
        .OfNode("0")
        .at(0);
  };
  const BranchLog free = run("");
  ASSERT_EQ(free.token_ids.size(), 40u);

  // A token of the run that has not come before in it.
  size_t at = 1;
  while (at < 40 && std::find(free.token_ids.begin(), free.token_ids.begin() + at,
                              free.token_ids[at]) != free.token_ids.begin() + at) {
    ++at;
  }
  ASSERT_LT(at, 40u);
  const std::string id = std::to_string(free.token_ids[at]);
  const BranchLog stopped = run("stop_token_ids: " + id);
  ASSERT_TRUE(stopped.finished.has_value());
  EXPECT_EQ(stopped.finished->finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped.finished->stop_reason(), id);
  EXPECT_LE(stopped.token_ids.size(), at + 1);
  EXPECT_EQ(stopped.text, AsText(std::string(free.token_ids.begin(), free.token_ids.begin() + at)));
}

TEST_F(GenerateTest, MaxTokensIsCappedByTheContextWhenUnset) {
  EngineConfig config = DefaultConfig();
  config.max_context = 32;
  Start(config);
  const StreamLog log = Run("root { text: '0123456789' generation { ignore_eos: true } }");
  ASSERT_TRUE(log.status.ok()) << log.status.error_message();
  EXPECT_LE(log.num_tokens(), 22);
  EXPECT_GE(log.num_tokens(), 21);
  EXPECT_EQ(log.branches.at(0).finished->finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerateTest, ScoredNodesComeWithTheTree) {
  Start();
  const StreamLog log = Run(R"(
      root { text: 'Q' generation { n: 2 max_tokens: 2 ignore_eos: true }
             children { id: 's' text: 'yes' score: true } })");
  ASSERT_TRUE(log.status.ok()) << log.status.error_message();
  ASSERT_EQ(log.scored.size(), 2u);  // one for each branch above
  for (const v1::NodeScored& scored : log.scored) {
    EXPECT_EQ(scored.node_id(), "s");
    EXPECT_TRUE(scored.has_parent_branch_id());
    ASSERT_EQ(scored.logprobs_size(), 3);
    EXPECT_EQ(scored.logprobs(0).token_id(), 'y');
    EXPECT_EQ(scored.logprobs(0).token(), "y");
    EXPECT_LT(scored.logprobs(0).logprob(), 0);
  }
  EXPECT_NE(log.scored[0].parent_branch_id(), log.scored[1].parent_branch_id());
}

TEST_F(GenerateTest, ManyTreesAtOnceAllArrive) {
  Start();
  const v1::GenerateRequest request = FromText<v1::GenerateRequest>(kFewShot);
  const StreamLog alone = Generate(stub_.get(), request);
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&] {
      const auto stub = NewStub();
      for (int i = 0; i < 25; ++i) {
        const StreamLog log = Generate(stub.get(), request);
        ASSERT_TRUE(log.status.ok()) << log.status.error_message();
        EXPECT_EQ(log.usage->completion_tokens(), 19);
        // Batch mates do not change what a greedy branch says.
        EXPECT_EQ(log.OfNode("q0")[0].token_ids, alone.OfNode("q0")[0].token_ids);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingHeld();
}

TEST_F(GenerateTest, ClientCancelsItsTree) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, LongRequest());
  v1::GenerateEvent event;
  do {
    ASSERT_TRUE(reader->Read(&event));
  } while (!event.has_tokens());
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingHeld();
  EXPECT_LT(engine_->Stats().completion_tokens, 200 * 480);
}

TEST_F(GenerateTest, DeadlineEndsATree) {
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
  const StreamLog log = ReadAll(stub_->Generate(&context, LongRequest()).get());
  EXPECT_EQ(log.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectNothingHeld();
  EXPECT_LT(engine_->Stats().completion_tokens, 200 * 480);
}

TEST_F(GenerateTest, AbortEndsATreeOfAnotherConnection) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, LongRequest());
  StreamLog log;
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  log.Add(event);

  v1::AbortRequest abort;
  abort.set_tree_id(log.tree_id);
  v1::AbortResponse response;
  const auto other = NewStub();
  {
    grpc::ClientContext abort_context;
    const grpc::Status status = other->Abort(&abort_context, abort, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  while (reader->Read(&event)) log.Add(event);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(log.usage.has_value());  // the stream itself was not cut
  for (const auto& [id, branch] : log.branches) {
    EXPECT_EQ(branch.finished->finish_reason(), v1::FINISH_REASON_CANCELLED);
  }
  ExpectNothingHeld();
  // The engine forgets the id just after it has said that the tree ended.
  EXPECT_TRUE(Eventually([&] {
    grpc::ClientContext again;
    return other->Abort(&again, abort, &response).error_code() == grpc::StatusCode::NOT_FOUND;
  }));
  {
    grpc::ClientContext empty;
    EXPECT_EQ(other->Abort(&empty, v1::AbortRequest(), &response).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(GenerateTest, ErrorsNameTheField) {
  Start();
  const struct {
    const char* request;
    const char* expected;
  } cases[] = {
      {"", "root: not set"},
      {"root { text: 'a' }", "nodes[0]"},
      {"root { text: 'a' generation { n: 0 } }", "generation.n is 0"},
      {"root { text: 'a' generation { n: 257 } }", "256"},
      {"root { text: 'a' generation { max_tokens: 0 } }", "generation.max_tokens is 0"},
      {"root { text: 'a' generation { max_tokens: 513 } }", "512"},
      {"root { text: 'a' generation { temperature: -1 } }", "generation.temperature is -1"},
      {"root { text: 'a' generation { temperature: nan } }", "generation.temperature is nan"},
      {"root { text: 'a' generation { top_p: 0 } }", "generation.top_p is 0"},
      {"root { text: 'a' generation { logprobs: 21 } }", "generation.logprobs is 21"},
      {"root { text: 'a' generation { stop: '' } }", "generation.stop[0]"},
      {"root { token_ids { ids: 256 } generation {} }", "token_ids[0] is 256"},
      {"root { token_ids { ids: -1 } generation {} }", "token_ids[0] is -1"},
      {"root { messages { messages { role: 'user' } } generation {} }", "chat format"},
      {"root { text: 'a' children { id: 'x' text: 'b' generation {} } "
       "children { id: 'x' text: 'b' generation {} } }",
       "nodes[2].id is \"x\""},
      {"root { text: 'a' generation {} children { generation {} } }", "nodes[1]"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.request);
    const StreamLog log = Run(c.request);
    EXPECT_EQ(log.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(log.status.error_message(), HasSubstr(c.expected));
    EXPECT_EQ(log.num_events, 0);
  }
  ExpectNothingHeld();
}

TEST_F(GenerateTest, DepthIsLimitedByTheEngineFirst) {
  Start();
  const auto nested = [](int depth) {
    v1::GenerateRequest request;
    v1::PromptNode* node = request.mutable_root();
    node->set_text("a");
    for (int i = 1; i < depth; ++i) {
      node = node->add_children();
      node->set_text("b");
    }
    node->mutable_generation()->set_max_tokens(1);
    return request;
  };
  EXPECT_TRUE(Generate(stub_.get(), nested(64)).status.ok());
  EXPECT_THAT(Generate(stub_.get(), nested(65)).status.error_message(), HasSubstr("depth"));
  EXPECT_THAT(Generate(stub_.get(), nested(96)).status.error_message(), HasSubstr("nested"));
}

}  // namespace
}  // namespace espalier
