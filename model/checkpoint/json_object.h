// Parses untrusted JSON whose top is an object.
#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

#include "absl/status/statusor.h"

namespace espalier {

// INVALID_ARGUMENT: not JSON, not an object, or nested deeper than 64. The parser needs no such
// limit, but comparing, copying and printing a value recurse.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text);

}  // namespace espalier
