// Random regular expressions and texts over few characters, of every length in UTF-8.
#pragma once

#include <array>
#include <random>
#include <string>

namespace espalier {

inline std::string RandomPattern(std::mt19937_64& rng, int depth = 3) {
  static constexpr std::array<const char*, 12> kAtoms = {
      "a", "b",    "1",     "\u00e9", "\u20ac", "\U0001F600",
      ".", "[ab]", "[^a1]", "\\d",    "\\W",    "[b-\u20ac]"};
  static constexpr std::array<const char*, 6> kCounts = {"*", "+", "?", "{2}", "{1,3}", "{0,2}"};
  std::string pattern;
  for (int parts = 1 + static_cast<int>(rng() % 3); parts > 0; --parts) {
    const bool group = depth > 0 && rng() % 3 == 0;
    std::string atom = kAtoms[rng() % kAtoms.size()];
    if (group) atom = "(" + RandomPattern(rng, depth - 1) + ")";
    pattern += atom;
    if (rng() % 3 == 0) pattern += kCounts[rng() % kCounts.size()];
  }
  if (depth > 0 && rng() % 4 == 0) pattern += "|" + RandomPattern(rng, depth - 1);
  return pattern;
}

inline std::string RandomText(std::mt19937_64& rng) {
  static constexpr std::array<const char*, 8> kCharacters = {"a",      "b",          "1",  "\u00e9",
                                                             "\u20ac", "\U0001F600", "\n", "-"};
  std::string text;
  for (uint64_t length = rng() % 7; length > 0; --length) {
    text += kCharacters[rng() % kCharacters.size()];
  }
  return text;
}

}  // namespace espalier
