#include "engine/constraint/utf8_ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace espalier {
namespace {

std::string Encode(uint32_t c) {
  if (c < 0x80) return {static_cast<char>(c)};
  const auto tail = [c](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8RangesTest, MatchExactlyTheCodePointsOfTheRange) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  constexpr uint32_t kEdges[] = {0,      0x7F,   0x80,   0x7FF,   0x800,
                                 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF};
  const auto point = [&] {
    const uint32_t c = rng() % 3 == 0 ? kEdges[rng() % std::size(kEdges)] : rng() % 0x110000;
    return c >= 0xD800 && c <= 0xDFFF ? uint32_t{0xE000} : c;
  };
  for (int round = 0; round < 300; ++round) {
    CodePointRange range = {point(), point()};
    if (range.first > range.last) std::swap(range.first, range.last);
    // Without surrogates, as the parser gives them.
    if (range.first < 0xD800 && range.last > 0xDFFF) range.last = 0xD7FF;
    const auto sequences = Utf8Ranges(range);
    const auto matches = [&](uint32_t c) {
      const std::string bytes = Encode(c);
      return std::ranges::count_if(sequences, [&](const std::vector<ByteRange>& sequence) {
        return std::ranges::equal(sequence, bytes, [](const ByteRange& r, char byte) {
          return r.first <= static_cast<uint8_t>(byte) && static_cast<uint8_t>(byte) <= r.last;
        });
      });
    };
    for (int i = 0; i < 300; ++i) {
      const uint32_t c = i % 3 == 0   ? range.first + rng() % (range.last - range.first + 1)
                         : i % 3 == 1 ? point()
                                      : std::min<uint32_t>(range.last + rng() % 2, 0x10FFFF);
      if (c >= 0xD800 && c <= 0xDFFF) continue;
      ASSERT_EQ(matches(c), c >= range.first && c <= range.last ? 1 : 0) << c;
    }
  }
}

}  // namespace
}  // namespace espalier
