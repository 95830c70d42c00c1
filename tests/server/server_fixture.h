// A real server on a free loopback port, in this process, over the tiny model.
#pragma once

#include <google/protobuf/text_format.h>
#include <grpcpp/channel.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "engine/engine.h"
#include "espalier/v1/tree_decoder.grpc.pb.h"
#include "server/server.h"
#include "tests/server/tiny_model.h"

namespace espalier {

template <class Message>
Message FromText(const std::string& text) {
  Message message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

// Waits for what another thread brings about. For what must come, not for what must be quick.
inline bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 2000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class ServerFixture : public testing::Test {
 protected:
  // Exact arithmetic and one thread: equal requests give equal answers.
  static EngineConfig DefaultConfig() {
    EngineConfig config;
    config.cpu_precision = CpuPrecision::kF32;
    config.num_threads = 1;
    config.kv_memory_bytes = 64 << 20;
    return config;
  }

  void Start(EngineConfig config = DefaultConfig(), RpcOptions rpc = {}) {
    config.model_path = model_.path();
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(config);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    rpc.port = 0;
    absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(engine_.get(), rpc);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = NewStub();
  }

  std::shared_ptr<grpc::Channel> NewChannel() const {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt("grpc.use_local_subchannel_pool", 1);  // a connection of its own
    return grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  std::unique_ptr<v1::TreeDecoder::Stub> NewStub() const {
    return v1::TreeDecoder::NewStub(NewChannel());
  }

  bool Idle() const {
    const EngineStats stats = engine_->Stats();
    return stats.trees_waiting == 0 && stats.trees_running == 0 && stats.branches_live == 0;
  }

  // Nothing is left of the trees that ran: whatever page is not free is cached, none is held.
  void ExpectNothingHeld() {
    // A session lets go of its pages when its call is over, just after its client hears of that.
    EXPECT_TRUE(Eventually([&] { return Idle() && engine_->Stats().pages_locked == 0; }));
    const EngineStats stats = engine_->Stats();
    EXPECT_EQ(stats.pages_locked, 0);
    EXPECT_EQ(stats.pages_free + stats.pages_cached + stats.pages_retiring, stats.pages_total);
  }

  const TinyModel model_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;  // before the engine
  std::unique_ptr<v1::TreeDecoder::Stub> stub_;
};

// Runs for as long as any test cares to look: some seconds, unless ended.
inline v1::GenerateRequest LongRequest() {
  return FromText<v1::GenerateRequest>(
      "root { text: 'once upon a time' generation { n: 200 max_tokens: 480 ignore_eos: true } }");
}

}  // namespace espalier
