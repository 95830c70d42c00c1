// Values of settings as people write them. Each parser takes the whole text or gives
// INVALID_ARGUMENT saying what it expected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/names.h"

namespace espalier {

// Decimal, min <= value <= max.
absl::StatusOr<int64_t> ParseInteger(std::string_view text, int64_t min, int64_t max);

// Bytes: a whole number, or one with KiB, MiB or GiB after it.
absl::StatusOr<size_t> ParseSize(std::string_view text);
// In the largest unit that divides it: "512MiB".
std::string FormatSize(size_t bytes);

// "30s", "500ms", "1m30s"; from 0 to a day.
absl::StatusOr<absl::Duration> ParseDuration(std::string_view text);

absl::Status UnknownName(std::string_view text, std::string_view expected);

template <class Enum>
absl::StatusOr<Enum> ParseName(std::string_view text) {
  std::string expected;
  for (const auto& [name, value] : NamesOf<Enum>::kAll) {
    if (name == text) return value;
    expected.append(expected.empty() ? "" : ", ").append(name);
  }
  return UnknownName(text, expected);
}

}  // namespace espalier
