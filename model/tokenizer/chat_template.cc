#include "model/tokenizer/chat_template.h"

#include <optional>
#include <string>

#include "model/tokenizer/text.h"

namespace espalier {
namespace {

// The value of the Jinja string literal that starts with the quote at `open`.
std::optional<std::string> ReadLiteral(std::string_view jinja, size_t open) {
  const char quote = jinja[open];
  std::string value;
  for (size_t i = open + 1; i < jinja.size(); ++i) {
    if (jinja[i] == quote) return value;
    if (jinja[i] == '\\' && i + 1 < jinja.size()) {
      const char escape = jinja[++i];
      value += escape == 'n' ? '\n' : escape == 't' ? '\t' : escape;
    } else {
      value += jinja[i];
    }
  }
  return std::nullopt;
}

// ChatML templates that bring a system message of their own hold it as one literal,
// '<|im_start|>system\n...<|im_end|>\n'.
std::optional<std::string> ChatMlDefaultSystem(std::string_view jinja) {
  constexpr std::string_view kBegin = "<|im_start|>system\n";
  constexpr std::string_view kEnd = "<|im_end|>\n";
  for (size_t at = jinja.find("<|im_start|>system"); at != std::string_view::npos;
       at = jinja.find("<|im_start|>system", at + 1)) {
    if (at == 0 || (jinja[at - 1] != '\'' && jinja[at - 1] != '"')) continue;
    const std::optional<std::string> literal = ReadLiteral(jinja, at - 1);
    if (literal.has_value() && literal->size() >= kBegin.size() + kEnd.size() &&
        literal->starts_with(kBegin) && literal->ends_with(kEnd)) {
      return literal->substr(kBegin.size(), literal->size() - kBegin.size() - kEnd.size());
    }
  }
  return std::nullopt;
}

// Llama 3.1 and later open every conversation with a system message that states two dates; the
// second is the template's own fallback, so that equal requests give equal ids on any day.
std::optional<std::string> Llama3Preamble(std::string_view jinja) {
  constexpr std::string_view kCutoff = "Cutting Knowledge Date: December 2023\n";
  constexpr std::string_view kDate = "date_string = ";
  if (!Contains(jinja, "Cutting Knowledge Date: December 2023")) return std::nullopt;
  for (size_t at = jinja.find(kDate); at != std::string_view::npos;
       at = jinja.find(kDate, at + 1)) {
    const size_t open = at + kDate.size();
    if (open >= jinja.size() || (jinja[open] != '"' && jinja[open] != '\'')) continue;
    if (const std::optional<std::string> date = ReadLiteral(jinja, open)) {
      return Concat(kCutoff, "Today Date: ", *date, "\n\n");
    }
  }
  return std::nullopt;
}

}  // namespace

ChatTemplate RecognizeChatTemplate(std::string_view jinja) {
  ChatTemplate result;
  if (Contains(jinja, "<|start_header_id|>")) {
    result.format = ChatFormat::kLlama3;
    if (std::optional<std::string> preamble = Llama3Preamble(jinja)) {
      result.system_preamble = *std::move(preamble);
      result.default_system = "";
    }
  } else if (Contains(jinja, "<|im_start|>")) {
    result.format = ChatFormat::kChatMl;
    result.default_system = ChatMlDefaultSystem(jinja);
  } else {
    return result;
  }
  result.starts_with_bos = Contains(jinja, "bos_token");
  result.trims_content = Contains(jinja, "| trim") || Contains(jinja, "|trim");
  return result;
}

}  // namespace espalier
