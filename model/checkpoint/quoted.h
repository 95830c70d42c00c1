// Text of untrusted files in messages.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace espalier {

// Abseil here has a string_view of its own.
inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }

// In quotes, escaped, cut after 80 bytes.
inline std::string Quoted(std::string_view text) {
  constexpr size_t kMaxQuotedBytes = 80;
  const bool whole = text.size() <= kMaxQuotedBytes;
  return absl::StrCat("\"", absl::CHexEscape(ToAbsl(text.substr(0, kMaxQuotedBytes))),
                      whole ? "\"" : "\"...");
}

}  // namespace espalier
