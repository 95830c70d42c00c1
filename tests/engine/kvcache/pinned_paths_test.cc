#include "engine/kvcache/pinned_paths.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/time/clock.h"

namespace espalier {
namespace {

using Tokens = std::vector<int32_t>;

class PinnedPathsTest : public testing::Test {
 protected:
  static constexpr int kPages = 24;
  static constexpr int kPageSize = 4;

  // Caches the path with its KV. False when pages run out.
  bool Cache(const Tokens& path) {
    const NodeId root = radix_.Root("");
    const auto match = radix_.Match(root, path);
    const int rest = static_cast<int>(path.size()) - match.matched;
    if (rest == 0) return true;
    const NodeId node =
        radix_.InsertFilling(match.node, std::span(path).subspan(match.matched), /*filler=*/1);
    std::vector<int64_t> slots;
    const bool filled = radix_.Fill(node, rest, &slots) == rest;
    radix_.Unlock(node);
    return filled;
  }
  int Matched(const Tokens& path) { return radix_.Match(radix_.Root(""), path).matched; }

  void Pin(const std::string& owner, int key, const Tokens& path, int priority = 0,
           absl::Time expires = absl::InfiniteFuture()) {
    PinUpdate update;
    update.owner = owner;
    update.priority = priority;
    update.pin.emplace_back(key, path);
    update.expires = expires;
    pins_.Update(update);
  }
  // Evicts whatever can be.
  void EvictAll() { radix_.Reserve(kPages - radix_.num_locked_pages()); }

  PagePool pool_{kPages};
  RadixTree radix_{&pool_, kPageSize};
  PinnedPaths pins_{&radix_};
};

TEST_F(PinnedPathsTest, APinKeepsItsPathFromEviction) {
  const Tokens kept = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const Tokens other = {1, 2, 3, 20, 21, 22};
  ASSERT_TRUE(Cache(kept) && Cache(other));
  Pin("s", 0, kept);
  EvictAll();
  EXPECT_EQ(Matched(kept), 9);
  EXPECT_EQ(Matched(other), 3);
  pins_.UnpinAll("s");
  EXPECT_EQ(radix_.num_locked_pages(), 0);
  EvictAll();
  EXPECT_EQ(Matched(kept), 0);
}

TEST_F(PinnedPathsTest, APinMovesWithItsBranch) {
  const Tokens path = {1, 2, 3, 4, 5, 6, 7, 8};
  ASSERT_TRUE(Cache(path));
  Pin("s", 0, path);
  Pin("s", 0, {1, 2, 3});
  EXPECT_EQ(pins_.num_pins(), 1);
  EvictAll();
  EXPECT_EQ(Matched(path), 3);
}

TEST_F(PinnedPathsTest, WhatHasNoKvIsNotPinned) {
  const NodeId upper = radix_.InsertFilling(radix_.Root(""), Tokens{1, 2, 3, 4}, 1);
  std::vector<int64_t> slots;
  ASSERT_EQ(radix_.Fill(upper, 2, &slots), 2);
  Pin("s", 0, {1, 2, 3, 4});
  EXPECT_EQ(pins_.num_pins(), 0);
  ASSERT_EQ(radix_.Fill(upper, 2, &slots), 2);
  Pin("s", 0, {1, 2, 3, 4, 5});
  EXPECT_EQ(pins_.num_pins(), 1);
  radix_.Unlock(upper);
  pins_.Clear();
}

TEST_F(PinnedPathsTest, PressureTakesTheLowestPriorityThenTheLongestIdle) {
  const std::map<std::string, Tokens> paths = {
      {"old", {1, 1}}, {"young", {2, 2}}, {"low", {3, 3}}, {"high", {4, 4}}};
  for (const auto& [owner, path] : paths) ASSERT_TRUE(Cache(path));
  Pin("high", 0, paths.at("high"), 5);
  Pin("old", 0, paths.at("old"));
  Pin("young", 0, paths.at("young"));
  Pin("low", 0, paths.at("low"), -1);
  for (const std::string owner : {"low", "old", "young", "high"}) {
    ASSERT_TRUE(pins_.ReleaseOne());
    EvictAll();
    EXPECT_EQ(Matched(paths.at(owner)), 0) << owner;
  }
  EXPECT_FALSE(pins_.ReleaseOne());
}

TEST_F(PinnedPathsTest, PinsExpire) {
  ASSERT_TRUE(Cache({1, 2}) && Cache({3, 4}));
  const absl::Time now = absl::Now();
  Pin("a", 0, {1, 2}, 0, now + absl::Seconds(1));
  Pin("b", 0, {3, 4}, 0, now + absl::Seconds(2));
  EXPECT_EQ(pins_.NextExpiry(), now + absl::Seconds(1));
  pins_.Expire(now + absl::Seconds(1));
  EXPECT_EQ(pins_.num_pins(), 1);
  pins_.Expire(now + absl::Seconds(3));
  EXPECT_EQ(pins_.NextExpiry(), absl::InfiniteFuture());
  EXPECT_EQ(radix_.num_locked_pages(), 0);
}

TEST_F(PinnedPathsTest, RandomUpdatesHoldExactlyWhatIsPinned) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto random_path = [&] {
    Tokens path(1 + random() % 12);
    for (int32_t& token : path) token = static_cast<int32_t>(random() % 2);
    return path;
  };
  int longest = 0;
  std::map<std::pair<std::string, int>, Tokens> expected;  // what each pin found
  for (int round = 0; round < 4000; ++round) {
    const std::string owner(1, static_cast<char>('a' + random() % 3));
    const int key = static_cast<int>(random() % 4);
    switch (random() % 4) {
      case 0:
        Cache(random_path());
        break;
      case 1: {
        Tokens path = random_path();
        Pin(owner, key, path);
        path.resize(Matched(path));
        expected.erase({owner, key});
        if (!path.empty()) expected[{owner, key}] = path;
        break;
      }
      case 2: {
        PinUpdate update;
        update.owner = owner;
        update.unpin = {key};
        pins_.Update(update);
        expected.erase({owner, key});
        break;
      }
      case 3:
        if (random() % 8 == 0) {
          pins_.UnpinAll(owner);
          std::erase_if(expected, [&](const auto& pin) { return pin.first.first == owner; });
        }
        if (random() % 2 == 0) EvictAll();
        break;
    }
    radix_.CheckInvariants();
    ASSERT_EQ(pins_.num_pins(), static_cast<int>(expected.size()));
    for (const auto& [pin, path] : expected) {
      ASSERT_EQ(Matched(path), static_cast<int>(path.size()));
      longest = std::max(longest, static_cast<int>(path.size()));
    }
    ASSERT_EQ(radix_.num_locked_pages() == 0, expected.empty());
  }
  EXPECT_GT(longest, 4);
  pins_.Clear();
  EXPECT_EQ(radix_.num_locked_pages(), 0);
}

}  // namespace
}  // namespace espalier
