// The gRPC server: TreeDecoder, health and reflection on one port.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/options.h"

namespace espalier {

// OK when the port can be bound now. Asked before a model is loaded, which may take minutes.
// UNAVAILABLE and INVALID_ARGUMENT name the address and say why not.
absl::Status CheckAddress(const std::string& host, int port);

class Server {
 public:
  // Serves as soon as it returns. The engine outlives the server.
  static absl::StatusOr<std::unique_ptr<Server>> Start(Engine* engine, const RpcOptions& options);
  // Cuts off what still runs.
  ~Server();

  int port() const;
  // "127.0.0.1:50051"
  std::string address() const;

  // Reports NOT_SERVING, refuses new trees and waits until the running ones are done; those that
  // are not within `timeout` are cancelled. Then closes the port. Once.
  void Drain(absl::Duration timeout);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
