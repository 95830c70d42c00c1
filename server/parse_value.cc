#include "server/parse_value.h"

#include <array>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace espalier {
namespace {

absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

// Largest first, so that formatting finds the largest that divides.
constexpr std::array<std::pair<std::string_view, size_t>, 3> kSizeUnits = {
    {{"GiB", size_t{1} << 30}, {"MiB", size_t{1} << 20}, {"KiB", size_t{1} << 10}}};

constexpr absl::Duration kMaxDuration = absl::Hours(24);

}  // namespace

absl::StatusOr<int64_t> ParseInteger(std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(ToAbsl(text), &value)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", ToAbsl(text), "\" is not a whole number"));
  }
  if (value < min || value > max) {
    return absl::InvalidArgumentError(absl::StrCat(value, " is not between ", min, " and ", max));
  }
  return value;
}

absl::StatusOr<size_t> ParseSize(std::string_view text) {
  std::string_view digits = text;
  size_t unit = 1;
  for (const auto& [suffix, bytes] : kSizeUnits) {
    if (text.ends_with(suffix)) {
      digits.remove_suffix(suffix.size());
      unit = bytes;
      break;
    }
  }
  uint64_t count = 0;
  const bool only_digits = digits.find_first_not_of("0123456789") == std::string_view::npos;
  if (!only_digits || !absl::SimpleAtoi(ToAbsl(digits), &count) ||
      count > std::numeric_limits<size_t>::max() / unit) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ToAbsl(text), "\" is not a size such as 2GiB, 512MiB, 64KiB or 4096"));
  }
  return static_cast<size_t>(count) * unit;
}

std::string FormatSize(size_t bytes) {
  for (const auto& [suffix, unit] : kSizeUnits) {
    if (bytes >= unit && bytes % unit == 0) return absl::StrCat(bytes / unit, ToAbsl(suffix));
  }
  return absl::StrCat(bytes);
}

absl::StatusOr<absl::Duration> ParseDuration(std::string_view text) {
  absl::Duration duration;
  if (!absl::ParseDuration(ToAbsl(text), &duration) || duration < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ToAbsl(text), "\" is not a duration such as 30s, 500ms or 1m30s"));
  }
  // So that adding it to a clock cannot overflow.
  if (duration > kMaxDuration) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", ToAbsl(text), "\" is longer than ", absl::FormatDuration(kMaxDuration)));
  }
  return duration;
}

absl::Status UnknownName(std::string_view text, std::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", ToAbsl(text), "\" is not one of ", ToAbsl(expected)));
}

}  // namespace espalier
