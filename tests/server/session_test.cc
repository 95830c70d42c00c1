#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "tests/server/server_fixture.h"
#include "tests/server/stream_log.h"

namespace espalier {
namespace {

using testing::HasSubstr;

class SessionTest : public ServerFixture {
 protected:
  // A stream whose commands are sent one at a time.
  struct Client {
    explicit Client(v1::TreeDecoder::Stub* stub) : stream(stub->Session(&context)) {}

    // Sends the command and reads to its last event. `progress` gathers what Generate says.
    v1::SessionEvent Run(const std::string& text) {
      auto command = FromText<v1::SessionCommand>(text);
      command.set_command_id(++last_id);
      EXPECT_TRUE(stream->Write(command));
      return ReadLast(last_id);
    }
    v1::SessionEvent ReadLast(uint64_t id) {
      v1::SessionEvent event;
      while (stream->Read(&event)) {
        EXPECT_EQ(event.command_id(), id);
        if (event.has_progress()) {
          for (const auto& moved : event.progress().tokens().branches()) {
            for (int token : moved.token_ids()) generated[moved.branch_id()].push_back(token);
          }
        }
        if (event.has_done() || event.has_failed()) return event;
      }
      ADD_FAILURE() << "the stream ended";
      return event;
    }

    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReaderWriter<v1::SessionCommand, v1::SessionEvent>> stream;
    uint64_t last_id = 0;
    std::map<int, std::vector<int>> generated;
  };
};

constexpr char kGreedy[] = "generation { max_tokens: 6 temperature: 0 ignore_eos: true }";

TEST_F(SessionTest, GrowsATreeWhoseBranchesEqualFreshRequests) {
  Start();
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open { seed: 3 }").has_done());
  const std::string prompt = "the quick brown fox jumps over the lazy dog";
  ASSERT_TRUE(client.Run("append { text: '" + prompt + "' }").has_done());
  ASSERT_TRUE(client.Run("append { branch_id: 0 text: ' and' }").has_done());
  ASSERT_TRUE(client.Run("append { branch_id: 0 text: ' but' }").has_done());
  const auto grown = client.Run(std::string("generate { branch_ids: [1, 2] ") + kGreedy + "}");
  ASSERT_TRUE(grown.has_done()) << grown.failed().message();
  ASSERT_EQ(grown.done().branches_size(), 2);
  EXPECT_EQ(grown.done().branches(0).num_tokens(), 4 + 6);
  for (const auto& branch : grown.done().branches()) {
    const StreamLog fresh = Generate(
        stub_.get(), FromText<v1::GenerateRequest>("cache_salt: 'fresh' root { text: '" + prompt +
                                                   (branch.branch_id() == 1 ? " and" : " but") +
                                                   "' " + kGreedy + "}"));
    ASSERT_EQ(fresh.branches.size(), 1u);
    EXPECT_EQ(client.generated[branch.run_branch_id()], fresh.branches.at(0).token_ids);
  }
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked > 0; }));
  const auto scored =
      client.Run("score { branch_id: 1 continuations { text: 'a' } continuations { text: 'bc' } }");
  ASSERT_TRUE(scored.has_done()) << scored.failed().message();
  EXPECT_EQ(scored.done().scores_size(), 2);
  EXPECT_GT(scored.done().usage().cached_tokens(), 40);
  EXPECT_TRUE(client.Run("rollback { branch_id: 1 tokens: 6 }").has_done());
  EXPECT_TRUE(client.Run("join { branch_id: 2 under_branch_id: 1 }").has_done());
  EXPECT_TRUE(client.Run("prune { branch_ids: 2 }").has_done());
  const auto snapshot = client.Run("snapshot {}").done();
  ASSERT_EQ(snapshot.branches_size(), 3);
  EXPECT_EQ(snapshot.branches(2).path_tokens(), 43 + 4 + 10);
  EXPECT_TRUE(client.Run("close {}").has_done());
  EXPECT_TRUE(client.stream->Finish().ok());
  ExpectNothingHeld();
}

TEST_F(SessionTest, PrefillComputesThePathBeforeItIsNeeded) {
  Start();
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open {}").has_done());
  const std::string text = "sixty-four bytes of a text that nobody has asked about until now!!";
  ASSERT_TRUE(client.Run("append { text: '" + text + "' prefill: true }").has_done());
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().trees_finished == 1; }));
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked > 0; }));
  const auto grown = client.Run(std::string("generate { branch_ids: 0 ") + kGreedy + "}");
  ASSERT_TRUE(grown.has_done()) << grown.failed().message();
  EXPECT_GE(grown.done().usage().cached_tokens(), 63);
  // A joined branch's KV is another's: it is computed at once. Commands on it need not wait.
  ASSERT_TRUE(client.Run("append { branch_id: 0 text: ' and more' }").has_done());
  ASSERT_TRUE(client.Run("append { branch_id: 0 text: ' or less' }").has_done());
  ASSERT_TRUE(client.Run("join { branch_id: 1 under_branch_id: 2 }").has_done());
  ASSERT_TRUE(client.Run("prune { branch_ids: 3 }").has_done());
  ASSERT_TRUE(client.Run("join { branch_id: 1 under_branch_id: 2 prefill: false }").has_done());
  EXPECT_TRUE(client.Run("close {}").has_done());
  EXPECT_TRUE(client.stream->Finish().ok());
  EXPECT_EQ(engine_->Stats().trees_finished, 3);
  ExpectNothingHeld();
}

TEST_F(SessionTest, AnInvalidCommandFailsAlone) {
  Start();
  Client client(stub_.get());
  EXPECT_EQ(client.Run("snapshot {}").failed().code(), grpc::StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(client.Run("open {}").has_done());
  EXPECT_EQ(client.Run("fork { branch_id: 7 }").failed().code(), grpc::StatusCode::NOT_FOUND);
  ASSERT_TRUE(client.Run("append { text: 'abc' }").has_done());
  EXPECT_THAT(client.Run("rollback { branch_id: 0 tokens: 3 }").failed().message(),
              HasSubstr("rollback.tokens is 3; must be from 1 to 2"));
  EXPECT_THAT(client.Run("generate { branch_ids: 0 generation { top_p: 2 } }").failed().message(),
              HasSubstr("generation.top_p is 2"));
  EXPECT_TRUE(client.Run(std::string("generate { branch_ids: 0 ") + kGreedy + "}").has_done());
  client.stream->WritesDone();
  EXPECT_TRUE(client.stream->Finish().ok());
  ExpectNothingHeld();
}

TEST_F(SessionTest, LosingTheStreamLetsGo) {
  Start();
  {
    Client client(stub_.get());
    ASSERT_TRUE(client.Run("open {}").has_done());
    ASSERT_TRUE(client.Run("append { text: 'once upon a time there was a king' }").has_done());
    ASSERT_TRUE(client.Run(std::string("generate { branch_ids: 0 ") + kGreedy + "}").has_done());
    client.context.TryCancel();
    client.stream->Finish();
  }
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked == 0; }));
  ExpectNothingHeld();
}

TEST_F(SessionTest, AnIdleSessionsKvCanBeEvictedAndComesBack) {
  Start();
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open { idle_timeout_ms: 20 }").has_done());
  ASSERT_TRUE(client.Run("append { text: 'once upon a time there was a king' }").has_done());
  const std::string generate = std::string("generate { branch_ids: 0 ") + kGreedy + "}";
  ASSERT_TRUE(client.Run(generate).has_done());
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked == 0; }));
  const auto again = client.Run(generate);
  ASSERT_TRUE(again.has_done()) << again.failed().message();
  EXPECT_EQ(again.done().branches(0).path_tokens(), 33 + 12);
}

TEST_F(SessionTest, WhatRunsTakesAnIdleSessionsKvWhenPagesAreScarce) {
  EngineConfig config = DefaultConfig();
  config.kv_memory_bytes = 160 << 10;
  Start(config);
  ASSERT_EQ(engine_->Stats().pages_total, 40);
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open {}").has_done());
  ASSERT_TRUE(client.Run("append { text: '" + std::string(400, 'a') + "' }").has_done());
  const std::string generate = std::string("generate { branch_ids: 0 ") + kGreedy + "}";
  ASSERT_TRUE(client.Run(generate).has_done());
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked == 26; }));
  const StreamLog other =
      Generate(stub_.get(), FromText<v1::GenerateRequest>("root { text: '" + std::string(300, 'b') +
                                                          "' " + kGreedy + "}"));
  EXPECT_TRUE(other.status.ok()) << other.status.error_message();
  EXPECT_EQ(other.usage->preemptions(), 0);
  const auto again = client.Run(generate);
  ASSERT_TRUE(again.has_done()) << again.failed().message();
  EXPECT_GT(again.done().usage().computed_tokens(), 50);
}

TEST_F(SessionTest, PrunedAndRolledBackBranchesLetGo) {
  Start();
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open { seed: 3 }").has_done());
  ASSERT_TRUE(client.Run("append { text: 'once upon a time there was a king' }").has_done());
  ASSERT_TRUE(client
                  .Run("generate { branch_ids: 0 generation { n: 4 max_tokens: 40 ignore_eos: true "
                       "} }")
                  .has_done());
  // Three pages of the prompt, and three of each branch.
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked == 15; }));
  EXPECT_TRUE(client.Run("prune { branch_ids: [1, 2, 3] }").has_done());
  // The branch that is left may have its first token in a sibling's page.
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked <= 7; }));
  EXPECT_TRUE(client.Run("prune { branch_ids: 0 }").has_done());
  EXPECT_TRUE(Eventually([&] { return engine_->Stats().pages_locked == 0; }));
}

TEST_F(SessionTest, LimitsAreNamed) {
  EngineConfig config = DefaultConfig();
  config.limits.max_sessions = 1;
  config.limits.session = {
      .max_branches = 3, .max_tokens = 50, .max_depth = 2, .max_queued_commands = 2};
  Start(config);
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open {}").has_done());
  EXPECT_EQ(client.Run("open {}").failed().code(), grpc::StatusCode::FAILED_PRECONDITION);
  Client second(stub_.get());
  const grpc::Status refused = second.stream->Finish();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("1 sessions are open; must be below 1"));

  EXPECT_EQ(client.Run("append { text: '' }").failed().code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(client.Run("append {}").failed().message(), HasSubstr("append.content: not set"));
  EXPECT_THAT(client.Run("append { token_ids { ids: [1, 256] } }").failed().message(),
              HasSubstr("256"));
  EXPECT_TRUE(client.Run("append { text: '" + std::string(50, 'a') + "' }").has_done());
  EXPECT_THAT(client.Run("append { branch_id: 0 text: 'b' }").failed().message(),
              HasSubstr("51 tokens over all branches; must be at most 50"));
  EXPECT_THAT(client.Run("fork { branch_id: 0 n: 3 }").failed().message(),
              HasSubstr("4 branches; must be at most 3"));
  EXPECT_THAT(client.Run("fork { branch_id: 0 n: -1 }").failed().message(),
              HasSubstr("fork.n is -1; must be from 1 to 3"));
  EXPECT_EQ(client.Run("generate { branch_ids: 0 generation { n: 3 } }").failed().code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(client.Run("generate {}").failed().message(), HasSubstr("generate.branches is 0"));
  EXPECT_THAT(client.Run("score { branch_id: 0 }").failed().message(), HasSubstr("continuations"));
  EXPECT_EQ(client.Run("").failed().code(), grpc::StatusCode::INVALID_ARGUMENT);

  // Behind one that runs, two can wait.
  ASSERT_TRUE(client.Run("rollback { branch_id: 0 tokens: 40 }").has_done());
  auto command = FromText<v1::SessionCommand>(
      "generate { branch_ids: 0 generation { max_tokens: 30 ignore_eos: true } }");
  int failed = 0;
  for (int id = 100; id < 110; ++id) {
    command.set_command_id(id);
    ASSERT_TRUE(client.stream->Write(command));
  }
  v1::SessionEvent event;
  for (int answers = 0; answers < 10 && client.stream->Read(&event);) {
    if (event.has_failed()) ++failed;
    if (event.has_failed() || event.has_done()) ++answers;
  }
  EXPECT_GE(failed, 7);
  EXPECT_TRUE(client.Run("snapshot {}").has_done());
}

TEST_F(SessionTest, AbortEndsItAtOnce) {
  Start();
  Client client(stub_.get());
  client.stream->Write(FromText<v1::SessionCommand>("open {}"));
  v1::SessionEvent event;
  ASSERT_TRUE(client.stream->Read(&event));
  v1::AbortRequest request;
  request.set_tree_id(event.opened().session_id());
  ASSERT_TRUE(client.stream->Read(&event));
  ASSERT_TRUE(client.Run("append { text: 'once upon a time' }").has_done());
  client.stream->Write(FromText<v1::SessionCommand>(
      "generate { branch_ids: 0 generation { n: 200 max_tokens: 480 ignore_eos: true } }"));
  ASSERT_TRUE(client.stream->Read(&event));
  grpc::ClientContext context;
  v1::AbortResponse response;
  ASSERT_TRUE(stub_->Abort(&context, request, &response).ok());
  while (client.stream->Read(&event)) {
  }
  EXPECT_EQ(client.stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  ExpectNothingHeld();
}

TEST_F(SessionTest, DrainEndsIdleSessions) {
  Start();
  Client client(stub_.get());
  ASSERT_TRUE(client.Run("open {}").has_done());
  server_->Drain(absl::Seconds(5));
  EXPECT_EQ(client.stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace espalier
