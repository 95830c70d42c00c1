// The regular expressions of pre-tokenizers, run by PCRE2. Patterns come from model files, so
// their size and the work of a match are limited; texts come from clients.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"

namespace espalier {

class Regex {
 public:
  // Patterns are written for Oniguruma, as Hugging Face tokenizers reads them. What means
  // something else in PCRE2 is translated (\s) or refused (UNIMPLEMENTED: \w, nested classes, ...).
  // INVALID_ARGUMENT: too long or malformed.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);
  // Matches exactly `text`.
  static absl::StatusOr<Regex> Literal(std::string_view text);

  // The first match in text[from..]; matches are never empty. `text` is valid UTF-8. A match that
  // would exceed the work limit counts as none: the text is cut less finely, nothing is lost.
  struct Span {
    size_t begin;
    size_t end;
  };
  bool FindNext(std::string_view text, size_t from, Span* found) const;

 private:
  struct Program;
  static absl::StatusOr<Regex> CompileProgram(std::string_view pattern, uint32_t options);
  explicit Regex(std::shared_ptr<const Program> program) : program_(std::move(program)) {}
  std::shared_ptr<const Program> program_;
};

}  // namespace espalier
