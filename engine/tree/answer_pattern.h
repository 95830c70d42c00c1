// The answer in a text, found by a regular expression. Matching takes time linear in the text,
// whatever the pattern, and the compiled pattern a bounded amount of memory. Any thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "re2/re2.h"

namespace espalier {

class AnswerPattern {
 public:
  // INVALID_ARGUMENT says what is wrong with the pattern, in RE2's syntax.
  static absl::StatusOr<AnswerPattern> Compile(const std::string& pattern);

  // Of the match that begins last: its first group, or all of it if the pattern has none. Empty: no
  // match.
  std::optional<std::string> Find(std::string_view text) const;

 private:
  explicit AnswerPattern(std::unique_ptr<const RE2> expression, int group);

  std::unique_ptr<const RE2> expression_;
  int group_;
};

}  // namespace espalier
