// The little UTF-8 that tokenizers need. "Valid" is the Unicode standard's: no overlong forms, no
// surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace espalier {

// Bytes of the valid character that `text` starts with, 1 to 4; 0 when there is none.
size_t ValidCharBytes(std::string_view text);

// The code point of a valid character.
char32_t DecodeChar(std::string_view character);

void AppendUtf8(char32_t code_point, std::string* out);

// Calls `visit(stretch, valid)` for the maximal stretches of valid and of invalid bytes, in order.
template <typename Visit>
void ForEachStretch(std::string_view text, Visit visit) {
  size_t begin = 0;
  bool valid = true;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = ValidCharBytes(text.substr(at));
    if ((bytes > 0) != valid) {
      if (at > begin) visit(text.substr(begin, at - begin), valid);
      begin = at;
      valid = bytes > 0;
    }
    at += bytes > 0 ? bytes : 1;
  }
  if (begin < text.size()) visit(text.substr(begin), valid);
}

}  // namespace espalier
