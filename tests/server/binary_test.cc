// The real program: start-up, its errors, and how it ends.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "tests/server/process.h"
#include "tests/server/server_fixture.h"
#include "tests/server/stream_log.h"
#include "tests/server/tiny_model.h"

namespace espalier {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

class BinaryTest : public testing::Test {
 protected:
  std::vector<std::string> Command(const std::vector<std::string>& extra = {}) const {
    std::vector<std::string> command = {
        ESPALIER_SERVER_BINARY, "--model", model_.path(), "--port", "0", "--threads", "1",
        "--kv-memory",          "64MiB"};
    command.insert(command.end(), extra.begin(), extra.end());
    return command;
  }

  // Expects the program to end by itself, and returns what it said.
  static std::string FailureOf(const std::vector<std::string>& command, int exit_code) {
    Process process(command);
    EXPECT_EQ(process.Wait(), exit_code);
    EXPECT_EQ(process.ReadLine(), "") << "it said that it listens";
    return process.Errors();
  }

  static std::string AddressOf(Process* server) {
    const std::string line = server->ReadLine();
    const std::string prefix = "listening on ";
    EXPECT_THAT(line, StartsWith(prefix + "127.0.0.1:")) << server->Errors();
    return line.substr(std::min(line.size(), prefix.size()));
  }

  static std::unique_ptr<v1::TreeDecoder::Stub> StubOf(const std::string& address) {
    return v1::TreeDecoder::NewStub(
        grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }

  const TinyModel model_;
};

TEST_F(BinaryTest, TermFinishesWhatRunsAndExitsWithZero) {
  Process server(Command());
  StreamLog log;
  {
    // Gone before the server is waited for: an idle client of C++ notices a closing connection
    // only every 5 seconds.
    const auto stub = StubOf(AddressOf(&server));
    grpc::ClientContext context;
    auto request = LongRequest();
    request.mutable_root()->mutable_generation()->set_n(40);
    const auto reader = stub->Generate(&context, request);
    v1::GenerateEvent event;
    ASSERT_TRUE(reader->Read(&event));
    log.Add(event);
    server.Signal(SIGTERM);
    while (reader->Read(&event)) log.Add(event);
    EXPECT_TRUE(reader->Finish().ok());
  }
  EXPECT_EQ(log.num_tokens(), 40 * 480);
  EXPECT_EQ(server.Wait(), 0);
  EXPECT_THAT(server.Errors(), AllOf(HasSubstr("loading"), HasSubstr("loaded"),
                                     HasSubstr("draining"), HasSubstr("drained")));
}

TEST_F(BinaryTest, SaysWhatKvIsStoredAs) {
  Process server(Command({"--kv-dtype", "fp8"}));
  const auto stub = StubOf(AddressOf(&server));
  EXPECT_THAT(server.Errors(), HasSubstr("KV cache: 64 MiB of E4M3"));
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(stub->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.kv_type(), "E4M3");
}

TEST_F(BinaryTest, AnIdleServerStopsAtOnceOnInterrupt) {
  Process server(Command());
  AddressOf(&server);
  server.Signal(SIGINT);
  EXPECT_EQ(server.Wait(), 0);
}

TEST_F(BinaryTest, ASecondSignalEndsAtOnce) {
  Process server(Command({"--outbox-capacity", "1"}));
  const auto stub = StubOf(AddressOf(&server));
  grpc::ClientContext context;
  auto request = LongRequest();  // whose events nobody reads: it cannot finish
  request.mutable_root()->mutable_generation()->set_logprobs(20);
  const auto reader = stub->Generate(&context, request);
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  server.Signal(SIGTERM);
  EXPECT_TRUE(Eventually([&] { return server.Errors().find("draining") != std::string::npos; }));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 128 + SIGTERM);
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  reader->Finish();
}

TEST_F(BinaryTest, SettingsComeFromTheFileAndTheFlags) {
  const std::string config = model_.path() + "/config_of_the_server.json";
  std::ofstream(config) << R"({"page_size": 32, "sharing": "tree", "max_n": 3})";
  Process server(Command({"--config", config, "--sharing", "none"}));
  const auto stub = StubOf(AddressOf(&server));
  grpc::ClientContext context;
  v1::GetServerStatsResponse stats;
  ASSERT_TRUE(stub->GetServerStats(&context, {}, &stats).ok());
  EXPECT_EQ(stats.page_size(), 32);
  EXPECT_EQ(stats.sharing(), "none");
  const StreamLog log =
      Generate(stub.get(), FromText<v1::GenerateRequest>("root { text: 'a' generation { n: 4 } }"));
  EXPECT_THAT(log.status.error_message(), HasSubstr("from 1 to 3"));
}

TEST_F(BinaryTest, WrongUsageIsExplained) {
  EXPECT_THAT(FailureOf(Command({"--port", "70000"}), 2), HasSubstr("--port: 70000"));
  EXPECT_THAT(FailureOf(Command({"--no-such-flag"}), 2), HasSubstr("--no-such-flag"));
  EXPECT_THAT(FailureOf(Command({"--device", "gpu"}), 2), HasSubstr("auto, cpu, cuda"));
  const std::string config = model_.path() + "/bad.json";
  std::ofstream(config) << R"({"kv_memroy": "1GiB"})";
  EXPECT_THAT(FailureOf(Command({"--config", config}), 2),
              AllOf(HasSubstr(config), HasSubstr("kv_memroy: unknown key")));
  EXPECT_THAT(FailureOf({ESPALIER_SERVER_BINARY}, 2), HasSubstr("--model"));
}

TEST_F(BinaryTest, FailedStartsAreExplained) {
  EXPECT_THAT(
      FailureOf({ESPALIER_SERVER_BINARY, "--model", "/no/such/model.gguf", "--port", "0"}, 1),
      HasSubstr("/no/such/model.gguf"));
  EXPECT_THAT(FailureOf(Command({"--host", "192.0.2.1"}), 1), HasSubstr("192.0.2.1"));
  EXPECT_THAT(FailureOf(Command({"--kv-memory", "1KiB"}), 1), HasSubstr("kv_memory"));
  // More than any machine has.
  EXPECT_THAT(FailureOf(Command({"--kv-memory", "60000GiB"}), 1), HasSubstr("memory"));

  namespace fs = std::filesystem;
  const fs::path weights = fs::path(model_.path()) / "model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) / 2);
  EXPECT_THAT(FailureOf(Command(), 1), HasSubstr("model.safetensors"));
  fs::remove(fs::path(model_.path()) / "config.json");
  EXPECT_THAT(FailureOf(Command(), 1), HasSubstr("config.json"));
}

TEST_F(BinaryTest, APortInUseIsExplained) {
  Process first(Command());
  const std::string address = AddressOf(&first);
  const std::string port = address.substr(address.rfind(':') + 1);
  EXPECT_THAT(FailureOf(Command({"--port", port}), 1),
              AllOf(HasSubstr(address), HasSubstr("in use")));
}

TEST_F(BinaryTest, AProbeTellsWhetherTheServerServes) {
  Process server(Command());
  const std::string address = AddressOf(&server);
  EXPECT_EQ(Process({ESPALIER_SERVER_BINARY, "--probe", address}).Wait(), 0);
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
  EXPECT_THAT(FailureOf({ESPALIER_SERVER_BINARY, "--probe", address}, 1),
              AllOf(HasSubstr("UNAVAILABLE"), HasSubstr(address)));
}

TEST_F(BinaryTest, TheDemoModelAnswersAChat) {
  const char* model = std::getenv("ESPALIER_DEMO_MODEL");
  if (model == nullptr) GTEST_SKIP() << "ESPALIER_DEMO_MODEL names no GGUF file";
  // Exact: a small model's choices are close, and int8 activations tip some of them.
  Process server({ESPALIER_SERVER_BINARY, "--model", model, "--port", "0", "--kv-memory", "256MiB",
                  "--cpu-precision", "f32"});
  const StreamLog log = Generate(StubOf(AddressOf(&server)).get(), FromText<v1::GenerateRequest>(R"(
      root { messages { messages { role: 'user' content: 'What is the capital of France?' } }
             generation { n: 2 temperature: 0 max_tokens: 24 } })"));
  ASSERT_TRUE(log.status.ok()) << log.status.error_message();
  ASSERT_EQ(log.branches.size(), 2u);
  EXPECT_THAT(log.branches.at(0).text, HasSubstr("The capital of France is Paris"));
  EXPECT_EQ(log.branches.at(0).text, log.branches.at(1).text);
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
}

}  // namespace
}  // namespace espalier
