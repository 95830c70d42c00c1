#include "model/tokenizer/byte_level.h"

#include <array>

#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

struct Alphabet {
  std::array<std::string, 256> symbols;
  std::array<int, 0x144> bytes;  // by code point; -1: not in the alphabet

  Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;  // bytes that do not print take the code points from here on
    for (int byte = 0; byte < 256; ++byte) {
      const bool prints = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const char32_t code_point = prints ? byte : next++;
      AppendUtf8(code_point, &symbols[byte]);
      bytes[code_point] = byte;
    }
  }
};

const Alphabet& GetAlphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

}  // namespace

const std::string& ByteLevelSymbol(unsigned char byte) { return GetAlphabet().symbols[byte]; }

std::optional<std::string> ByteLevelDecode(std::string_view written) {
  const Alphabet& alphabet = GetAlphabet();
  std::string decoded;
  while (!written.empty()) {
    const size_t length = ValidCharBytes(written);
    if (length == 0) return std::nullopt;
    const char32_t code_point = DecodeChar(written.substr(0, length));
    if (code_point >= alphabet.bytes.size() || alphabet.bytes[code_point] < 0) return std::nullopt;
    decoded += static_cast<char>(alphabet.bytes[code_point]);
    written.remove_prefix(length);
  }
  return decoded;
}

}  // namespace espalier
