#include "tests/support/random_forest.h"

#include <algorithm>
#include <numeric>

namespace espalier::testing {
namespace {

class ForestBuilder {
 public:
  ForestBuilder(Rng& rng, int page_size) : rng_(rng) { shape_.page_size = page_size; }

  // A plain node of random length, on pages of its own or from its parent's last slot on.
  int AddNode(int parent, int tokens) {
    const Placement at = Place(parent, tokens);
    continued_.push_back(false);
    return shape_.AddNode(parent, tokens, at.first_slot, at.pages);
  }

  int AddDraft(int parent) {
    const int tokens = RandomInt(rng_, 1, 40);
    std::vector<int> depth(tokens, 0);
    for (int t = 1; t < tokens; ++t) depth[t] = RandomInt(rng_, 0, depth[t - 1] + 1);
    std::vector<int32_t> subtree_end(tokens);
    for (int t = 0; t < tokens; ++t) {
      int end = t + 1;
      while (end < tokens && depth[end] > depth[t]) ++end;
      subtree_end[t] = end;
    }
    const Placement at = Place(parent, tokens);
    continued_.push_back(true);
    return shape_.AddDraftNode(parent, at.first_slot, at.pages, subtree_end);
  }

  int RandomLength() {
    const int page = shape_.page_size;
    switch (RandomInt(rng_, 0, 5)) {
      case 0:
        return 1;
      case 1:
        return page - 1;
      case 2:
        return page;
      case 3:
        return page + 1;
      case 4:
        return RandomInt(rng_, 1, page);
      default:
        return RandomInt(rng_, 1, 4 * page);
    }
  }

  // A query at the node's last token.
  void AddDecode(int node) { queries_.push_back({node, shape_.num_tokens[node] - 1}); }

  // Queries at consecutive tokens: a chunk of prefill, often not up to the node's end.
  void AddRun(int node) {
    const int tokens = shape_.num_tokens[node];
    const int begin = RandomInt(rng_, 0, tokens - 1);
    const int end = RandomChance(rng_, 0.5) ? tokens : RandomInt(rng_, begin + 1, tokens);
    for (int t = begin; t < end; ++t) queries_.push_back({node, t});
  }

  // Each token of a draft, or some of them.
  void AddDraftQueries(int node) {
    const double share = RandomChance(rng_, 0.7) ? 1.0 : 0.5;
    for (int t = 0; t < shape_.num_tokens[node]; ++t) {
      if (RandomChance(rng_, share)) queries_.push_back({node, t});
    }
  }

  bool HasQueries() const { return !queries_.empty(); }
  int num_nodes() const { return shape_.num_nodes(); }
  bool IsDraft(int node) const { return shape_.draft_begin[node] >= 0; }
  int tokens(int node) const { return shape_.num_tokens[node]; }

  Forest Finish() {
    if (RandomChance(rng_, 0.7)) std::shuffle(queries_.begin(), queries_.end(), rng_);
    for (const auto& [node, offset] : queries_) shape_.AddQuery(node, offset);
    const int num_pages = next_page_ + 3;
    std::vector<int32_t> ids(num_pages);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), rng_);
    for (int32_t& page : shape_.page_ids) page = ids[page];
    return {std::move(shape_), num_pages};
  }

 private:
  struct Placement {
    int first_slot;
    std::vector<int32_t> pages;
  };

  Placement Place(int parent, int tokens) {
    const int page = shape_.page_size;
    Placement at{0, {}};
    if (tokens == 0) return at;
    if (parent >= 0 && shape_.num_tokens[parent] > 0 && !continued_[parent] &&
        RandomChance(rng_, 0.4)) {
      at.first_slot = (shape_.first_slot[parent] + shape_.num_tokens[parent]) % page;
      if (at.first_slot > 0) {
        at.pages.push_back(shape_.page_ids[shape_.page_begin[parent + 1] - 1]);
        continued_[parent] = true;
      }
    } else if (RandomChance(rng_, 0.1)) {
      at.first_slot = RandomInt(rng_, 0, page - 1);
    }
    const int want = (at.first_slot + tokens + page - 1) / page;
    while (static_cast<int>(at.pages.size()) < want) at.pages.push_back(next_page_++);
    return at;
  }

  Rng& rng_;
  TreeShape shape_;
  int next_page_ = 0;
  std::vector<bool> continued_;  // by node: a child goes on in its last page, or none may
  std::vector<std::pair<int, int>> queries_;
};

void BuildMixed(Rng& rng, ForestBuilder& forest) {
  const int num_nodes = RandomInt(rng, 1, 40);
  std::vector<int> children(num_nodes, 0);
  for (int x = 0; x < num_nodes; ++x) {
    int parent = x == 0 || RandomChance(rng, 0.1) ? -1 : RandomInt(rng, 0, x - 1);
    while (parent >= 0 && forest.IsDraft(parent)) --parent;
    if (parent >= 0) ++children[parent];
    if (parent < 0 && RandomChance(rng, 0.2)) {
      forest.AddNode(-1, 0);  // the root of a namespace
    } else if (RandomChance(rng, 0.15)) {
      forest.AddDraft(parent);
    } else {
      forest.AddNode(parent, forest.RandomLength());
    }
  }
  for (int x = 0; x < num_nodes; ++x) {
    if (forest.tokens(x) == 0) continue;
    if (forest.IsDraft(x)) {
      forest.AddDraftQueries(x);
    } else if (RandomChance(rng, 0.2)) {
      forest.AddRun(x);
    } else if (RandomChance(rng, children[x] == 0 ? 0.8 : 0.15)) {
      forest.AddDecode(x);
    }
  }
}

}  // namespace

int RandomInt(Rng& rng, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(rng);
}

bool RandomChance(Rng& rng, double probability) {
  return std::uniform_real_distribution<double>(0, 1)(rng) < probability;
}

Forest RandomForest(Rng& rng, ForestKind kind, int page_size) {
  ForestBuilder forest(rng, page_size);
  switch (kind) {
    case ForestKind::kChain: {
      int node = -1;
      for (int i = RandomInt(rng, 1, 8); i > 0; --i) {
        node = forest.AddNode(node, forest.RandomLength());
      }
      forest.AddDecode(node);
      break;
    }
    case ForestKind::kStar: {
      const int root = forest.AddNode(-1, forest.RandomLength() + forest.RandomLength());
      for (int i = RandomInt(rng, 1, 60); i > 0; --i) {
        forest.AddDecode(forest.AddNode(root, forest.RandomLength()));
      }
      break;
    }
    case ForestKind::kComb: {
      int spine = forest.AddNode(-1, forest.RandomLength());
      for (int i = RandomInt(rng, 1, 20); i > 0; --i) {
        forest.AddDecode(forest.AddNode(spine, forest.RandomLength()));
        spine = forest.AddNode(spine, forest.RandomLength());
      }
      forest.AddDecode(spine);
      break;
    }
    case ForestKind::kSingles: {
      const int num_nodes = RandomInt(rng, 1, 80);
      for (int x = 0; x < num_nodes; ++x) {
        forest.AddNode(x == 0 ? -1 : RandomInt(rng, 0, x - 1), 1);
        if (x == num_nodes - 1 || RandomChance(rng, 0.5)) forest.AddDecode(x);
      }
      break;
    }
    case ForestKind::kMixed:
      BuildMixed(rng, forest);
      break;
  }
  if (!forest.HasQueries()) {
    const int node = forest.AddNode(-1, forest.RandomLength());
    forest.AddDecode(node);
  }
  return forest.Finish();
}

std::vector<int64_t> VisibleSlots(const TreeShape& shape, int query) {
  const auto slot_of = [&](int node, int token) {
    const int slot = shape.first_slot[node] + token;
    const int64_t page = shape.page_ids[shape.page_begin[node] + slot / shape.page_size];
    return page * shape.page_size + slot % shape.page_size;
  };
  const int own = shape.query_node[query];
  const int offset = shape.query_offset[query];
  std::vector<int> path;
  for (int x = shape.parent[own]; x >= 0; x = shape.parent[x]) path.insert(path.begin(), x);
  std::vector<int64_t> slots;
  for (const int x : path) {
    for (int t = 0; t < shape.num_tokens[x]; ++t) slots.push_back(slot_of(x, t));
  }
  const int draft = shape.draft_begin[own];
  for (int t = 0; t <= offset; ++t) {
    if (draft < 0 || shape.draft_subtree_end[draft + t] > offset) {
      slots.push_back(slot_of(own, t));
    }
  }
  return slots;
}

}  // namespace espalier::testing
