#include "engine/constraint/utf8_ranges.h"

#include <algorithm>
#include <array>

namespace espalier {
namespace {

// The last code point of each encoded length.
constexpr std::array<uint32_t, 4> kLastOfLength = {0x7F, 0x7FF, 0xFFFF, 0x10FFFF};

int EncodedLength(uint32_t c) {
  int length = 1;
  while (c > kLastOfLength[length - 1]) ++length;
  return length;
}

std::array<uint8_t, 4> Encode(uint32_t c, int length) {
  constexpr std::array<uint8_t, 4> kLead = {0x00, 0xC0, 0xE0, 0xF0};
  std::array<uint8_t, 4> bytes{};
  for (int i = length - 1; i > 0; --i, c >>= 6) bytes[i] = static_cast<uint8_t>(0x80 | (c & 0x3F));
  bytes[0] = static_cast<uint8_t>(kLead[length - 1] | c);
  return bytes;
}

// Both ends have the same encoded length. A product of byte ranges where, from the first byte that
// differs, every later byte runs over all of its values; otherwise the range is cut in two.
void Split(uint32_t first, uint32_t last, int length,
           std::vector<std::vector<ByteRange>>* sequences) {
  for (int i = 1; i < length; ++i) {
    const uint32_t low_bits = (1u << (6 * i)) - 1;
    if ((first & ~low_bits) == (last & ~low_bits)) continue;
    if ((first & low_bits) != 0) {
      Split(first, first | low_bits, length, sequences);
      Split((first | low_bits) + 1, last, length, sequences);
      return;
    }
    if ((last & low_bits) != low_bits) {
      Split(first, (last & ~low_bits) - 1, length, sequences);
      Split(last & ~low_bits, last, length, sequences);
      return;
    }
  }
  const std::array<uint8_t, 4> low = Encode(first, length);
  const std::array<uint8_t, 4> high = Encode(last, length);
  std::vector<ByteRange>& sequence = sequences->emplace_back();
  for (int i = 0; i < length; ++i) sequence.push_back({low[i], high[i]});
}

}  // namespace

std::vector<std::vector<ByteRange>> Utf8Ranges(CodePointRange range) {
  std::vector<std::vector<ByteRange>> sequences;
  while (range.first <= range.last) {
    const int length = EncodedLength(range.first);
    const uint32_t last = std::min(range.last, kLastOfLength[length - 1]);
    Split(range.first, last, length, &sequences);
    range.first = last + 1;
  }
  return sequences;
}

}  // namespace espalier
