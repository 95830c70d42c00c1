#include "server/parse_value.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace espalier {
namespace {

using testing::HasSubstr;

TEST(ParseValueTest, IntegersAreWholeAndInRange) {
  EXPECT_EQ(*ParseInteger("0", 0, 9), 0);
  EXPECT_EQ(*ParseInteger("9", 0, 9), 9);
  EXPECT_EQ(*ParseInteger("-5", -5, 9), -5);
  for (const char* bad : {"", "1.5", "1e3", "0x10", "12abc", "9223372036854775808", "--1"}) {
    SCOPED_TRACE(bad);
    EXPECT_FALSE(
        ParseInteger(bad, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max())
            .ok());
  }
  EXPECT_THAT(std::string(ParseInteger("10", 0, 9).status().message()),
              HasSubstr("10 is not between 0 and 9"));
  EXPECT_FALSE(ParseInteger("-1", 0, 9).ok());
}

TEST(ParseValueTest, SizesTakeBinaryUnits) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("64KiB"), 65536u);
  EXPECT_EQ(*ParseSize("512MiB"), size_t{512} << 20);
  EXPECT_EQ(*ParseSize("2GiB"), size_t{2} << 30);
  EXPECT_EQ(*ParseSize("18446744073709551615"), std::numeric_limits<size_t>::max());
}

TEST(ParseValueTest, SizesRefuseWhatCouldBeMisread) {
  for (const char* bad : {"", "GiB", "2GB", "2G", "2gib", "-1", "-1GiB", "+1GiB", "1.5GiB", "1 GiB",
                          "1GiBx", "0x10", "18446744073709551616", "17179869184GiB"}) {
    SCOPED_TRACE(bad);
    absl::StatusOr<size_t> size = ParseSize(bad);
    ASSERT_FALSE(size.ok());
    EXPECT_THAT(std::string(size.status().message()), HasSubstr("2GiB"));  // shows a right one
  }
}

TEST(ParseValueTest, FormattedSizesParseBack) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 1000; ++i) {
    const size_t size = (random() >> (random() % 64)) << (random() % 40);
    EXPECT_EQ(*ParseSize(FormatSize(size)), size);
  }
  EXPECT_EQ(FormatSize(size_t{3} << 30), "3GiB");
  EXPECT_EQ(FormatSize((size_t{3} << 30) + 1), "3221225473");
}

TEST(ParseValueTest, DurationsNeedAUnit) {
  EXPECT_EQ(*ParseDuration("30s"), absl::Seconds(30));
  EXPECT_EQ(*ParseDuration("500ms"), absl::Milliseconds(500));
  EXPECT_EQ(*ParseDuration("1m30s"), absl::Seconds(90));
  EXPECT_EQ(*ParseDuration("0"), absl::ZeroDuration());
  for (const char* bad : {"", "30", "s", "-1s", "30 s", "1d", "inf", "25h"}) {
    SCOPED_TRACE(bad);
    EXPECT_FALSE(ParseDuration(bad).ok());
  }
}

TEST(ParseValueTest, NamesListTheirChoices) {
  EXPECT_EQ(*ParseName<Sharing>("tree"), Sharing::kTree);
  EXPECT_THAT(std::string(ParseName<Sharing>("Tree").status().message()),
              HasSubstr("none, tree, cache"));
}

}  // namespace
}  // namespace espalier
