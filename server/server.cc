#include "server/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/tree_decoder_service.h"
#include "server/work_queue.h"

namespace espalier {
namespace {

// Requests that wait to be tokenized. Each holds a message, which counts towards rpc_memory.
constexpr size_t kRequestQueueCapacity = 4096;

// A client that vanished without a word is noticed after their sum, and its trees are cancelled.
constexpr int kKeepaliveTimeMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
// Pings from clients more often than this are refused.
constexpr int kMinClientPingIntervalMs = 10'000;

// For the last events of drained trees to reach their clients.
constexpr std::chrono::seconds kShutdownGrace{5};
// Between the last event and the end of connections. gRPC closes a connection as soon as its last
// call is done; if bytes of the client are unread then, TCP resets it, and the client may lose the
// status that was just sent.
constexpr std::chrono::milliseconds kLinger{300};

std::string JoinHostPort(const std::string& host, int port) {
  const bool bare_v6 = host.find(':') != std::string::npos && !host.starts_with('[');
  return bare_v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

int NumRequestThreads(int configured) {
  if (configured > 0) return configured;
  return std::max(2, static_cast<int>(std::thread::hardware_concurrency()) / 2);
}

}  // namespace

absl::Status CheckAddress(const std::string& host, int port) {
  const std::string address = JoinHostPort(host, port);
  std::string bare = host;
  if (bare.starts_with('[') && bare.ends_with(']')) bare = bare.substr(1, bare.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(bare.c_str(), absl::StrCat(port).c_str(), &hints, &found)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", address, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owned(found, freeaddrinfo);
  const int fd = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
  // As gRPC will: connections of an earlier server in TIME_WAIT are no obstacle.
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  // Listening, because only that fails when another socket with SO_REUSEADDR listens already.
  const bool free =
      fd >= 0 && bind(fd, found->ai_addr, found->ai_addrlen) == 0 && listen(fd, /*backlog=*/1) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (free) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address, ": ", std::strerror(error)));
}

struct Server::Impl {
  Impl(Engine* the_engine, const RpcOptions& the_options)
      : engine(the_engine),
        options(the_options),
        requests(NumRequestThreads(options.request_threads), kRequestQueueCapacity),
        events(/*num_threads=*/1, std::numeric_limits<size_t>::max()),
        service(engine, &requests, &events) {}

  Engine* const engine;
  const RpcOptions options;
  // The calls use the queues and the service: the gRPC server goes first.
  WorkQueue requests;
  WorkQueue events;
  TreeDecoderService service;
  int port = 0;
  std::unique_ptr<grpc::Server> server;
};

absl::StatusOr<std::unique_ptr<Server>> Server::Start(Engine* engine, const RpcOptions& options) {
  auto impl = std::make_unique<Impl>(engine, options);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  // Two servers on one port would share its connections; the second is to fail instead.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kMinClientPingIntervalMs);
  builder.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  builder.SetResourceQuota(grpc::ResourceQuota("server").Resize(options.memory_bytes));
  builder.AddListeningPort(JoinHostPort(options.host, options.port),
                           grpc::InsecureServerCredentials(), &impl->port);
  builder.RegisterService(&impl->service);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", JoinHostPort(options.host, options.port)));
  }
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  impl_->server->Shutdown(std::chrono::system_clock::now());
  impl_->server->Wait();
}

int Server::port() const { return impl_->port; }

std::string Server::address() const { return JoinHostPort(impl_->options.host, impl_->port); }

void Server::Drain(absl::Duration timeout) {
  impl_->server->GetHealthCheckService()->SetServingStatus(false);
  impl_->service.EndSessions();
  impl_->engine->Drain(timeout);
  std::this_thread::sleep_for(kLinger);
  impl_->server->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
  impl_->server->Wait();
}

}  // namespace espalier
