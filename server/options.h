// Everything that the server can be told at start-up.
#pragma once

#include <cstddef>
#include <string>

#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/log.h"

namespace espalier {

struct RpcOptions {
  std::string host = "127.0.0.1";
  int port = 50051;                      // 0: any free port
  size_t max_message_bytes = 16u << 20;  // that a client may send
  size_t memory_bytes = 1u << 30;        // that gRPC may hold for all connections
  int max_streams_per_connection = 256;  // calls at once; more wait at the client
  int request_threads = 0;               // that tokenize and convert; 0: half the cores, at least 2
};

struct ServerOptions {
  EngineConfig engine;
  RpcOptions rpc;
  absl::Duration drain_timeout = absl::Seconds(30);
  LogLevel log_level = LogLevel::kInfo;
  std::string probe;  // not empty: ask the server at this address for its health, and end
};

}  // namespace espalier
