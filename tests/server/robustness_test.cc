// Clients that are hostile, slow or gone, too many of them, and a server that is asked to stop.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/raw_call.h"
#include "tests/server/server_fixture.h"
#include "tests/server/stream_log.h"

namespace espalier {
namespace {

using testing::HasSubstr;

class RobustnessTest : public ServerFixture {
 protected:
  void ExpectServes() {
    const StreamLog log =
        Generate(NewStub().get(),
                 FromText<v1::GenerateRequest>("root { text: 'ok' generation { max_tokens: 2 } }"));
    EXPECT_TRUE(log.status.ok()) << log.status.error_message();
  }
};

constexpr const char* kMethods[] = {"Generate",     "Score",          "Tokenize",     "Detokenize",
                                    "GetModelInfo", "GetServerStats", "DescribeTree", "Abort",
                                    "Session"};

TEST_F(RobustnessTest, BytesThatAreNoMessageAreInvalidArguments) {
  Start();
  const auto channel = NewChannel();
  // A field that is longer than the message.
  const std::string malformed = {0x0A, 0x7F, 0x00};
  for (const char* method : kMethods) {
    SCOPED_TRACE(method);
    const grpc::Status status = RawUnaryCall(
        channel, std::string("/espalier.v1.TreeDecoder/") + method, malformed, nullptr);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("malformed"));
  }
  ExpectServes();
}

TEST_F(RobustnessTest, RandomBytesHurtNobody) {
  Start();
  const auto channel = NewChannel();
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  v1::GenerateRequest valid =
      FromText<v1::GenerateRequest>("root { text: 'abc' generation { n: 2 max_tokens: 3 } }");
  for (int round = 0; round < 300; ++round) {
    std::string bytes = valid.SerializeAsString();
    if (round % 3 == 0) bytes.resize(random() % 100);
    for (uint32_t i = random() % 6; i > 0 && !bytes.empty(); --i) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const char* method = kMethods[random() % std::size(kMethods)];
    RawStreamCall(channel, std::string("/espalier.v1.TreeDecoder/") + method, bytes, nullptr);
  }
  ExpectServes();
  ExpectNothingHeld();
}

TEST_F(RobustnessTest, InvalidUtf8NamesTheField) {
  Start();
  v1::GenerateRequest request;
  request.mutable_root()->set_text("caf_");
  request.mutable_root()->mutable_generation();
  std::string bytes = request.SerializeAsString();
  bytes[bytes.find('_')] = '\xE9';
  const grpc::Status status =
      RawUnaryCall(NewChannel(), "/espalier.v1.TreeDecoder/Generate", bytes, nullptr);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("PromptNode.text"));
}

TEST_F(RobustnessTest, MessagesAndTextsHaveLimits) {
  Start();
  v1::GenerateRequest request;
  request.mutable_root()->mutable_generation()->set_max_tokens(1);
  request.mutable_root()->set_text(std::string((8 << 20) + 1, 'a'));
  grpc::Status status = Generate(stub_.get(), request).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("8388608"));
  request.mutable_root()->set_text(std::string(16 << 20, 'a'));
  status = Generate(stub_.get(), request).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("16777216"));
  ExpectServes();
}

// Connects to the server's port without any gRPC.
int RawSocket(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

TEST_F(RobustnessTest, GarbageOnThePortHurtsNobody) {
  Start();
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 50; ++round) {
    const int fd = RawSocket(server_->port());
    std::string bytes =
        round % 2 == 0 ? "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" : "GET / HTTP/1.1\r\n\r\n";
    for (int i = 0; i < 200; ++i) bytes.push_back(static_cast<char>(random()));
    send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    close(fd);
  }
  ExpectServes();
}

TEST_F(RobustnessTest, ClientsThatVanishLeaveNothing) {
  Start();
  for (int round = 0; round < 10; ++round) {
    const auto stub = NewStub();
    grpc::ClientContext context;
    const auto reader = stub->Generate(&context, LongRequest());
    v1::GenerateEvent event;
    ASSERT_TRUE(reader->Read(&event));
    // Reader, context and connection go without Finish or TryCancel.
  }
  ExpectNothingHeld();
  ExpectServes();
}

TEST_F(RobustnessTest, RandomCancelsLeaveNothing) {
  EngineConfig config = DefaultConfig();
  config.kv_memory_bytes = 1 << 20;  // short of pages: preemption is part of it
  config.max_live_branches = 32;
  Start(config);
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([this, seed, c] {
      std::mt19937 random(seed + c);
      const auto stub = NewStub();
      for (int round = 0; round < 30; ++round) {
        grpc::ClientContext context;
        context.set_deadline(std::chrono::system_clock::now() +
                             std::chrono::milliseconds(random() % 50));
        auto request = FromText<v1::GenerateRequest>(
            "root { text: 'abcdefghijklmnopqrstuvwxyz' generation { n: 8 max_tokens: 100 "
            "ignore_eos: true } children { text: 'z' generation { n: 2 max_tokens: 50 } } }");
        const auto reader = stub->Generate(&context, request);
        v1::GenerateEvent event;
        for (uint32_t reads = random() % 20; reads > 0 && reader->Read(&event); --reads) {
        }
        if (random() % 2 == 0) context.TryCancel();
        while (reader->Read(&event)) {
        }
        reader->Finish();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectNothingHeld();
  ExpectServes();
}

// Events of some tens of kilobytes, so that a client that does not read fills the connection.
v1::GenerateRequest VerboseRequest() {
  return FromText<v1::GenerateRequest>(
      "root { text: 'q' generation { n: 100 max_tokens: 300 ignore_eos: true logprobs: 20 } }");
}

TEST_F(RobustnessTest, SlowReaderPausesItsOwnTreeAndMissesNothing) {
  EngineConfig config = DefaultConfig();
  config.outbox_capacity = 4;
  Start(config);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, VerboseRequest());
  // Until its tree has come to a stop.
  int64_t steps = -1;
  ASSERT_TRUE(Eventually([&] {
    const int64_t before = std::exchange(steps, engine_->Stats().steps);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return steps > 0 && before == steps;
  }));
  EXPECT_EQ(engine_->Stats().trees_running, 1);
  EXPECT_LT(engine_->Stats().completion_tokens, 100 * 300);
  ExpectServes();  // others go on

  const StreamLog log = ReadAll(reader.get());
  EXPECT_TRUE(log.status.ok()) << log.status.error_message();
  EXPECT_EQ(log.num_tokens(), 100 * 300);
  ExpectNothingHeld();
}

TEST_F(RobustnessTest, AReaderThatStallsForTooLongIsEnded) {
  EngineConfig config = DefaultConfig();
  config.outbox_capacity = 4;
  config.stall_timeout = absl::Milliseconds(200);
  Start(config);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, VerboseRequest());
  ExpectServes();
  ASSERT_TRUE(Eventually([&] { return engine_->Stats().trees_finished == 2; }));
  ExpectNothingHeld();
  const StreamLog log = ReadAll(reader.get());
  EXPECT_EQ(log.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_LT(log.num_tokens(), 100 * 300);
  EXPECT_TRUE(log.usage.has_value());
}

TEST_F(RobustnessTest, OverloadIsRefusedWithARetryHint) {
  EngineConfig config = DefaultConfig();
  config.max_live_branches = 1;
  config.limits.max_waiting_trees = 2;
  Start(config);
  const auto request = FromText<v1::GenerateRequest>(
      "root { text: 'abc' generation { max_tokens: 400 ignore_eos: true } }");
  std::atomic<int> served = 0;
  std::atomic<int> refused = 0;
  std::vector<std::thread> clients;
  for (int c = 0; c < 30; ++c) {
    clients.emplace_back([&] {
      grpc::ClientContext context;
      const auto reader = stub_->Generate(&context, request);
      const StreamLog log = ReadAll(reader.get());
      if (log.status.ok()) {
        EXPECT_EQ(log.num_tokens(), 400);
        ++served;
        return;
      }
      EXPECT_EQ(log.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
      EXPECT_THAT(log.status.error_message(), HasSubstr("max_waiting_trees"));
      const auto& trailers = context.GetServerTrailingMetadata();
      const auto hint = trailers.find("retry-after-ms");
      if (hint == trailers.end()) {
        ADD_FAILURE() << "no hint";
      } else {
        EXPECT_EQ(std::string(hint->second.begin(), hint->second.end()), "1000");
      }
      ++refused;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GE(served, 1);
  EXPECT_GE(refused, 1);
  EXPECT_EQ(served + refused, 30);
  ExpectNothingHeld();
}

TEST_F(RobustnessTest, DrainFinishesWhatRunsAndRefusesWhatComes) {
  Start();
  grpc::ClientContext context;
  auto request = LongRequest();
  request.mutable_root()->mutable_generation()->set_n(60);
  const auto reader = stub_->Generate(&context, request);
  StreamLog log;
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  log.Add(event);

  const auto channel = NewChannel();
  std::string health;
  ASSERT_TRUE(RawUnaryCall(channel, "/grpc.health.v1.Health/Check", "", &health).ok());
  std::thread drain([this] { server_->Drain(absl::Seconds(60)); });
  EXPECT_TRUE(Eventually([&] {
    std::string now;
    return !RawUnaryCall(channel, "/grpc.health.v1.Health/Check", "", &now).ok() || now != health;
  }));
  const StreamLog late =
      Generate(stub_.get(), FromText<v1::GenerateRequest>("root { text: 'a' generation {} }"));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);

  while (reader->Read(&event)) log.Add(event);
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_code() << " " << status.error_message();
  EXPECT_EQ(log.num_tokens(), 60 * 480);
  drain.join();
}

TEST_F(RobustnessTest, DrainEndsWhatTakesTooLong) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, LongRequest());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  StreamLog log;
  log.Add(event);
  std::thread drain([this] { server_->Drain(absl::Milliseconds(50)); });
  while (reader->Read(&event)) log.Add(event);
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(log.usage.has_value());
  EXPECT_LT(log.num_tokens(), 200 * 480);
  drain.join();
}

TEST_F(RobustnessTest, AServerThatGoesAwayCutsItsCalls) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, LongRequest());
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  server_.reset();
  while (reader->Read(&event)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
  ExpectNothingHeld();
}

TEST_F(RobustnessTest, APortInUseIsAnError) {
  Start();
  const absl::Status check = CheckAddress("127.0.0.1", server_->port());
  EXPECT_THAT(std::string(check.message()), HasSubstr("in use"));
  RpcOptions options;
  options.port = server_->port();
  const auto second = Server::Start(engine_.get(), options);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(server_->port())));
}

TEST(CheckAddressTest, SaysWhyNot) {
  EXPECT_TRUE(CheckAddress("127.0.0.1", 0).ok());
  EXPECT_TRUE(CheckAddress("localhost", 0).ok());
  EXPECT_THAT(std::string(CheckAddress("not an address", 1).message()),
              HasSubstr("not an address"));
  EXPECT_FALSE(CheckAddress("192.0.2.1", 0).ok());  // of no machine (RFC 5737)
}

}  // namespace
}  // namespace espalier
