#include "engine/tree/stop_matcher.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace espalier {
namespace {

std::string RandomString(int length, int letters, std::mt19937_64& rng) {
  std::string text;
  for (int i = 0; i < length; ++i) text += static_cast<char>('a' + rng() % letters);
  return text;
}

// Few letters, so that strings repeat themselves and overlap.
TEST(StopMatcherTest, EqualsComparingEveryEnd) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const int letters = static_cast<int>(1 + rng() % 3);
    std::vector<std::string> stop(rng() % 5);
    for (std::string& s : stop) s = RandomString(static_cast<int>(1 + rng() % 8), letters, rng);
    StopMatcher matcher(&stop);
    std::string text;
    for (char byte : RandomString(120, letters, rng)) {
      text += byte;
      int match = -1;
      size_t pending = 0;
      for (size_t s = 0; s < stop.size(); ++s) {
        if (text.ends_with(stop[s]) && (match < 0 || stop[s].size() > stop[match].size())) {
          match = static_cast<int>(s);
        }
        for (size_t length = 1; length < stop[s].size(); ++length) {
          if (text.ends_with(stop[s].substr(0, length))) pending = std::max(pending, length);
        }
      }
      ASSERT_EQ(matcher.Push(byte), match) << text;
      ASSERT_EQ(matcher.pending(), static_cast<int>(pending)) << text;
    }
  }
}

TEST(StopMatcherTest, TheLongestMatchWinsAndThenTheFirst) {
  const std::vector<std::string> stop = {"b", "ab", "ab"};
  StopMatcher matcher(&stop);
  EXPECT_EQ(matcher.Push('a'), -1);
  EXPECT_EQ(matcher.Push('b'), 1);
  EXPECT_EQ(matcher.Push('b'), 0);
}

}  // namespace
}  // namespace espalier
