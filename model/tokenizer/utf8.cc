#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

uint8_t Byte(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

bool Continues(std::string_view text, size_t i) {
  return i < text.size() && (Byte(text, i) & 0xC0) == 0x80;
}

}  // namespace

size_t ValidCharBytes(std::string_view text) {
  if (text.empty()) return 0;
  const uint8_t lead = Byte(text, 0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4 || !Continues(text, 1)) return 0;
  if (lead < 0xE0) return 2;
  const uint8_t second = Byte(text, 1);
  if (!Continues(text, 2)) return 0;
  if (lead < 0xF0) {
    const bool overlong = lead == 0xE0 && second < 0xA0;
    const bool surrogate = lead == 0xED && second >= 0xA0;
    return overlong || surrogate ? 0 : 3;
  }
  if (!Continues(text, 3)) return 0;
  const bool overlong = lead == 0xF0 && second < 0x90;
  const bool beyond = lead == 0xF4 && second >= 0x90;
  return overlong || beyond ? 0 : 4;
}

char32_t DecodeChar(std::string_view character) {
  static constexpr uint8_t kLeadMask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  char32_t code_point = Byte(character, 0) & kLeadMask[character.size()];
  for (size_t i = 1; i < character.size(); ++i) {
    code_point = code_point << 6 | (Byte(character, i) & 0x3F);
  }
  return code_point;
}

void AppendUtf8(char32_t c, std::string* out) {
  const auto tail = [&](int shift) { *out += static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    *out += static_cast<char>(c);
  } else if (c < 0x800) {
    *out += static_cast<char>(0xC0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    *out += static_cast<char>(0xE0 | c >> 12);
    tail(6);
    tail(0);
  } else {
    *out += static_cast<char>(0xF0 | c >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace espalier
