#include "engine/session/session_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "absl/status/status.h"

namespace espalier {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;

using Tokens = std::vector<int32_t>;

constexpr SessionLimits kLimits = {.max_branches = 24, .max_tokens = 120, .max_depth = 5};
constexpr int kContext = 40;

TEST(SessionTree, PathsOfForksAndJoins) {
  SessionTree tree(kLimits, kContext);
  EXPECT_EQ(*tree.Add(SessionTree::kNoParent, Tokens{1, 2}), 0);
  EXPECT_THAT(*tree.Fork(0, 2), ElementsAre(1, 2));
  EXPECT_EQ(*tree.Add(1, Tokens{3}), 3);
  ASSERT_TRUE(tree.Extend(2, Tokens{4, 5}).ok());
  EXPECT_EQ(*tree.Join(2, 3), 4);
  EXPECT_THAT(tree.PathTokens(4), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(*tree.Prune(std::vector<int>{1}), ElementsAre(1, 3, 4));
  EXPECT_EQ(tree.at(0).children, 1);
  EXPECT_EQ(tree.num_tokens(), 4);
}

TEST(SessionTree, ATurnThatIsTakenBackIsNotOpen) {
  SessionTree tree(kLimits, kContext);
  ASSERT_TRUE(tree.Add(SessionTree::kNoParent, Tokens{1, 2, 3}).ok());
  tree.OpenTurn(0);
  EXPECT_EQ(tree.at(*tree.Add(0, Tokens{4})).turn_opened, 3);
  ASSERT_TRUE(tree.Prune(std::vector<int>{1}).ok());
  ASSERT_TRUE(tree.Rollback(0, 1).ok());
  EXPECT_EQ(tree.at(0).turn_opened, -1);
}

TEST(SessionTree, RefusalsNameTheValueAndTheLimit) {
  SessionTree tree(kLimits, kContext);
  ASSERT_TRUE(tree.Add(SessionTree::kNoParent, Tokens(30)).ok());
  EXPECT_THAT(tree.Add(0, Tokens(11)).status().message(),
              HasSubstr("the path would be 41 tokens; the context has 40"));
  EXPECT_THAT(tree.Fork(0, 24).status().message(),
              HasSubstr("would have 25 branches; must be at most 24"));
  EXPECT_EQ(tree.Fork(0, 24).status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(tree.Fork(0, 0).status().message(), HasSubstr("fork.n is 0; must be from 1 to 24"));
  EXPECT_THAT(tree.Rollback(0, 30).message(), HasSubstr("is 30; must be from 1 to 29"));
  EXPECT_EQ(tree.Fork(1, 1).status().code(), StatusCode::kNotFound);
  int branch = 0;
  for (int depth = 2; depth <= 5; ++depth) branch = *tree.Add(branch, Tokens(1));
  EXPECT_THAT(tree.Add(branch, Tokens(1)).status().message(),
              HasSubstr("at depth 6; must be at most 5"));
  EXPECT_EQ(tree.Extend(0, Tokens(1)).code(), StatusCode::kFailedPrecondition);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(tree.Add(SessionTree::kNoParent, Tokens(40)).ok());
  EXPECT_THAT(tree.Add(SessionTree::kNoParent, Tokens(7)).status().message(),
              HasSubstr("would have 121 tokens over all branches; must be at most 120"));
  tree.CheckInvariants();
}

// Branches as whole paths, each with its own copy.
class PlainTree {
 public:
  struct Branch {
    int parent;
    Tokens path;
    int own;
  };

  int children(int id) const {
    return static_cast<int>(std::ranges::count_if(
        branches, [&](const auto& entry) { return entry.second.parent == id; }));
  }
  int depth(int id) const { return id < 0 ? 0 : 1 + depth(branches.at(id).parent); }
  int64_t tokens() const {
    int64_t sum = 0;
    for (const auto& [id, branch] : branches) sum += branch.own;
    return sum;
  }
  bool CanAdd(int parent, int count) const {
    if (parent >= 0 && !branches.contains(parent)) return false;
    if (parent < 0 && count == 0) return false;
    const size_t above = parent < 0 ? 0 : branches.at(parent).path.size();
    return depth(parent) < kLimits.max_depth && above + count <= kContext &&
           branches.size() < static_cast<size_t>(kLimits.max_branches) &&
           tokens() + count <= kLimits.max_tokens;
  }
  void Add(int parent, const Tokens& own) {
    Tokens path = parent < 0 ? Tokens() : branches.at(parent).path;
    path.insert(path.end(), own.begin(), own.end());
    branches[next_id++] = {parent, std::move(path), static_cast<int>(own.size())};
  }
  void Prune(int id) {
    for (int other = id + 1; other < next_id; ++other) {
      if (branches.contains(other) && branches.at(other).parent == id) Prune(other);
    }
    branches.erase(id);
  }

  std::map<int, Branch> branches;
  int next_id = 0;
};

TEST(SessionTree, EqualsPlainPathsOnRandomCommands) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  int refused = 0;
  constexpr int kRounds = 20000;
  for (int round = 0, in_tree = 0; round < kRounds; in_tree = 0) {
    SessionTree tree(kLimits, kContext);
    PlainTree plain;
    for (; in_tree < 200; ++in_tree, ++round) {
      const int id = static_cast<int>(random() % (plain.next_id + 2)) - 1;
      const bool exists = plain.branches.contains(id);
      const bool leaf = exists && plain.children(id) == 0;
      Tokens own(random() % 8);
      for (int32_t& token : own) token = static_cast<int32_t>(random() % 100);
      const int count = static_cast<int>(own.size());
      bool ok = false;
      switch (random() % 6) {
        case 0:
          ok = plain.CanAdd(id, count);
          ASSERT_EQ(tree.Add(id, own).ok(), ok);
          if (ok) plain.Add(id, own);
          break;
        case 1:
          ok = leaf && plain.branches[id].path.size() + count <= kContext &&
               plain.tokens() + count <= kLimits.max_tokens;
          ASSERT_EQ(tree.Extend(id, own).ok(), ok);
          if (ok) {
            Tokens& path = plain.branches[id].path;
            path.insert(path.end(), own.begin(), own.end());
            plain.branches[id].own += count;
          }
          break;
        case 2: {
          ok = exists && count > 0 && plain.CanAdd(id, 0) &&
               plain.branches.size() + count <= static_cast<size_t>(kLimits.max_branches);
          ASSERT_EQ(tree.Fork(id, count).ok(), ok);
          for (int i = 0; ok && i < count; ++i) plain.Add(id, {});
          break;
        }
        case 3: {
          const int from = static_cast<int>(random() % (plain.next_id + 1));
          ok =
              plain.branches.contains(from) && exists && plain.CanAdd(id, plain.branches[from].own);
          if (id < 0) break;  // a copy at the start of a sequence is not what Join is for
          ASSERT_EQ(tree.Join(from, id).ok(), ok);
          if (ok) {
            const PlainTree::Branch& copied = plain.branches[from];
            plain.Add(id, Tokens(copied.path.end() - copied.own, copied.path.end()));
          }
          break;
        }
        case 4: {
          ok = leaf && count > 0 &&
               count <= plain.branches[id].own - (plain.branches[id].parent < 0 ? 1 : 0);
          ASSERT_EQ(tree.Rollback(id, count).ok(), ok);
          if (ok) {
            Tokens& path = plain.branches[id].path;
            path.resize(path.size() - count);
            plain.branches[id].own -= count;
          }
          break;
        }
        case 5:
          ok = exists;
          if (random() % 4 != 0) break;  // or trees stay small
          ASSERT_EQ(tree.Prune(std::vector<int>{id}).ok(), ok);
          if (ok) plain.Prune(id);
          break;
      }
      refused += ok ? 0 : 1;
      tree.CheckInvariants();
      ASSERT_EQ(tree.branches().size(), plain.branches.size());
      ASSERT_EQ(tree.num_tokens(), plain.tokens());
      for (const auto& [branch, its] : plain.branches) {
        ASSERT_TRUE(tree.contains(branch));
        ASSERT_EQ(tree.PathTokens(branch), its.path);
        ASSERT_EQ(tree.at(branch).parent, its.parent);
      }
    }
  }
  EXPECT_GT(refused, kRounds / 20);
  EXPECT_LT(refused, kRounds);
}

}  // namespace
}  // namespace espalier
