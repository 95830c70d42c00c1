#include "engine/draft/ngram_drafter.h"

#include <gtest/gtest.h>

#include <vector>

namespace espalier {
namespace {

using Tokens = std::vector<int32_t>;

TEST(NgramDrafterTest, DraftsWhatFollowedTheLongestMatch) {
  // 2 3 was followed by 9 late, 1 2 3 by 7 early.
  EXPECT_EQ(DraftByNgram(Tokens{1, 2, 3, 7, 8, 2, 3, 9, 1, 2, 3}, {}, 3), (Tokens{7, 8, 2}));
}

TEST(NgramDrafterTest, PrefersTheLaterOfEqualMatches) {
  EXPECT_EQ(DraftByNgram(Tokens{2, 3, 7, 2, 3, 9, 2, 3}, {}, 1), (Tokens{9}));
}

TEST(NgramDrafterTest, DraftsALoopToAnyLength) {
  EXPECT_EQ(DraftByNgram(Tokens{5, 1, 2, 1, 2}, {}, 7), (Tokens{1, 2, 1, 2, 1, 2, 1}));
}

TEST(NgramDrafterTest, OneTokenIsNoMatch) {
  EXPECT_TRUE(DraftByNgram(Tokens{1, 2, 3, 4, 2}, {}, 4).empty());
  EXPECT_TRUE(DraftByNgram(Tokens{}, {}, 4).empty());
  EXPECT_TRUE(DraftByNgram(Tokens{4, 4, 4}, {}, 0).empty());
}

TEST(NgramDrafterTest, OtherTextsServeWherePathDoesNot) {
  const Tokens near{1, 8, 9, 4, 5};
  const Tokens far{8, 9, 6};
  const std::vector<std::span<const int32_t>> others{near, far};
  EXPECT_EQ(DraftByNgram(Tokens{3, 8, 9}, others, 4), (Tokens{4, 5}));
  // As good a match on the path comes first; a better one elsewhere wins.
  EXPECT_EQ(DraftByNgram(Tokens{8, 9, 7, 8, 9}, others, 1), (Tokens{7}));
  EXPECT_EQ(DraftByNgram(Tokens{8, 9, 7, 1, 8, 9}, others, 2), (Tokens{4, 5}));
}

}  // namespace
}  // namespace espalier
