#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "model/tokenizer/text.h"

namespace espalier {
namespace {

constexpr size_t kMaxPatternBytes = 4096;
constexpr uint32_t kMaxParenthesesDepth = 64;
// Real patterns need about one unit of work a character of the longest run they cross.
constexpr uint32_t kMatchLimit = 64u << 20;
constexpr uint32_t kHeapLimitKib = 64u << 10;

// Oniguruma's \s is Unicode's White_Space; PCRE2's has U+180E too.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

absl::Status Unsupported(std::string_view what) {
  return absl::UnimplementedError(Concat("pre-tokenizer pattern: ", what,
                                         " means something else in PCRE2 and is not supported"));
}

absl::StatusOr<std::string> TranslateOniguruma(std::string_view pattern) {
  std::string translated;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view rest = pattern.substr(i);
    const char c = pattern[i];
    if (c == '\\' && rest.size() >= 2) {
      const char escape = pattern[++i];
      if (escape == 's') {
        translated += in_class ? Concat(kWhiteSpace) : Concat("[", kWhiteSpace, "]");
      } else if (escape == 'S' && !in_class) {
        translated += Concat("[^", kWhiteSpace, "]");
      } else if (std::string_view("ShHwWbBKRXCGQEoNgk").find(escape) != std::string_view::npos) {
        return Unsupported(Concat("\\", rest.substr(1, 1), in_class ? " in a class" : ""));
      } else {
        translated += c;
        translated += escape;
      }
      continue;
    }
    if (in_class && rest.starts_with("[:")) return Unsupported("a POSIX class");
    if (in_class && c == '[') return Unsupported("a nested character class");
    if (in_class && rest.starts_with("&&")) return Unsupported("a class intersection");
    if (!in_class && rest.starts_with("(*")) return Unsupported("a verb, (*");
    if (!in_class && rest.starts_with("(?m")) return Unsupported("(?m");
    if (!in_class && (c == '^' || c == '$')) return Unsupported(rest.substr(0, 1));
    if (!in_class && c == '[') {
      in_class = true;
      // A bracket right after the opening one is literal in PCRE2, an error in Oniguruma.
      const size_t first = rest.starts_with("[^") ? 2 : 1;
      if (rest.size() > first && rest[first] == ']') return Unsupported("an empty class");
    } else if (in_class && c == ']') {
      in_class = false;
    }
    translated += c;
  }
  return translated;
}

pcre2_match_data* ThreadMatchData() {
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  // Only the whole match is asked for, so one pair serves every pattern of the thread.
  static thread_local const std::unique_ptr<pcre2_match_data, Free> data(
      pcre2_match_data_create(1, nullptr));
  ESPALIER_CHECK(data != nullptr);
  return data.get();
}

}  // namespace

struct Regex::Program {
  pcre2_code* code = nullptr;
  pcre2_match_context* limits = nullptr;

  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    pcre2_match_context_free(limits);
    pcre2_code_free(code);
  }
};

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  // Before the translation too, which grows a pattern by a constant factor.
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        Concat("pre-tokenizer pattern: ", pattern.size(), " bytes, at most ", kMaxPatternBytes));
  }
  absl::StatusOr<std::string> translated = TranslateOniguruma(pattern);
  if (!translated.ok()) return translated.status();
  return CompileProgram(*translated, PCRE2_UCP);
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  if (text.empty() || text.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        Concat("pre-tokenizer string: ", text.size(), " bytes, wanted 1 to ", kMaxPatternBytes));
  }
  return CompileProgram(text, PCRE2_LITERAL);
}

absl::StatusOr<Regex> Regex::CompileProgram(std::string_view pattern, uint32_t options) {
  auto program = std::make_shared<Program>();
  program->limits = pcre2_match_context_create(nullptr);
  pcre2_compile_context* compile = pcre2_compile_context_create(nullptr);
  ESPALIER_CHECK(program->limits != nullptr && compile != nullptr);
  pcre2_set_match_limit(program->limits, kMatchLimit);
  pcre2_set_heap_limit(program->limits, kHeapLimitKib);
  pcre2_set_parens_nest_limit(compile, kMaxParenthesesDepth);

  int error = 0;
  PCRE2_SIZE offset = 0;
  program->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                options | PCRE2_UTF, &error, &offset, compile);
  pcre2_compile_context_free(compile);
  if (program->code == nullptr) {
    char message[256] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return absl::InvalidArgumentError(
        Concat("pre-tokenizer pattern: ", message, " at byte ", offset));
  }
  // Where the machine forbids generated code this fails, and the interpreter matches instead.
  pcre2_jit_compile(program->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(program));
}

bool Regex::FindNext(std::string_view text, size_t from, Span* found) const {
  pcre2_match_data* data = ThreadMatchData();
  // Checking the whole text at every call would make a scan quadratic.
  uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
  const auto match = [&] {
    return pcre2_match(program_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       options, data, program_->limits);
  };
  int result = match();
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
    options |= PCRE2_NO_JIT;  // the interpreter's stack is the heap
    result = match();
  }
  if (result < 0) return false;
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data);
  *found = {.begin = offsets[0], .end = offsets[1]};
  return true;
}

}  // namespace espalier
