#include "engine/utf8.h"

#include "kernels/core/check.h"

namespace espalier {
namespace {

// What may follow a lead byte: `length` - 1 continuation bytes, the first of them in [low, high].
struct Lead {
  int length;  // 0: no sequence starts with this byte
  unsigned char low;
  unsigned char high;
};

Lead Classify(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};  // a continuation byte, or an overlong lead
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};  // below: overlong
  if (byte == 0xED) return {3, 0x80, 0x9F};  // above: surrogates
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};  // below: overlong
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};  // above: past U+10FFFF
  return {0, 0, 0};
}

}  // namespace

Utf8Unit NextUtf8Unit(std::string_view bytes) {
  ESPALIER_CHECK(!bytes.empty());
  const Lead lead = Classify(static_cast<unsigned char>(bytes[0]));
  if (lead.length == 0) return {Utf8Unit::Kind::kInvalid, 1};
  for (int i = 1; i < lead.length; ++i) {
    if (i == static_cast<int>(bytes.size())) return {Utf8Unit::Kind::kIncomplete, i};
    const auto byte = static_cast<unsigned char>(bytes[i]);
    const unsigned char low = i == 1 ? lead.low : 0x80;
    const unsigned char high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) return {Utf8Unit::Kind::kInvalid, i};
  }
  return {Utf8Unit::Kind::kCharacter, lead.length};
}

bool IsValidUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Utf8Unit unit = NextUtf8Unit(bytes);
    if (unit.kind != Utf8Unit::Kind::kCharacter) return false;
    bytes.remove_prefix(unit.length);
  }
  return true;
}

void AppendAsUtf8(std::string_view bytes, std::string* text) {
  while (!bytes.empty()) {
    const Utf8Unit unit = NextUtf8Unit(bytes);
    text->append(unit.kind == Utf8Unit::Kind::kCharacter ? bytes.substr(0, unit.length)
                                                         : std::string_view("\xEF\xBF\xBD"));
    bytes.remove_prefix(unit.length);
  }
}

}  // namespace espalier
