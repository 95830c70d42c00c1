// Random operations against a naive model. The model is the contents of every slot: which
// (namespace, path) the KV written there last belongs to. After every operation each filled token
// of each node must still find its own path in its slot, each branch its own tokens, and nothing a
// step in flight reads may be written.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/kvcache/radix_tree.h"

namespace espalier {
namespace {

using Tokens = std::vector<int32_t>;
using Hashes = std::vector<uint64_t>;  // sorted

uint64_t Extend(uint64_t hash, int32_t token) {
  hash = (hash ^ (static_cast<uint32_t>(token) + 1)) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

uint64_t SpaceHash(int space) { return Extend(0x5bd1e995, space); }

// The hash of each prefix of a path, the empty one first.
Hashes PrefixHashes(int space, const Tokens& path) {
  Hashes hashes = {SpaceHash(space)};
  for (int32_t token : path) hashes.push_back(Extend(hashes.back(), token));
  return hashes;
}

bool Holds(const Hashes& sorted, uint64_t hash) {
  return std::binary_search(sorted.begin(), sorted.end(), hash);
}

struct WorldOptions {
  int num_pages = 32;
  int page_size = 4;
  int num_spaces = 2;
  int alphabet = 2;
  int max_branches = 10;
  int max_steps_in_flight = 2;
};

class World {
 public:
  World(const WorldOptions& options, uint64_t seed)
      : options_(options),
        random_(seed),
        pool_(options.num_pages),
        tree_(&pool_, options.page_size),
        content_(options.num_pages * options.page_size, 0) {}

  void RandomOperation() {
    may_evict_ = false;
    const int kind = Below(100);
    if (kind < 14) {
      Admit();
    } else if (kind < 40) {
      FillSome();
    } else if (kind < 64) {
      AppendOne();
    } else if (kind < 70) {
      Fork();
    } else if (kind < 74) {
      PublishOne();
    } else if (kind < 78) {
      TruncateOne();
    } else if (kind < 86) {
      Finish();
    } else if (kind < 88) {
      LockAgain();
    } else if (kind < 91) {
      Probe();
    } else if (kind < 92) {
      ReserveSome();
    } else if (kind == 92 && Below(8) == 0) {
      Drop();
    } else if (kind < 97) {
      Submit();
    } else {
      Complete();
    }
    Check();
  }

  // Every page comes back once nothing holds any.
  void Drain() {
    while (!branches_.empty()) {
      Finish();
      Check();
    }
    while (!steps_.empty()) Complete();
    ASSERT_EQ(tree_.num_locked_pages(), 0);
    may_evict_ = true;
    ASSERT_TRUE(tree_.Reserve(options_.num_pages));
    Check();
    ASSERT_EQ(pool_.num_free(), options_.num_pages);
    for (int space = 0; space < options_.num_spaces; ++space) {
      tree_.DropNamespace(Salt(space));
      ASSERT_TRUE(Snapshot(space).empty());
    }
    tree_.CheckInvariants();
  }

  const std::string& operation() const { return operation_; }
  int64_t slots_written() const { return slots_written_; }

 private:
  // Holds one lock on `node`.
  struct Branch {
    NodeId node;
    int space = 0;
    Tokens path;
    uint64_t filler = 0;
    bool grows = false;  // the node is private and this branch's own
  };

  struct Step {
    uint64_t number;
    std::vector<bool> reads;  // by slot
  };

  int Below(int limit) { return std::uniform_int_distribution<int>(0, limit - 1)(random_); }
  static std::string Salt(int space) { return "salt" + std::to_string(space); }
  std::vector<RadixTree::NodeSnapshot> Snapshot(int space) const {
    return tree_.Describe(Salt(space), std::numeric_limits<int>::max(), 1);
  }

  Branch* AnyBranch() {
    return branches_.empty() ? nullptr : &branches_[Below(static_cast<int>(branches_.size()))];
  }

  // Only the holder of a node with nothing locked below it may append to it or cut it.
  bool MayChange(const Branch& branch) const {
    if (!branch.grows) return false;
    for (const Branch& other : branches_) {
      if (&other == &branch) continue;
      for (NodeId at = other.node; at.valid(); at = tree_.parent(at)) {
        if (at == branch.node) return false;
      }
    }
    return true;
  }

  Tokens RandomPrompt() {
    Tokens prompt;
    if (!prompts_.empty() && Below(3) > 0) {
      prompt = prompts_[Below(static_cast<int>(prompts_.size()))];
      prompt.resize(1 + Below(static_cast<int>(prompt.size())));
    }
    const int more = prompt.empty() ? 1 + Below(20) : Below(8);
    for (int i = 0; i < more; ++i) prompt.push_back(Below(options_.alphabet));
    prompts_.push_back(prompt);
    if (prompts_.size() > 30) prompts_.pop_front();
    return prompt;
  }

  void Admit() {
    operation_ = "admit";
    if (static_cast<int>(branches_.size()) == options_.max_branches) return Finish();
    Branch branch;
    NodeId from;
    const bool below_a_branch = !branches_.empty() && Below(4) == 0;
    if (below_a_branch) {
      const Branch& parent = *AnyBranch();
      branch.space = parent.space;
      branch.path = parent.path;
      from = parent.node;
    } else {
      branch.space = Below(options_.num_spaces);
      from = tree_.Root(Salt(branch.space));
    }
    const Tokens prompt = RandomPrompt();
    const size_t start = branch.path.size();
    branch.path.insert(branch.path.end(), prompt.begin(), prompt.end());
    branch.filler = ++last_filler_;
    const auto [node, matched] = tree_.Match(from, prompt);
    if (!below_a_branch) {
      const Hashes prefixes = PrefixHashes(branch.space, branch.path);
      int longest = 0;
      while (longest < static_cast<int>(prompt.size()) && Holds(indexed_, prefixes[longest + 1])) {
        ++longest;
      }
      ASSERT_EQ(matched, longest);
    }
    ASSERT_EQ(tree_.path_tokens(node), static_cast<int>(start) + matched);
    tree_.Lock(node);
    branch.node = node;
    if (matched < static_cast<int>(prompt.size())) {
      const std::span<const int32_t> rest = std::span(prompt).subspan(matched);
      branch.grows = Below(5) == 0;
      branch.node = branch.grows ? tree_.NewPrivateFilling(node, rest, branch.filler)
                                 : tree_.InsertFilling(node, rest, branch.filler);
      tree_.Unlock(node);
    }
    branches_.push_back(std::move(branch));
  }

  void FillSome() {
    operation_ = "fill";
    Branch* branch = AnyBranch();
    if (branch == nullptr) return;
    const auto unfilled = tree_.FirstUnfilled(branch->node);
    if (!unfilled) return;
    if (unfilled->filler == 0) {
      tree_.SetFiller(unfilled->node, branch->filler);
    } else if (unfilled->filler != branch->filler) {
      return;  // waits for its sibling
    }
    may_evict_ = true;
    const int begin = tree_.path_tokens(unfilled->node) - unfilled->remaining;
    std::vector<int64_t> slots;
    const int count = 1 + Below(9);
    const int served = tree_.Fill(unfilled->node, count, &slots);
    ASSERT_EQ(served, static_cast<int>(slots.size()));
    ASSERT_LE(served, std::min(count, unfilled->remaining));
    if (served < std::min(count, unfilled->remaining)) CheckExhausted();
    const Hashes prefixes = PrefixHashes(branch->space, branch->path);
    for (int i = 0; i < served; ++i) Write(slots[i], prefixes[begin + i + 1]);
  }

  void AppendOne() {
    operation_ = "append";
    Branch* branch = AnyBranch();
    if (branch == nullptr || !MayChange(*branch) || tree_.FirstUnfilled(branch->node)) return;
    if (branch->path.size() > 60) return;
    may_evict_ = true;
    const int32_t token = Below(options_.alphabet);
    const auto slot = tree_.Append(branch->node, token);
    if (!slot) return CheckExhausted();
    branch->path.push_back(token);
    Write(*slot, PrefixHashes(branch->space, branch->path).back());
  }

  void Fork() {
    operation_ = "fork";
    Branch* parent = AnyBranch();
    if (parent == nullptr) return;
    if (Below(3) > 0) {
      tree_.Publish(parent->node);
      parent->grows = false;
    }
    const int children = 1 + Below(3);
    const Branch copy = *parent;
    for (int i = 0; i < children && static_cast<int>(branches_.size()) < options_.max_branches;
         ++i) {
      branches_.push_back({.node = tree_.NewPrivate(copy.node),
                           .space = copy.space,
                           .path = copy.path,
                           .filler = ++last_filler_,
                           .grows = true});
    }
  }

  void PublishOne() {
    operation_ = "publish";
    Branch* branch = AnyBranch();
    if (branch == nullptr || !branch->grows) return;
    tree_.Publish(branch->node);
    branch->grows = false;
  }

  void TruncateOne() {
    operation_ = "truncate";
    Branch* branch = AnyBranch();
    if (branch == nullptr || !MayChange(*branch)) return;
    const int size = static_cast<int>(tree_.tokens(branch->node).size());
    const int kept = Below(size + 1);
    tree_.Truncate(branch->node, kept);
    branch->path.resize(branch->path.size() - (size - kept));
  }

  // Ends a branch: finished or cancelled, all the same to the tree.
  void Finish() {
    operation_ = "finish";
    if (branches_.empty()) return;
    std::swap(*AnyBranch(), branches_.back());
    const Branch branch = branches_.back();
    branches_.pop_back();
    int filled = static_cast<int>(branch.path.size());
    if (const auto unfilled = tree_.FirstUnfilled(branch.node)) {
      filled = tree_.path_tokens(unfilled->node) - unfilled->remaining;
    }
    tree_.Orphan(branch.node, branch.filler);
    tree_.Unlock(branch.node);

    // What it computed stays in the cache, unless a sibling has claimed those tokens and not
    // filled them yet, or the path leads through somebody's private node.
    const Hashes indexed_before = indexed_;
    const Hashes filled_before = filled_;
    Check();
    const Hashes prefixes = PrefixHashes(branch.space, branch.path);
    for (int i = 0; i <= filled; ++i) {
      const bool claimed =
          i > 0 && Holds(indexed_before, prefixes[i]) && !Holds(filled_before, prefixes[i]);
      if (claimed || Holds(private_, prefixes[i])) return;
    }
    for (int i = 1; i <= filled; ++i) ASSERT_TRUE(Holds(filled_, prefixes[i])) << i;
  }

  void LockAgain() {
    operation_ = "lock";
    Branch* branch = AnyBranch();
    if (branch == nullptr || branch->grows) return;
    if (static_cast<int>(branches_.size()) == options_.max_branches) return;
    tree_.Lock(branch->node);
    Branch copy = *branch;
    copy.filler = ++last_filler_;
    branches_.push_back(copy);
  }

  void Probe() {
    operation_ = "probe";
    const Tokens prompt = RandomPrompt();
    tree_.Match(tree_.Root(Salt(Below(options_.num_spaces))), prompt);
  }

  void ReserveSome() {
    operation_ = "reserve";
    may_evict_ = true;
    const int pages = Below(options_.num_pages / 2);
    if (tree_.Reserve(pages)) {
      ASSERT_GE(pool_.num_free(), pages);
    } else {
      ASSERT_LT(pool_.num_free(), pages);
      ASSERT_TRUE(pool_.num_retiring() > 0 || pool_.num_free() + tree_.num_cached_pages() < pages);
    }
  }

  void Drop() {
    operation_ = "drop namespace";
    may_evict_ = true;
    const int space = Below(options_.num_spaces);
    tree_.DropNamespace(Salt(space));
    for (const auto& node : Snapshot(space)) ASSERT_GT(node.locks, 0);
  }

  void Submit() {
    operation_ = "submit";
    if (static_cast<int>(steps_.size()) == options_.max_steps_in_flight) return;
    Step step{.number = last_step_ += 1 + Below(2), .reads = std::vector<bool>(content_.size())};
    for (int space = 0; space < options_.num_spaces; ++space) {
      for (const auto& node : Snapshot(space)) {
        if (node.locks == 0) continue;
        for (int i = 0; i < node.filled; ++i) step.reads[tree_.slot(node.id, i)] = true;
      }
    }
    pool_.StepSubmitted(step.number);
    steps_.push_back(std::move(step));
  }

  void Complete() {
    operation_ = "complete";
    if (steps_.empty()) return;
    pool_.StepDone(steps_.front().number);
    steps_.pop_front();
  }

  void Write(int64_t slot, uint64_t prefix) {
    ASSERT_GE(slot, 0);
    ASSERT_LT(slot, static_cast<int64_t>(content_.size()));
    for (const Step& step : steps_) ASSERT_FALSE(step.reads[slot]) << "step " << step.number;
    content_[slot] = prefix;
    ++slots_written_;
  }

  void CheckExhausted() {
    ASSERT_EQ(pool_.num_free(), 0);
    ASSERT_TRUE(tree_.num_cached_pages() == 0 || pool_.num_retiring() > 0);
  }

  void Check() {
    tree_.CheckInvariants();
    const Hashes filled_before = std::move(filled_);
    indexed_.clear();
    filled_.clear();
    private_.clear();
    for (int space = 0; space < options_.num_spaces; ++space) CheckSpace(space);
    std::sort(indexed_.begin(), indexed_.end());
    std::sort(filled_.begin(), filled_.end());
    std::sort(private_.begin(), private_.end());
    if (!may_evict_) {
      ASSERT_TRUE(
          std::includes(filled_.begin(), filled_.end(), filled_before.begin(), filled_before.end()))
          << "cached KV was lost";
    }
    for (const Branch& branch : branches_) CheckBranch(branch);
  }

  void CheckSpace(int space) {
    const auto nodes = Snapshot(space);
    Hashes ends(nodes.size());
    std::vector<bool> reachable(nodes.size());
    for (size_t i = 0; i < nodes.size(); ++i) {
      const RadixTree::NodeSnapshot& node = nodes[i];
      ends[i] = node.parent < 0 ? SpaceHash(space) : ends[node.parent];
      reachable[i] = node.parent < 0 || (node.indexed && reachable[node.parent]);
      int offset = 0;
      for (int32_t token : tree_.tokens(node.id)) {
        ends[i] = Extend(ends[i], token);
        const bool has_kv = offset < node.filled;
        if (has_kv) {
          ASSERT_EQ(content_[tree_.slot(node.id, offset)], ends[i]) << "overwritten KV";
        }
        if (!node.indexed) private_.push_back(ends[i]);
        if (reachable[i]) indexed_.push_back(ends[i]);
        if (reachable[i] && has_kv) filled_.push_back(ends[i]);
        ++offset;
      }
      if (node.parent < 0) continue;
      if (!nodes[node.parent].indexed && nodes[node.parent].parent >= 0) {
        private_.push_back(ends[node.parent]);
      }
    }
  }

  void CheckBranch(const Branch& branch) {
    size_t end = branch.path.size();
    NodeId at = branch.node;
    for (;;) {
      const std::span<const int32_t> tokens = tree_.tokens(at);
      ASSERT_LE(tokens.size(), end);
      ASSERT_TRUE(
          std::equal(tokens.begin(), tokens.end(), branch.path.begin() + end - tokens.size()));
      end -= tokens.size();
      const NodeId parent = tree_.parent(at);
      if (!parent.valid()) break;
      at = parent;
    }
    ASSERT_EQ(end, 0u);
    ASSERT_EQ(at, tree_.Root(Salt(branch.space)));
    ASSERT_EQ(tree_.path_tokens(branch.node), static_cast<int>(branch.path.size()));
    // Nobody waits for a filler that is gone.
    const auto unfilled = tree_.FirstUnfilled(branch.node);
    if (!unfilled || unfilled->filler == 0) return;
    ASSERT_TRUE(std::any_of(branches_.begin(), branches_.end(),
                            [&](const Branch& other) { return other.filler == unfilled->filler; }));
  }

  WorldOptions options_;
  std::mt19937_64 random_;
  PagePool pool_;
  RadixTree tree_;
  std::vector<uint64_t> content_;  // by slot: hash of the prefix whose last token's KV it holds
  std::vector<Branch> branches_;
  std::deque<Step> steps_;
  std::deque<Tokens> prompts_;
  uint64_t last_filler_ = 0;
  uint64_t last_step_ = 0;
  int64_t slots_written_ = 0;
  std::string operation_;
  bool may_evict_ = false;
  // As of the last check, over all namespaces. Prefixes that Match finds; those with KV; prefixes
  // that end in private nodes or go through them.
  Hashes indexed_;
  Hashes filled_;
  Hashes private_;
};

class RadixTreePropertyTest : public ::testing::TestWithParam<WorldOptions> {};

TEST_P(RadixTreePropertyTest, PathsKeepTheirKvUnderRandomOperations) {
  constexpr int kSeeds = 50;
  constexpr int kOperations = 1000;
  int64_t slots_written = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(GetParam(), seed);
    for (int i = 0; i < kOperations; ++i) {
      world.RandomOperation();
      ASSERT_FALSE(HasFailure()) << "operation " << i << ": " << world.operation();
    }
    world.Drain();
    ASSERT_FALSE(HasFailure()) << "draining: " << world.operation();
    slots_written += world.slots_written();
  }
  // The worlds must not have starved: an operation that finds nothing to do tests nothing.
  EXPECT_GT(slots_written, kSeeds * kOperations / 8);
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, RadixTreePropertyTest,
    ::testing::Values(
        WorldOptions{},  //
        WorldOptions{.num_pages = 12, .page_size = 4, .num_spaces = 1, .max_branches = 6},
        WorldOptions{.num_pages = 40, .page_size = 1, .alphabet = 3, .max_steps_in_flight = 3},
        WorldOptions{.num_pages = 24, .page_size = 16, .num_spaces = 3, .max_steps_in_flight = 1},
        WorldOptions{.num_pages = 64, .page_size = 2, .num_spaces = 1, .max_branches = 24},
        // Nothing in flight: freed slots come back at once.
        WorldOptions{.num_pages = 16, .page_size = 3, .max_steps_in_flight = 0},
        // Wide paths: many distinct tokens, many children a node.
        WorldOptions{
            .num_pages = 48, .page_size = 4, .num_spaces = 1, .alphabet = 50, .max_branches = 16}));

}  // namespace
}  // namespace espalier
