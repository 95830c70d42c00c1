// The deadline that a call carries, as the engine takes it.
#pragma once

#include <grpcpp/server_context.h>

#include <chrono>
#include <optional>

#include "absl/time/time.h"

namespace espalier {

inline std::optional<absl::Time> CallDeadline(const grpc::CallbackServerContext& context) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return std::nullopt;
  return absl::FromChrono(deadline);
}

}  // namespace espalier
