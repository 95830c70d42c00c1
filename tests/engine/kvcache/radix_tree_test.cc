#include "engine/kvcache/radix_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <optional>
#include <string>
#include <vector>

namespace espalier {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::SizeIs;

using Tokens = std::vector<int32_t>;

Tokens Range(int32_t first, int count) {
  Tokens tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Every operation through these helpers is followed by a check of all invariants.
class RadixTreeTest : public ::testing::Test {
 protected:
  static constexpr int kPages = 32;
  static constexpr int kPageSize = 4;
  static constexpr uint64_t kFiller = 11;

  void TearDown() override { tree_.CheckInvariants(); }

  NodeId Root() { return tree_.Root("a"); }

  RadixTree::MatchResult Match(const Tokens& tokens) {
    const auto result = tree_.Match(Root(), tokens);
    tree_.CheckInvariants();
    return result;
  }

  int Matched(const Tokens& tokens) { return Match(tokens).matched; }

  // A new indexed node with all its KV, locked.
  NodeId Insert(NodeId parent, const Tokens& tokens) {
    const NodeId node = tree_.InsertFilling(parent, tokens, kFiller);
    EXPECT_THAT(FillSome(node, static_cast<int>(tokens.size())), SizeIs(tokens.size()));
    return node;
  }

  // The same, cached.
  void Cache(const Tokens& tokens, std::string_view salt = "a") {
    Unlock(Insert(tree_.Root(salt), tokens));
  }

  std::vector<int64_t> FillSome(NodeId node, int count) {
    std::vector<int64_t> slots;
    tree_.Fill(node, count, &slots);
    tree_.CheckInvariants();
    return slots;
  }

  // A new private child with these tokens, locked.
  NodeId Grow(NodeId parent, const Tokens& tokens) {
    const NodeId leaf = tree_.NewPrivate(parent);
    for (int32_t token : tokens) EXPECT_TRUE(Append(leaf, token));
    return leaf;
  }

  std::optional<int64_t> Append(NodeId leaf, int32_t token) {
    const auto slot = tree_.Append(leaf, token);
    tree_.CheckInvariants();
    return slot;
  }

  void Unlock(NodeId node) {
    tree_.Unlock(node);
    tree_.CheckInvariants();
  }

  int NumNodes(std::string_view salt = "a") {
    return static_cast<int>(tree_.Describe(salt, 1000000, 0).size());
  }

  PagePool pool_{kPages};
  RadixTree tree_{&pool_, kPageSize};
};

TEST_F(RadixTreeTest, NamespacesDoNotSeeEachOther) {
  Cache(Range(0, 6), "a");
  EXPECT_EQ(tree_.Match(tree_.Root("b"), Range(0, 6)).matched, 0);
  EXPECT_EQ(tree_.Match(tree_.Root("a"), Range(0, 6)).matched, 6);
  EXPECT_NE(tree_.Root("a"), tree_.Root("b"));
  EXPECT_EQ(tree_.Root("a"), tree_.Root("a"));
}

TEST_F(RadixTreeTest, ARootGoesWithTheLastThingBelowIt) {
  const NodeId leaf = Grow(Root(), {});
  EXPECT_EQ(NumNodes(), 2);
  Unlock(leaf);
  EXPECT_EQ(NumNodes(), 0);

  Cache(Range(0, 2));
  EXPECT_EQ(NumNodes(), 2);
  EXPECT_TRUE(tree_.Reserve(kPages));
  EXPECT_EQ(NumNodes(), 0);
}

// ---- match and split

TEST_F(RadixTreeTest, ASplitCopiesNothingAndTheLowerHalfKeepsTheId) {
  const NodeId node = Insert(Root(), Range(0, 10));  // pages of 4, 4 and 2 tokens
  const Tokens pages(tree_.pages(node).begin(), tree_.pages(node).end());
  std::vector<int64_t> slots;
  for (int i = 0; i < 10; ++i) slots.push_back(tree_.slot(node, i));

  const auto [upper, matched] = Match({0, 1, 2, 3, 4, 5, 99});
  EXPECT_EQ(matched, 6);
  EXPECT_EQ(tree_.parent(node), upper);
  EXPECT_EQ(tree_.parent(upper), Root());
  EXPECT_THAT(tree_.tokens(upper), ElementsAreArray(Range(0, 6)));
  EXPECT_THAT(tree_.tokens(node), ElementsAreArray(Range(6, 4)));
  EXPECT_THAT(tree_.pages(upper), ElementsAre(pages[0], pages[1]));
  EXPECT_THAT(tree_.pages(node), ElementsAre(pages[1], pages[2]));
  EXPECT_EQ(tree_.first_slot(node), 2);
  EXPECT_EQ(tree_.path_tokens(upper), 6);
  EXPECT_EQ(tree_.path_tokens(node), 10);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(tree_.slot(upper, i), slots[i]);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(tree_.slot(node, i), slots[6 + i]);
  EXPECT_EQ(pool_.owners(pages[1]), 2);
  EXPECT_EQ(pool_.num_used(), 3);
}

TEST_F(RadixTreeTest, ASplitBetweenPagesSharesNone) {
  const NodeId node = Insert(Root(), Range(0, 8));
  const NodeId upper = Match(Range(0, 4)).node;
  EXPECT_THAT(tree_.pages(upper), SizeIs(1));
  EXPECT_THAT(tree_.pages(node), SizeIs(1));
  EXPECT_EQ(tree_.first_slot(node), 0);
  EXPECT_EQ(pool_.owners(tree_.pages(node)[0]), 1);
}

TEST_F(RadixTreeTest, MatchesLongPromptsAcrossManySplits) {
  PagePool pool(700);
  RadixTree tree(&pool, 16);
  const Tokens prompt = Range(0, 10000);
  const NodeId node = tree.InsertFilling(tree.Root(""), prompt, kFiller);
  std::vector<int64_t> slots;
  ASSERT_EQ(tree.Fill(node, 10000, &slots), 10000);
  for (int cut : {1, 63, 64, 65, 127, 128, 129, 9999, 5000, 4096}) {
    Tokens other(prompt.begin(), prompt.begin() + cut);
    other.push_back(-1);
    EXPECT_EQ(tree.Match(tree.Root(""), other).matched, cut);
    tree.CheckInvariants();
  }
  EXPECT_EQ(tree.Match(tree.Root(""), prompt).node, node);
  std::vector<int64_t> path_slots;
  for (NodeId at = node; tree.parent(at).valid(); at = tree.parent(at)) {
    for (int i = tree.filled(at) - 1; i >= 0; --i) path_slots.push_back(tree.slot(at, i));
  }
  EXPECT_TRUE(std::equal(slots.begin(), slots.end(), path_slots.rbegin(), path_slots.rend()));
}

// ---- filling

TEST_F(RadixTreeTest, AFillingNodeMatchesBeforeItIsFilled) {
  const NodeId node = tree_.InsertFilling(Root(), Range(0, 9), kFiller);
  EXPECT_EQ(Match(Range(0, 9)).node, node);
  EXPECT_THAT(tree_.pages(node), SizeIs(0));
  EXPECT_THAT(FillSome(node, 3), SizeIs(3));
  EXPECT_THAT(FillSome(node, 100), SizeIs(6));
  EXPECT_THAT(FillSome(node, 100), SizeIs(0));
  EXPECT_FALSE(tree_.FirstUnfilled(node));
}

TEST_F(RadixTreeTest, SplitBelowTheWatermarkLeavesTheLowerHalfToFillOnInItsPage) {
  const NodeId node = tree_.InsertFilling(Root(), Range(0, 9), kFiller);
  const int64_t last = FillSome(node, 6).back();
  const NodeId upper = Match(Range(0, 5)).node;
  EXPECT_EQ(tree_.filled(upper), 5);
  EXPECT_EQ(tree_.filled(node), 1);
  EXPECT_FALSE(tree_.FirstUnfilled(upper));
  const auto unfilled = tree_.FirstUnfilled(node);
  ASSERT_TRUE(unfilled);
  EXPECT_EQ(unfilled->node, node);
  EXPECT_EQ(unfilled->offset, 1);
  EXPECT_EQ(unfilled->remaining, 3);
  EXPECT_EQ(unfilled->filler, kFiller);
  EXPECT_THAT(FillSome(node, 2), ElementsAre(last + 1, last + 2));
}

TEST_F(RadixTreeTest, SplitAtTheWatermarkStartsTheLowerHalfOnAFreshPage) {
  const NodeId node = tree_.InsertFilling(Root(), Range(0, 9), kFiller);
  const int64_t last = FillSome(node, 6).back();
  const NodeId upper = Match(Range(0, 6)).node;
  EXPECT_EQ(tree_.filled(upper), 6);
  EXPECT_THAT(tree_.pages(upper), SizeIs(2));
  EXPECT_EQ(tree_.filled(node), 0);
  EXPECT_THAT(tree_.pages(node), SizeIs(0));
  EXPECT_EQ(tree_.FirstUnfilled(node)->filler, kFiller);
  const int64_t next = FillSome(node, 1).front();
  EXPECT_EQ(next % kPageSize, 0);
  EXPECT_NE(next / kPageSize, last / kPageSize);
}

TEST_F(RadixTreeTest, SplitAboveTheWatermarkLeavesBothHalvesToTheFiller) {
  const NodeId node = tree_.InsertFilling(Root(), Range(0, 9), kFiller);
  const int64_t last = FillSome(node, 6).back();
  const NodeId upper = Match(Range(0, 7)).node;
  EXPECT_EQ(tree_.filled(upper), 6);
  EXPECT_EQ(tree_.FirstUnfilled(node)->node, upper);
  EXPECT_EQ(tree_.FirstUnfilled(node)->filler, kFiller);
  EXPECT_THAT(FillSome(upper, 5), ElementsAre(last + 1));
  EXPECT_EQ(tree_.FirstUnfilled(node)->node, node);
  EXPECT_EQ(tree_.FirstUnfilled(node)->filler, kFiller);
  EXPECT_EQ(FillSome(node, 2).front() % kPageSize, 0);
}

TEST_F(RadixTreeTest, AnOrphanGoesOnFromItsWatermark) {
  const NodeId first = tree_.InsertFilling(Root(), Range(0, 9), kFiller);
  FillSome(first, 3);
  const NodeId shared = Match(Range(0, 5)).node;
  tree_.Lock(shared);
  const NodeId second = tree_.InsertFilling(shared, Tokens{77, 78}, 22);

  tree_.Orphan(first, kFiller);
  Unlock(first);  // what is below the shared part has no KV and goes
  EXPECT_EQ(Matched(Range(0, 9)), 5);
  auto unfilled = tree_.FirstUnfilled(second);
  EXPECT_EQ(unfilled->node, shared);
  EXPECT_EQ(unfilled->offset, 3);
  EXPECT_EQ(unfilled->filler, 0u);
  tree_.SetFiller(shared, 22);
  EXPECT_EQ(tree_.FirstUnfilled(second)->filler, 22u);
  FillSome(shared, 2);
  EXPECT_EQ(tree_.FirstUnfilled(second)->node, second);
  EXPECT_EQ(tree_.FirstUnfilled(second)->filler, 22u);
}

TEST_F(RadixTreeTest, OrphanTouchesOnlyItsOwnFiller) {
  const NodeId shared = tree_.InsertFilling(Root(), Range(0, 3), kFiller);
  const NodeId second = tree_.InsertFilling(shared, Range(50, 3), 22);
  tree_.Orphan(second, 22);
  EXPECT_EQ(tree_.FirstUnfilled(second)->filler, kFiller);
  FillSome(shared, 3);
  EXPECT_EQ(tree_.FirstUnfilled(second)->filler, 0u);
}

TEST_F(RadixTreeTest, TheLastUnlockCutsAnUnfilledNodeToItsWatermark) {
  const NodeId node = tree_.InsertFilling(Root(), Range(0, 9), kFiller);
  FillSome(node, 5);
  tree_.Lock(node);
  Unlock(node);
  EXPECT_EQ(Match(Range(0, 9)).matched, 9) << "still locked";
  Unlock(node);
  EXPECT_EQ(Matched(Range(0, 9)), 5);
  EXPECT_EQ(pool_.num_used(), 2);

  const NodeId empty = tree_.InsertFilling(Root(), Range(50, 9), kFiller);
  Unlock(empty);
  EXPECT_EQ(Matched(Range(50, 9)), 0);
  EXPECT_EQ(NumNodes(), 2);
}

TEST_F(RadixTreeTest, FillsAsFarAsPagesGo) {
  const NodeId node = tree_.InsertFilling(Root(), Range(0, kPages * kPageSize + 5), kFiller);
  EXPECT_THAT(FillSome(node, 100000), SizeIs(kPages * kPageSize));
  EXPECT_EQ(tree_.FirstUnfilled(node)->remaining, 5);
  EXPECT_THAT(FillSome(node, 1), SizeIs(0));
}

// ---- private nodes

TEST_F(RadixTreeTest, AForkStartsOnAFreshPage) {
  const NodeId parent = Insert(Root(), Range(0, 5));
  const NodeId left = Grow(parent, {50});
  const NodeId right = Grow(parent, {50});  // private siblings may begin alike
  EXPECT_EQ(tree_.first_slot(left), 0);
  EXPECT_NE(tree_.pages(left)[0], tree_.pages(parent).back());
  EXPECT_NE(tree_.pages(left)[0], tree_.pages(right)[0]);
  EXPECT_EQ(Matched({0, 1, 2, 3, 4, 50}), 5) << "private nodes are not found";
}

TEST_F(RadixTreeTest, AppendTakesAPageEveryPageSizeTokens) {
  const NodeId leaf = Grow(Root(), {});
  std::vector<int64_t> slots;
  for (int i = 0; i < 9; ++i) slots.push_back(*Append(leaf, i));
  EXPECT_THAT(tree_.pages(leaf), SizeIs(3));
  for (int i = 0; i < 9; ++i) {
    EXPECT_EQ(slots[i], tree_.slot(leaf, i));
    if (i % kPageSize != 0) {
      EXPECT_EQ(slots[i], slots[i - 1] + 1);
    }
  }
}

TEST_F(RadixTreeTest, PublishIndexesUnlessASiblingBeginsAlike) {
  const NodeId first = Grow(Root(), {1, 2});
  const NodeId second = Grow(Root(), {1, 3});
  tree_.Publish(first);
  tree_.Publish(second);
  tree_.Publish(first);  // again: nothing to do
  EXPECT_EQ(Match({1, 2}).node, first);
  EXPECT_EQ(Matched({1, 3}), 1) << "the second stays private";
  Unlock(second);
  EXPECT_EQ(Matched({1, 3}), 2) << "until it is unlocked";
}

TEST_F(RadixTreeTest, TruncatedSlotsAreReusedWithNothingInFlight) {
  const NodeId leaf = Grow(Root(), Range(0, 10));
  const int64_t slot = tree_.slot(leaf, 6);
  tree_.Truncate(leaf, 6);
  EXPECT_THAT(tree_.pages(leaf), SizeIs(2));
  EXPECT_EQ(Append(leaf, 77), slot);
  EXPECT_THAT(tree_.tokens(leaf), ElementsAre(0, 1, 2, 3, 4, 5, 77));
}

TEST_F(RadixTreeTest, TruncatedSlotsThatAStepMayReadAreNotReused) {
  const NodeId leaf = Grow(Root(), Range(0, 10));
  const Tokens pages(tree_.pages(leaf).begin(), tree_.pages(leaf).end());
  pool_.StepSubmitted(1);
  tree_.Truncate(leaf, 6);
  EXPECT_EQ(pool_.num_retiring(), 1);
  const int64_t slot = *Append(leaf, 77);
  // The leaf keeps its id and its path; its first six tokens moved to a node above.
  EXPECT_EQ(slot % kPageSize, 0);
  EXPECT_THAT(pages, ::testing::Not(::testing::Contains(slot / kPageSize)));
  EXPECT_THAT(tree_.tokens(leaf), ElementsAre(77));
  EXPECT_THAT(tree_.tokens(tree_.parent(leaf)), ElementsAreArray(Range(0, 6)));
  EXPECT_EQ(tree_.path_tokens(leaf), 7);
  Unlock(leaf);
  EXPECT_EQ(Matched({0, 1, 2, 3, 4, 5, 77}), 7);
  pool_.StepDone(1);
}

TEST_F(RadixTreeTest, TruncateToAPageBoundaryNeedsNoSplit) {
  const NodeId leaf = Grow(Root(), Range(0, 10));
  pool_.StepSubmitted(1);
  tree_.Truncate(leaf, 8);
  Append(leaf, 77);
  EXPECT_EQ(tree_.parent(leaf), Root());
  tree_.Truncate(leaf, 0);
  EXPECT_THAT(tree_.pages(leaf), SizeIs(0));
  Append(leaf, 78);
  EXPECT_EQ(tree_.parent(leaf), Root());
}

TEST_F(RadixTreeTest, AppendDropsWhatIsCachedBelowTheLeaf) {
  const NodeId leaf = Grow(Root(), {1, 2});
  const NodeId scored = tree_.NewPrivateFilling(leaf, Range(50, 3), kFiller);
  FillSome(scored, 3);
  Unlock(scored);
  EXPECT_EQ(tree_.Match(leaf, Range(50, 3)).matched, 3);
  Append(leaf, 3);
  EXPECT_EQ(tree_.Match(leaf, Range(50, 3)).matched, 0);
  EXPECT_EQ(pool_.num_used(), 1);
}

// ---- merging

TEST_F(RadixTreeTest, AFinishedBranchBecomesCached) {
  const NodeId leaf = Grow(Root(), Range(0, 6));
  EXPECT_EQ(tree_.num_locked_pages(), 2);
  Unlock(leaf);
  EXPECT_EQ(tree_.num_locked_pages(), 0);
  EXPECT_EQ(tree_.num_cached_pages(), 2);
  EXPECT_EQ(Matched(Range(0, 6)), 6);
}

TEST_F(RadixTreeTest, ADuplicateIsDropped) {
  Cache(Range(0, 6));
  Unlock(Grow(Root(), Range(0, 6)));
  EXPECT_EQ(NumNodes(), 2);
  EXPECT_EQ(pool_.num_used(), 2);
  // A duplicate of a part leaves the longer node whole.
  Unlock(Grow(Root(), Range(0, 3)));
  EXPECT_EQ(NumNodes(), 2);
  EXPECT_EQ(pool_.num_used(), 2);
}

TEST_F(RadixTreeTest, TheRestOfAPartialDuplicateMovesBelowItsSibling) {
  Cache(Range(0, 6));
  const NodeId leaf = Grow(Root(), {0, 1, 2, 3, 4, 90, 91, 92, 93});
  const int page = tree_.pages(leaf)[1];
  Unlock(leaf);
  const auto [node, matched] = Match({0, 1, 2, 3, 4, 90, 91, 92, 93});
  EXPECT_EQ(matched, 9);
  EXPECT_EQ(node, leaf);
  EXPECT_EQ(tree_.first_slot(node), 1);
  EXPECT_EQ(tree_.pages(node)[0], page) << "its own page, from the slot of its fifth token on";
  EXPECT_EQ(tree_.path_tokens(node), 9);
  EXPECT_EQ(Matched(Range(0, 6)), 6);
  EXPECT_EQ(pool_.num_used(), 4) << "one of five was a duplicate throughout";
}

TEST_F(RadixTreeTest, ALongerBranchContinuesAWholeSibling) {
  Cache(Range(0, 4));
  Unlock(Grow(Root(), Range(0, 9)));
  EXPECT_EQ(Matched(Range(0, 9)), 9);
  EXPECT_EQ(pool_.num_used(), 3);
}

TEST_F(RadixTreeTest, APrivateNodeStaysWhileItsChildrenLiveAndTakesTheCachedOnesAlong) {
  const NodeId inner = Grow(Root(), Range(0, 6));
  const NodeId live = Grow(inner, {50, 51});
  const NodeId ended = Grow(inner, {60, 61});
  Unlock(inner);
  Unlock(ended);
  EXPECT_EQ(Matched(Range(0, 6)), 0);
  EXPECT_EQ(tree_.parent(live), inner);

  // Meanwhile somebody else computes the same prefix and one of the continuations.
  Cache({0, 1, 2, 3, 4, 5, 60, 99});
  Unlock(live);
  EXPECT_EQ(Matched({0, 1, 2, 3, 4, 5, 50, 51}), 8);
  EXPECT_EQ(Matched({0, 1, 2, 3, 4, 5, 60, 61}), 8);
  EXPECT_EQ(Matched({0, 1, 2, 3, 4, 5, 60, 99}), 8);
  EXPECT_EQ(tree_.num_locked_pages(), 0);
}

TEST_F(RadixTreeTest, AnEmptyPrivateNodeVanishesAndItsChildrenMoveUp) {
  const NodeId empty = Grow(Root(), {});
  Unlock(Grow(empty, {5, 6}));
  EXPECT_EQ(Matched({5, 6}), 0);
  Unlock(empty);
  EXPECT_EQ(Matched({5, 6}), 2);
  EXPECT_EQ(NumNodes(), 2);
}

TEST_F(RadixTreeTest, NothingIsHungBelowTokensWithoutKv) {
  const NodeId filling = tree_.InsertFilling(Root(), Range(0, 8), kFiller);
  FillSome(filling, 4);
  Unlock(Grow(Root(), {0, 1, 2, 3, 4, 5, 90}));  // would hang below token 5: dropped
  EXPECT_EQ(pool_.num_used(), 1);
  Unlock(Grow(Root(), {0, 1, 2, 91}));  // below the watermark: kept
  EXPECT_EQ(Matched({0, 1, 2, 91}), 4);
  Unlock(Grow(Root(), {0, 1, 2, 3, 92}));  // at the watermark: kept
  EXPECT_EQ(Matched({0, 1, 2, 3, 92}), 5);
  EXPECT_THAT(FillSome(filling, 8), SizeIs(4));
  EXPECT_EQ(Matched(Range(0, 8)), 8);
}

TEST_F(RadixTreeTest, AnUnfinishedPrivatePromptIsCutBeforeItIsMerged) {
  const NodeId node = tree_.NewPrivateFilling(Root(), Range(0, 9), kFiller);
  FillSome(node, 5);
  Unlock(node);
  EXPECT_EQ(Matched(Range(0, 9)), 5);
}

TEST_F(RadixTreeTest, PathsWithThousandsOfNodesNeedNoStack) {
  constexpr int kDepth = 20000;
  PagePool pool(2 * kDepth);
  RadixTree tree(&pool, kPageSize);
  for (bool duplicate : {false, true}) {
    NodeId leaf = tree.NewPrivate(tree.Root(""));
    for (int i = 1; i < kDepth; ++i) {
      ASSERT_TRUE(tree.Append(leaf, i));
      const NodeId child = tree.NewPrivate(leaf);
      tree.Unlock(leaf);
      leaf = child;
    }
    tree.Unlock(leaf);
    EXPECT_EQ(pool.num_used(), kDepth - 1) << duplicate;
  }
  tree.CheckInvariants();
  EXPECT_EQ(tree.Match(tree.Root(""), Range(1, kDepth - 1)).matched, kDepth - 1);
  tree.DropNamespace("");
  EXPECT_EQ(pool.num_free(), 2 * kDepth);
}

// ---- eviction

TEST_F(RadixTreeTest, EvictsTheLeastRecentlyUsedLeafFirst) {
  Cache(Range(0, 4));
  Cache(Range(100, 4));
  Cache(Range(200, 4));
  Match(Range(0, 4));
  ASSERT_TRUE(tree_.Reserve(kPages - 2));
  EXPECT_EQ(Matched(Range(100, 4)), 0);
  EXPECT_EQ(Matched(Range(200, 4)), 4);
  ASSERT_TRUE(tree_.Reserve(kPages - 1));
  EXPECT_EQ(Matched(Range(0, 4)), 0);
  EXPECT_EQ(Matched(Range(200, 4)), 4);
}

TEST_F(RadixTreeTest, EvictsChildrenBeforeTheirParents) {
  Cache(Range(0, 8));
  Match(Range(0, 4));  // splits; the upper half is now the later used
  Match({0, 1, 2, 3});
  ASSERT_TRUE(tree_.Reserve(kPages - 1));
  EXPECT_EQ(Matched(Range(0, 8)), 4);
}

TEST_F(RadixTreeTest, GoesOnEvictingWhileAPageHasOtherOwners) {
  Cache(Range(0, 3));
  Match({0});
  Match({0, 1});
  EXPECT_EQ(NumNodes(), 4);
  EXPECT_EQ(pool_.num_used(), 1);
  ASSERT_TRUE(tree_.Reserve(kPages));
  EXPECT_EQ(NumNodes(), 0);
}

TEST_F(RadixTreeTest, NeverEvictsALockedPath) {
  const NodeId node = Insert(Root(), Range(0, 8));
  Match(Range(0, 2));
  Cache(Range(100, 8));
  EXPECT_FALSE(tree_.Reserve(kPages - 1));
  EXPECT_TRUE(tree_.Reserve(kPages - 2));
  EXPECT_EQ(Matched(Range(0, 8)), 8);
  EXPECT_EQ(Matched(Range(100, 8)), 0);
  Unlock(node);
  EXPECT_TRUE(tree_.Reserve(kPages));
}

TEST_F(RadixTreeTest, EvictsNothingInVain) {
  Insert(Root(), Range(0, 8));
  Cache(Range(100, 8));
  EXPECT_FALSE(tree_.Reserve(kPages));
  EXPECT_EQ(Matched(Range(100, 8)), 8);
}

TEST_F(RadixTreeTest, AppendEvictsAndFailsWhenNothingIsLeftToEvict) {
  Cache(Range(0, kPageSize * (kPages - 1)));
  const NodeId leaf = Grow(Root(), {-1, -2, -3, -4});
  EXPECT_EQ(pool_.num_free(), 0);
  EXPECT_TRUE(Append(leaf, -5));
  EXPECT_EQ(Matched(Range(0, 4)), 0) << "one long leaf goes at once";
  while (Append(leaf, 0)) {
  }
  EXPECT_THAT(tree_.tokens(leaf), SizeIs(kPages * kPageSize));
  tree_.Truncate(leaf, kPages * kPageSize - 1);
  EXPECT_TRUE(Append(leaf, 0)) << "a failed append leaves the node as it was";
}

TEST_F(RadixTreeTest, PagesThatNoStepInFlightReadsAreFreedAtOnce) {
  Cache(Range(0, 4));
  const NodeId node = Insert(Root(), Range(100, 4));
  pool_.StepSubmitted(1);
  Unlock(node);  // the step may read it
  ASSERT_TRUE(tree_.Reserve(kPages - 1));
  EXPECT_EQ(pool_.num_retiring(), 0);
  EXPECT_FALSE(tree_.Reserve(kPages));
  EXPECT_EQ(pool_.num_retiring(), 1);
  EXPECT_FALSE(tree_.Reserve(kPages));
  pool_.StepDone(1);
  EXPECT_TRUE(tree_.Reserve(kPages));
}

TEST_F(RadixTreeTest, EvictsNoMoreThanRetiringPagesLeaveToDo) {
  const NodeId first = Insert(Root(), Range(0, 4));
  const NodeId second = Insert(Root(), Range(100, 4));
  pool_.StepSubmitted(1);
  Unlock(first);
  Unlock(second);
  EXPECT_FALSE(tree_.Reserve(kPages - 1));
  EXPECT_EQ(pool_.num_retiring(), 1);
  EXPECT_FALSE(tree_.Reserve(kPages - 1));
  EXPECT_EQ(Matched(Range(100, 4)), 4) << "one retiring page is enough";
  pool_.StepDone(1);
  EXPECT_TRUE(tree_.Reserve(kPages - 1));
}

TEST_F(RadixTreeTest, DropNamespaceForgetsWhatIsUnlockedThere) {
  Cache(Range(0, 8), "a");
  Cache(Range(0, 8), "b");
  const NodeId node = tree_.Match(tree_.Root("a"), Range(0, 5)).node;
  tree_.Lock(node);
  tree_.DropNamespace("a");
  tree_.CheckInvariants();
  EXPECT_EQ(Matched(Range(0, 8)), 5);
  EXPECT_EQ(tree_.Match(tree_.Root("b"), Range(0, 8)).matched, 8);
  Unlock(node);
  tree_.DropNamespace("a");
  tree_.DropNamespace("never seen");
  EXPECT_EQ(NumNodes("a"), 0);
  EXPECT_EQ(pool_.num_used(), 2);
}

// ---- the rest

TEST_F(RadixTreeTest, CountsPagesByState) {
  const NodeId node = Insert(Root(), Range(0, 8));
  EXPECT_EQ(tree_.num_locked_pages(), 2);
  const NodeId upper = Match(Range(0, 6)).node;  // the second page has two owners
  tree_.Lock(upper);
  Unlock(node);
  EXPECT_EQ(tree_.num_locked_pages(), 2) << "a page is locked while any owner is";
  EXPECT_EQ(tree_.num_cached_pages(), 0);
  Unlock(upper);
  EXPECT_EQ(tree_.num_locked_pages(), 0);
  EXPECT_EQ(tree_.num_cached_pages(), 2);
}

TEST_F(RadixTreeTest, DescribesATreeParentsFirst) {
  const NodeId node = Insert(Root(), Range(0, 8));
  Match(Range(0, 6));
  const NodeId leaf = Grow(node, {9});
  const auto nodes = tree_.Describe("a", 100, 3);
  ASSERT_THAT(nodes, SizeIs(4));
  EXPECT_EQ(nodes[0].parent, -1);
  EXPECT_EQ(nodes[1].parent, 0);
  EXPECT_THAT(nodes[1].head_tokens, ElementsAre(0, 1, 2));
  EXPECT_EQ(nodes[1].num_tokens, 6);
  EXPECT_EQ(nodes[1].num_pages, 2);
  EXPECT_EQ(nodes[2].id, node);
  EXPECT_THAT(nodes[2].head_tokens, ElementsAre(6, 7));
  EXPECT_EQ(nodes[2].locks, 2);
  EXPECT_TRUE(nodes[2].indexed);
  EXPECT_EQ(nodes[3].id, leaf);
  EXPECT_FALSE(nodes[3].indexed);
  EXPECT_THAT(tree_.Describe("a", 2, 0), SizeIs(2));
  EXPECT_THAT(tree_.Describe("unknown", 2, 0), SizeIs(0));
}

TEST_F(RadixTreeTest, ADestroyedTreeReturnsItsPages) {
  PagePool pool(4);
  {
    RadixTree tree(&pool, kPageSize);
    const NodeId leaf = tree.NewPrivate(tree.Root(""));
    for (int i = 0; i < 10; ++i) tree.Append(leaf, i);
    EXPECT_EQ(pool.num_used(), 3);
  }
  EXPECT_EQ(pool.num_free(), 4);
}

using RadixTreeDeathTest = RadixTreeTest;

TEST_F(RadixTreeDeathTest, RefusesMisuse) {
  const NodeId filling = tree_.InsertFilling(Root(), Range(0, 4), kFiller);
  const NodeId waiting = tree_.InsertFilling(filling, Range(4, 4), kFiller);
  std::vector<int64_t> slots;
  EXPECT_DEATH(tree_.Fill(waiting, 1, &slots), "PathComplete");
  EXPECT_DEATH(tree_.InsertFilling(Root(), Range(0, 2), kFiller), "check failed");
  EXPECT_DEATH(tree_.Append(filling, 1), "indexed");
  EXPECT_DEATH(tree_.Truncate(filling, 1), "indexed");
  EXPECT_DEATH(tree_.slot(filling, 0), "filled");
  Unlock(waiting);
  EXPECT_DEATH(tree_.Lock(waiting), "in_use");
  const NodeId successor = Grow(Root(), {5});
  ASSERT_EQ(successor.index, waiting.index);
  EXPECT_DEATH(tree_.Lock(waiting), "generation");
  EXPECT_DEATH(tree_.Unlock(Root()), "locks > 0");
}

TEST_F(RadixTreeDeathTest, AppendRefusesANodeWithLiveChildren) {
  const NodeId leaf = Grow(Root(), {1, 2});
  Grow(leaf, {3});
  EXPECT_DEATH(tree_.Append(leaf, 4), "locked");
  EXPECT_DEATH(tree_.Truncate(leaf, 1), "locked");
}

}  // namespace
}  // namespace espalier
