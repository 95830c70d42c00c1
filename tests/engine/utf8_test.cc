#include "engine/utf8.h"

#include <cstdint>
#include <optional>
#include <random>

#include "gtest/gtest.h"

namespace espalier {
namespace {

// The decoder of the WHATWG Encoding Standard, section 8.1.1, state by state, encoding again what
// it decodes: an algorithm of another shape than ours.
std::string WhatwgDecode(const std::string& bytes) {
  const std::string replacement = "\xEF\xBF\xBD";
  std::string text;
  std::string character;
  int needed = 0;
  int seen = 0;
  unsigned char lower = 0x80;
  unsigned char upper = 0xBF;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    if (needed == 0) {
      character = bytes[i];
      if (byte <= 0x7F) {
        text += bytes[i];
      } else if (byte >= 0xC2 && byte <= 0xDF) {
        needed = 1;
      } else if (byte >= 0xE0 && byte <= 0xEF) {
        if (byte == 0xE0) lower = 0xA0;
        if (byte == 0xED) upper = 0x9F;
        needed = 2;
      } else if (byte >= 0xF0 && byte <= 0xF4) {
        if (byte == 0xF0) lower = 0x90;
        if (byte == 0xF4) upper = 0x8F;
        needed = 3;
      } else {
        text += replacement;
      }
      continue;
    }
    const bool continues = byte >= lower && byte <= upper;
    lower = 0x80;
    upper = 0xBF;
    if (!continues) {
      needed = seen = 0;
      text += replacement;
      --i;  // "restore byte to the stream"
      continue;
    }
    character += bytes[i];
    if (++seen == needed) {
      text += character;
      needed = seen = 0;
    }
  }
  if (needed != 0) text += replacement;
  return text;
}

std::string Decoded(const std::string& bytes) {
  std::string text;
  AppendAsUtf8(bytes, &text);
  return text;
}

// Bytes at and around every border of the table of well-formed sequences.
const unsigned char kInteresting[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                      0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
                                      0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};

TEST(Utf8Test, DecodesEveryShortSequenceAsTheEncodingStandardDoes) {
  constexpr int kCount = sizeof(kInteresting);
  std::string bytes(4, '\0');
  for (int a = 0; a < kCount; ++a) {
    for (int b = 0; b < kCount; ++b) {
      for (int c = 0; c < kCount; ++c) {
        for (int d = 0; d < kCount; ++d) {
          bytes[0] = static_cast<char>(kInteresting[a]);
          bytes[1] = static_cast<char>(kInteresting[b]);
          bytes[2] = static_cast<char>(kInteresting[c]);
          bytes[3] = static_cast<char>(kInteresting[d]);
          for (int length = 1; length <= 4; ++length) {
            const std::string prefix = bytes.substr(0, length);
            const std::string expected = WhatwgDecode(prefix);
            ASSERT_EQ(Decoded(prefix), expected) << testing::PrintToString(prefix);
            ASSERT_EQ(IsValidUtf8(prefix), prefix == expected) << testing::PrintToString(prefix);
          }
        }
      }
    }
  }
}

TEST(Utf8Test, DecodesRandomBytesAsTheEncodingStandardDoes) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    std::string bytes;
    for (int i = 0; i < 200; ++i) {
      bytes += static_cast<char>(rng() % 2 == 0 ? rng() % 256
                                                : kInteresting[rng() % sizeof(kInteresting)]);
    }
    EXPECT_EQ(Decoded(bytes), WhatwgDecode(bytes));
    EXPECT_TRUE(IsValidUtf8(Decoded(bytes)));
  }
}

// The examples of the Unicode standard, section 3.9, tables 3-8 to 3-11.
TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(Decoded("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Decoded("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Decoded("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Decoded("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8Test, SaysWhatMoreBytesCouldComplete) {
  EXPECT_EQ(NextUtf8Unit("\xF0\x9F\x98").kind, Utf8Unit::Kind::kIncomplete);
  EXPECT_EQ(NextUtf8Unit("\xF0\x9F\x98").length, 3);
  EXPECT_EQ(NextUtf8Unit("\xF0\x9F\x98\x80!").kind, Utf8Unit::Kind::kCharacter);
  EXPECT_EQ(NextUtf8Unit("\xF0\x9F!").kind, Utf8Unit::Kind::kInvalid);
  EXPECT_EQ(NextUtf8Unit("\xF0\x9F!").length, 2);
  EXPECT_EQ(NextUtf8Unit("\xE0\x80").kind, Utf8Unit::Kind::kInvalid);
  EXPECT_EQ(NextUtf8Unit("\xE0\x80").length, 1);
}

}  // namespace
}  // namespace espalier
