// GPT-2's byte alphabet: each of the 256 bytes is written as one printable character, so that a
// vocabulary of byte strings is valid text (source: the GPT-2 release, encoder.py).
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace espalier {

// The character that stands for `byte`, as UTF-8.
const std::string& ByteLevelSymbol(unsigned char byte);

// The bytes that `written` stands for. Empty when a character of it is not in the alphabet.
std::optional<std::string> ByteLevelDecode(std::string_view written);

}  // namespace espalier
