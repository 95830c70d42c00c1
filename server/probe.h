// Asks a server whether it serves, as a container's health check does.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace espalier {

// Calls grpc.health.v1.Health/Check of the server at `address` ("HOST:PORT", plaintext). OK when it
// is SERVING; UNAVAILABLE when it says otherwise; else the call's own failure.
absl::Status Probe(const std::string& address, absl::Duration timeout);

}  // namespace espalier
