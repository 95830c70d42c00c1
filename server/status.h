// Where absl::Status becomes grpc::Status, once for the whole server.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace espalier {

// Milliseconds after which a client that was refused for overload should come again.
inline constexpr int kRetryAfterMs = 1000;

// The codes are the same numbers. The message becomes valid UTF-8 of bounded length. On
// RESOURCE_EXHAUSTED the call's trailing metadata gain the retry hint.
grpc::Status ToGrpcStatus(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace espalier
