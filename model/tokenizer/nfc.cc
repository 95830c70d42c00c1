#include "model/tokenizer/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "kernels/core/check.h"
#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

using CodePoint = utf8proc_int32_t;

// Below U+0300 every character is its own NFC and combines with nothing before it.
bool IsPlain(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

std::vector<CodePoint> Decompose(std::string_view text) {
  std::vector<CodePoint> code_points;
  code_points.reserve(text.size());
  while (!text.empty()) {
    const size_t bytes = ValidCharBytes(text);
    ESPALIER_CHECK(bytes > 0);
    CodePoint decomposed[8];  // the longest canonical decomposition has 4
    int boundary = 0;         // used for grapheme breaks only
    const auto count = utf8proc_decompose_char(
        static_cast<CodePoint>(DecodeChar(text.substr(0, bytes))), decomposed,
        std::size(decomposed), static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE),
        &boundary);
    ESPALIER_CHECK(count > 0 && count <= static_cast<int>(std::size(decomposed)));
    code_points.insert(code_points.end(), decomposed, decomposed + count);
    text.remove_prefix(bytes);
  }
  return code_points;
}

int CombiningClass(CodePoint c) { return utf8proc_get_property(c)->combining_class; }

// Canonical ordering: each run of combining marks, stably by combining class.
void Reorder(std::vector<CodePoint>& code_points) {
  const auto is_starter = [](CodePoint c) { return CombiningClass(c) == 0; };
  for (auto begin = code_points.begin(); begin != code_points.end();) {
    begin = std::find_if_not(begin, code_points.end(), is_starter);
    const auto end = std::find_if(begin, code_points.end(), is_starter);
    std::stable_sort(
        begin, end, [](CodePoint a, CodePoint b) { return CombiningClass(a) < CombiningClass(b); });
    begin = end;
  }
}

}  // namespace

std::string NormalizeNfc(std::string_view text) {
  if (IsPlain(text)) return std::string(text);
  std::vector<CodePoint> code_points = Decompose(text);
  Reorder(code_points);
  const auto count = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  ESPALIER_CHECK(count >= 0);
  std::string normalized;
  normalized.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[i]), &normalized);
  }
  return normalized;
}

}  // namespace espalier
