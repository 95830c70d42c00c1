// Many clients at once, each with a random session of valid and invalid commands, some of which
// vanish. A client keeps a copy of its tree by what the events say; the server must agree with it,
// and what was generated must equal a fresh request.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/server_fixture.h"
#include "tests/server/stream_log.h"

namespace espalier {
namespace {

using Tokens = std::vector<int>;

class RandomClient {
 public:
  // A greedy generation that can be repeated.
  struct Generated {
    Tokens path;
    Tokens tokens;
  };

  RandomClient(v1::TreeDecoder::Stub* stub, uint32_t seed)
      : random_(seed), stream_(stub->Session(&context_)) {}

  // Ends with Close, with the end of the commands, or by vanishing.
  void Run(int num_commands) {
    Send([&](v1::SessionCommand& command) { command.mutable_open()->set_seed(random_()); });
    Drain(0);
    for (int i = 0; i < num_commands && !testing::Test::HasFailure(); ++i) {
      SendRandom();
      Drain(random_() % 4);
    }
    switch (random_() % 4) {
      case 0:
        context_.TryCancel();
        EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::CANCELLED);
        return;
      case 1:
        Drain(0);
        Send([](v1::SessionCommand& command) { command.mutable_snapshot(); });
        Drain(0);
        stream_->WritesDone();
        break;
      default:
        Drain(0);
        Send([](v1::SessionCommand& command) { command.mutable_snapshot(); });
        Send([](v1::SessionCommand& command) { command.mutable_close(); });
        Drain(0);
        break;
    }
    v1::SessionEvent extra;
    EXPECT_FALSE(stream_->Read(&extra)) << extra.ShortDebugString();
    const grpc::Status status = stream_->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  const std::vector<Generated>& generated() const { return generated_; }
  int num_failed() const { return num_failed_; }
  int num_done() const { return num_done_; }

 private:
  struct Branch {
    int parent = -1;
    Tokens path;
    int own = 0;
  };

  template <class Fill>
  void Send(Fill fill) {
    v1::SessionCommand command;
    command.set_command_id(++last_id_);
    fill(command);
    in_flight_[last_id_] = {command, {}};
    EXPECT_TRUE(stream_->Write(command));
  }

  int AnyBranch() { return static_cast<int>(random_() % (next_branch_ + 1)); }

  void SendRandom() {
    Send([&](v1::SessionCommand& command) {
      switch (random_() % 12) {
        case 0:
        case 1: {
          v1::AppendTokens& append = *command.mutable_append();
          if (next_branch_ > 0 && random_() % 6 != 0) append.set_branch_id(AnyBranch());
          for (uint32_t i = random_() % 60; i > 0; --i) {
            append.mutable_token_ids()->add_ids(static_cast<int>(97 + random_() % 3));
          }
          append.set_prefill(random_() % 3 == 0);
          break;
        }
        case 2:
          command.mutable_fork()->set_branch_id(AnyBranch());
          command.mutable_fork()->set_n(static_cast<int>(random_() % 4));
          break;
        case 3:
        case 4:
        case 5: {
          v1::GenerateBranches& generate = *command.mutable_generate();
          generate.add_branch_ids(AnyBranch());
          if (random_() % 2 == 0) generate.add_branch_ids(AnyBranch());
          generate.mutable_generation()->set_max_tokens(1 + static_cast<int>(random_() % 12));
          generate.mutable_generation()->set_ignore_eos(true);
          if (random_() % 3 == 0) {
            generate.mutable_generation()->set_n(3);
            if (random_() % 2 == 0) {
              generate.mutable_generation()->mutable_best_of_n()->set_keep(2);
            }
          } else {
            generate.mutable_generation()->set_temperature(0);
          }
          break;
        }
        case 6:
          command.mutable_score()->set_branch_id(AnyBranch());
          command.mutable_score()->add_continuations()->set_text("ab");
          command.mutable_score()->add_continuations()->set_text("c");
          break;
        case 7:
          if (random_() % 2 == 0) command.mutable_prune()->add_branch_ids(AnyBranch());
          break;
        case 8:
        case 9:
          command.mutable_rollback()->set_branch_id(AnyBranch());
          command.mutable_rollback()->set_tokens(static_cast<int>(random_() % 5));
          break;
        case 10:
          command.mutable_join()->set_branch_id(AnyBranch());
          command.mutable_join()->set_under_branch_id(AnyBranch());
          if (random_() % 4 == 0) command.mutable_join()->set_prefill(false);
          break;
        case 11:
          command.mutable_snapshot();
          break;
      }
    });
  }

  // Reads until no more than `left` commands are unanswered.
  void Drain(size_t left) {
    v1::SessionEvent event;
    while (in_flight_.size() > left) {
      if (!stream_->Read(&event)) {
        ADD_FAILURE() << "the stream ended";
        return;
      }
      const auto sent = in_flight_.find(event.command_id());
      ASSERT_NE(sent, in_flight_.end()) << event.ShortDebugString();
      if (event.has_progress()) {
        sent->second.log.Add(event.progress());
        continue;
      }
      if (event.has_opened()) continue;
      if (event.has_failed()) {
        ++num_failed_;
        EXPECT_FALSE(MustSucceed(sent->second.command))
            << sent->second.command.ShortDebugString() << event.failed().message();
        EXPECT_NE(event.failed().message(), "");
      } else {
        ++num_done_;
        Apply(sent->second.command, sent->second.log, event.done());
      }
      in_flight_.erase(sent);
    }
  }

  int Children(int id) const {
    return static_cast<int>(std::ranges::count_if(
        branches_, [&](const auto& entry) { return entry.second.parent == id; }));
  }

  // Commands whose outcome only the tree decides.
  bool MustSucceed(const v1::SessionCommand& command) const {
    if (command.has_prune()) return branches_.contains(command.prune().branch_ids(0));
    if (command.has_fork()) {
      return branches_.contains(command.fork().branch_id()) && command.fork().n() > 0;
    }
    if (command.has_rollback()) {
      const auto found = branches_.find(command.rollback().branch_id());
      return found != branches_.end() && Children(found->first) == 0 &&
             command.rollback().tokens() > 0 && command.rollback().tokens() < found->second.own;
    }
    return command.has_snapshot();
  }

  void Add(const v1::SessionBranch& branch, const Tokens& own) {
    const int parent = branch.has_parent_branch_id() ? branch.parent_branch_id() : -1;
    Tokens path;
    if (parent >= 0) {
      ASSERT_TRUE(branches_.contains(parent));
      path = branches_.at(parent).path;
    }
    path.insert(path.end(), own.begin(), own.end());
    EXPECT_EQ(branch.num_tokens(), static_cast<int>(own.size()));
    EXPECT_EQ(branch.path_tokens(), static_cast<int>(path.size()));
    EXPECT_TRUE(
        branches_.emplace(branch.branch_id(), Branch{parent, path, static_cast<int>(own.size())})
            .second);
    next_branch_ = std::max(next_branch_, branch.branch_id() + 1);
  }

  void Apply(const v1::SessionCommand& command, const StreamLog& log, const v1::CommandDone& done) {
    switch (command.command_case()) {
      case v1::SessionCommand::kAppend: {
        const auto& ids = command.append().token_ids().ids();
        Add(done.branches(0), Tokens(ids.begin(), ids.end()));
        break;
      }
      case v1::SessionCommand::kFork:
        EXPECT_EQ(done.branches_size(), command.fork().n());
        for (const v1::SessionBranch& branch : done.branches()) Add(branch, {});
        break;
      case v1::SessionCommand::kGenerate:
        Generated(command.generate(), log, done);
        break;
      case v1::SessionCommand::kScore:
        EXPECT_EQ(done.scores_size(), 2);
        EXPECT_EQ(done.scores(0).num_tokens(), 2);
        break;
      case v1::SessionCommand::kPrune:
        Prune(command.prune().branch_ids(0));
        break;
      case v1::SessionCommand::kRollback: {
        Branch& branch = branches_.at(command.rollback().branch_id());
        branch.path.resize(branch.path.size() - command.rollback().tokens());
        branch.own -= command.rollback().tokens();
        break;
      }
      case v1::SessionCommand::kJoin: {
        const Branch& copied = branches_.at(command.join().branch_id());
        Add(done.branches(0), Tokens(copied.path.end() - copied.own, copied.path.end()));
        break;
      }
      case v1::SessionCommand::kSnapshot:
        ExpectEqual(done);
        break;
      default:
        break;
    }
  }

  void Generated(const v1::GenerateBranches& generate, const StreamLog& log,
                 const v1::CommandDone& done) {
    const bool in_place = generate.generation().n() < 2;
    EXPECT_GT(done.usage().completion_tokens(), 0);
    for (const v1::SessionBranch& branch : done.branches()) {
      const Tokens& tokens = log.branches.at(branch.run_branch_id()).token_ids;
      if (!in_place) {
        Add(branch, tokens);
        continue;
      }
      Branch& leaf = branches_.at(branch.branch_id());
      generated_.push_back({leaf.path, tokens});
      leaf.path.insert(leaf.path.end(), tokens.begin(), tokens.end());
      leaf.own += static_cast<int>(tokens.size());
      EXPECT_EQ(branch.num_tokens(), leaf.own);
    }
    const size_t leaves = generate.branch_ids_size();
    const size_t kept = in_place ? 1 : generate.generation().has_best_of_n() ? 2 : 3;
    EXPECT_EQ(done.branches_size(), static_cast<int>(leaves * kept));
  }

  void Prune(int id) {
    for (int other = id + 1; other < next_branch_; ++other) {
      if (branches_.contains(other) && branches_.at(other).parent == id) Prune(other);
    }
    branches_.erase(id);
  }

  void ExpectEqual(const v1::CommandDone& snapshot) const {
    ASSERT_EQ(snapshot.branches_size(), static_cast<int>(branches_.size()));
    for (const v1::SessionBranch& branch : snapshot.branches()) {
      const auto found = branches_.find(branch.branch_id());
      ASSERT_NE(found, branches_.end());
      EXPECT_EQ(branch.has_parent_branch_id() ? branch.parent_branch_id() : -1,
                found->second.parent);
      EXPECT_EQ(branch.num_tokens(), found->second.own);
      EXPECT_EQ(branch.path_tokens(), static_cast<int>(found->second.path.size()));
      EXPECT_EQ(branch.num_children(), Children(branch.branch_id()));
    }
  }

  struct Sent {
    v1::SessionCommand command;
    StreamLog log;
  };

  std::mt19937 random_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::SessionCommand, v1::SessionEvent>> stream_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Sent> in_flight_;
  std::map<int, Branch> branches_;
  int next_branch_ = 0;
  std::vector<struct Generated> generated_;
  int num_failed_ = 0;
  int num_done_ = 0;
};

class SessionFuzzTest : public ServerFixture {
 protected:
  void RunClients(int num_clients, int num_commands) {
    const uint32_t seed = std::random_device{}();
    SCOPED_TRACE(seed);
    std::vector<std::unique_ptr<v1::TreeDecoder::Stub>> stubs;
    std::vector<std::unique_ptr<RandomClient>> clients;
    for (int i = 0; i < num_clients; ++i) {
      stubs.push_back(NewStub());
      clients.push_back(std::make_unique<RandomClient>(stubs.back().get(), seed + i));
    }
    std::vector<std::thread> threads;
    for (const auto& client : clients) {
      threads.emplace_back([&client, num_commands] { client->Run(num_commands); });
    }
    for (std::thread& thread : threads) thread.join();
    ExpectNothingHeld();

    int done = 0;
    int failed = 0;
    int replayed = 0;
    for (const auto& client : clients) {
      done += client->num_done();
      failed += client->num_failed();
      for (const auto& generated : client->generated()) {
        v1::GenerateRequest fresh;
        fresh.set_cache_salt(std::to_string(replayed++));
        fresh.mutable_root()->mutable_token_ids()->mutable_ids()->Add(generated.path.begin(),
                                                                      generated.path.end());
        v1::Generation& generation = *fresh.mutable_root()->mutable_generation();
        generation.set_temperature(0);
        generation.set_ignore_eos(true);
        generation.set_max_tokens(static_cast<int>(generated.tokens.size()));
        const StreamLog log = Generate(stub_.get(), fresh);
        ASSERT_TRUE(log.status.ok()) << log.status.error_message();
        ASSERT_EQ(log.branches.at(0).token_ids, generated.tokens);
      }
    }
    EXPECT_GT(done, num_clients * num_commands / 4);
    EXPECT_GT(failed, num_clients * num_commands / 20);
    EXPECT_GT(replayed, num_clients * num_commands / 100);
  }
};

TEST_F(SessionFuzzTest, EqualsFreshRequests) {
  Start();
  RunClients(8, 150);
}

TEST_F(SessionFuzzTest, EqualsFreshRequestsWhenPagesAreScarce) {
  EngineConfig config = DefaultConfig();
  config.kv_memory_bytes = 160 << 10;
  Start(config);
  ASSERT_EQ(engine_->Stats().pages_total, 40);
  RunClients(12, 150);
}

}  // namespace
}  // namespace espalier
