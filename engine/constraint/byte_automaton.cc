#include "engine/constraint/byte_automaton.h"

#include <algorithm>
#include <bitset>
#include <cstddef>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/node_hash_map.h"
#include "absl/strings/str_cat.h"
#include "engine/constraint/utf8_ranges.h"

namespace espalier {
namespace {

// Thompson's construction, from the end of the expression to its beginning: what comes next is
// known when a part is built.
class PositionGraph {
 public:
  struct Position {
    // Consumes a byte of [first, last] and goes to `next`; or, where `split`, goes to `next` and
    // to `other` without consuming anything.
    bool split = false;
    ByteRange bytes{};
    int next = -1;
    int other = -1;
  };
  static constexpr int kMatch = 0;

  PositionGraph(const RegexTree& tree, int max_positions)
      : tree_(tree), max_positions_(max_positions), positions_(1) {
    start_ = Build(tree.root, kMatch);
  }

  bool too_large() const { return too_large_; }
  int start() const { return start_; }
  const Position& position(int index) const { return positions_[index]; }
  int size() const { return static_cast<int>(positions_.size()); }

 private:
  int Add(Position position) {
    positions_.push_back(position);
    return size() - 1;
  }

  // The position at which a match of `node` begins that is followed by `next`.
  int Build(int node, int next) {
    // Parts without positions, as in (){1000}, must not multiply either.
    if (size() > max_positions_ || ++builds_ > 4 * int64_t{max_positions_}) too_large_ = true;
    if (too_large_) return next;
    const RegexTree::Node& n = tree_.nodes[node];
    switch (n.kind) {
      case RegexTree::Kind::kSet:
        return BuildSet(n.set, next);
      case RegexTree::Kind::kSequence:
        for (size_t i = n.children.size(); i-- > 0;) next = Build(n.children[i], next);
        return next;
      case RegexTree::Kind::kAlternate: {
        int start = Build(n.children[0], next);
        for (size_t i = 1; i < n.children.size(); ++i) {
          start = Add({.split = true, .next = start, .other = Build(n.children[i], next)});
        }
        return start;
      }
      case RegexTree::Kind::kRepeat:
        return BuildRepeat(n, next);
    }
    return next;
  }

  int BuildRepeat(const RegexTree::Node& n, int next) {
    const int child = n.children[0];
    int start = next;
    if (n.max == RegexTree::kUnbounded) {
      start = Add({.split = true, .other = next});
      const int body = Build(child, start);
      positions_[start].next = body;
    } else {
      for (int i = n.min; i < n.max && !too_large_; ++i) {
        start = Add({.split = true, .next = Build(child, start), .other = next});
      }
    }
    for (int i = 0; i < n.min && !too_large_; ++i) start = Build(child, start);
    return start;
  }

  int BuildSet(const std::vector<CodePointRange>& set, int next) {
    // Sequences that end alike share their ends.
    absl::flat_hash_map<std::tuple<uint8_t, uint8_t, int>, int> ends;
    int start = -1;
    for (const CodePointRange& range : set) {
      for (const std::vector<ByteRange>& sequence : Utf8Ranges(range)) {
        int end = next;
        for (size_t i = sequence.size(); i-- > 0;) {
          const auto [known, added] =
              ends.try_emplace({sequence[i].first, sequence[i].last, end}, size());
          if (added) Add({.bytes = sequence[i], .next = end});
          end = known->second;
        }
        start = start < 0 ? end : Add({.split = true, .next = start, .other = end});
      }
    }
    // An empty range: a position that no byte leaves.
    return start < 0 ? Add({.bytes = {1, 0}, .next = next}) : start;
  }

  const RegexTree& tree_;
  const int max_positions_;
  std::vector<Position> positions_;  // the first is the match
  int64_t builds_ = 0;
  bool too_large_ = false;
  int start_ = 0;
};

}  // namespace

// Determinises by sets of positions.
class AutomatonBuilder {
 public:
  AutomatonBuilder(const PositionGraph& graph, const AutomatonLimits& limits)
      : graph_(graph), limits_(limits), seen_(graph.size(), 0) {}

  absl::StatusOr<ByteAutomaton> Run() {
    ClassifyBytes();
    const size_t num_classes = automaton_.num_classes_;
    automaton_.initial_ = StateOf({graph_.start()});
    std::vector<int> targets;
    for (size_t state = 0; state < sets_.size(); ++state) {
      if (sets_.size() * num_classes > static_cast<size_t>(limits_.max_transitions)) {
        return TooLarge("states times byte classes", limits_.max_transitions);
      }
      for (size_t c = 0; c < num_classes; ++c) {
        targets.clear();
        for (int index : *sets_[state]) {
          const PositionGraph::Position& p = graph_.position(index);
          if (index != PositionGraph::kMatch && p.bytes.first <= class_bytes_[c] &&
              class_bytes_[c] <= p.bytes.last) {
            targets.push_back(p.next);
          }
        }
        work_ += static_cast<int64_t>(sets_[state]->size()) + 1;
        automaton_.next_.push_back(targets.empty() ? ByteAutomaton::kDead : StateOf(targets));
        if (work_ > limits_.max_work) return TooLarge("steps to compile", limits_.max_work);
      }
    }
    automaton_.CutDeadEnds();
    if (automaton_.initial_ == ByteAutomaton::kDead) {
      return absl::InvalidArgumentError("no text matches the pattern");
    }
    return std::move(automaton_);
  }

 private:
  static absl::Status TooLarge(absl::string_view what, int64_t limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pattern needs more ", what, " than the limit of ", limit));
  }

  void ClassifyBytes() {
    std::bitset<257> begins;
    begins.set(0);
    for (int i = 1; i < graph_.size(); ++i) {
      if (graph_.position(i).split) continue;
      begins.set(graph_.position(i).bytes.first);
      begins.set(graph_.position(i).bytes.last + size_t{1});
    }
    for (int byte = 0; byte < 256; ++byte) {
      if (begins[byte]) class_bytes_.push_back(static_cast<uint8_t>(byte));
      automaton_.classes_[byte] = static_cast<uint8_t>(class_bytes_.size() - 1);
    }
    automaton_.num_classes_ = class_bytes_.size();
  }

  // The state of these positions and of all that they lead to without a byte.
  int StateOf(std::vector<int> open) {
    ++mark_;
    std::vector<int> set;
    while (!open.empty()) {
      const int index = open.back();
      open.pop_back();
      if (seen_[index] == mark_) continue;
      seen_[index] = mark_;
      ++work_;
      const PositionGraph::Position& p = graph_.position(index);
      if (p.split) {
        open.push_back(p.next);
        open.push_back(p.other);
      } else {
        set.push_back(index);
      }
    }
    std::ranges::sort(set);
    const bool accepts = !set.empty() && set[0] == PositionGraph::kMatch;
    const auto [known, added] = states_.try_emplace(std::move(set), static_cast<int>(sets_.size()));
    if (added) {
      sets_.push_back(&known->first);
      automaton_.accepts_.push_back(accepts);
    }
    return known->second;
  }

  const PositionGraph& graph_;
  const AutomatonLimits& limits_;
  ByteAutomaton automaton_;
  std::vector<uint8_t> class_bytes_;  // the first byte of each class
  absl::node_hash_map<std::vector<int>, int> states_;
  std::vector<const std::vector<int>*> sets_;  // [states] keys of states_
  std::vector<int64_t> seen_;                  // [positions] the last set that holds it
  int64_t mark_ = 0;
  int64_t work_ = 0;
};

// Makes every transition dead after which nothing can be accepted.
void ByteAutomaton::CutDeadEnds() {
  const int states = num_states();
  std::vector<std::vector<int>> sources(states);
  for (int state = 0; state < states; ++state) {
    for (size_t c = 0; c < num_classes_; ++c) {
      const int target = next_[state * num_classes_ + c];
      if (target == kDead) continue;
      if (sources[target].empty() || sources[target].back() != state) {
        sources[target].push_back(state);
      }
    }
  }
  std::vector<bool> useful = accepts_;
  std::vector<int> open;
  for (int state = 0; state < states; ++state) {
    if (useful[state]) open.push_back(state);
  }
  while (!open.empty()) {
    const int target = open.back();
    open.pop_back();
    for (int source : sources[target]) {
      if (useful[source]) continue;
      useful[source] = true;
      open.push_back(source);
    }
  }
  continues_.assign(states, false);
  for (int state = 0; state < states; ++state) {
    for (size_t c = 0; c < num_classes_; ++c) {
      int32_t& target = next_[state * num_classes_ + c];
      if (target != kDead && !useful[target]) target = kDead;
      if (target != kDead) continues_[state] = true;
    }
  }
  if (!useful[initial_]) initial_ = kDead;
}

absl::StatusOr<ByteAutomaton> ByteAutomaton::Compile(const RegexTree& tree,
                                                     const AutomatonLimits& limits) {
  const PositionGraph graph(tree, limits.max_positions);
  if (graph.too_large()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pattern needs more positions, with its repetitions written out, than the "
                     "limit of ",
                     limits.max_positions));
  }
  return AutomatonBuilder(graph, limits).Run();
}

}  // namespace espalier
