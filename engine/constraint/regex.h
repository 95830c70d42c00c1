// Regular expressions as syntax trees. The language is what automata can decide: no backreference,
// no look-around, no word boundary. README.md beside this file lists the syntax.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace espalier {

struct CodePointRange {
  uint32_t first;
  uint32_t last;  // inclusive
};

// Nodes in an arena, so that no pattern can nest destructors.
struct RegexTree {
  enum class Kind {
    kSet,        // one character of `set`; an empty set matches nothing
    kSequence,   // its children, one after the other; without children the empty text
    kAlternate,  // one of its children
    kRepeat,     // its only child, from `min` to `max` times
  };
  static constexpr int kUnbounded = -1;
  struct Node {
    Kind kind = Kind::kSequence;
    std::vector<CodePointRange> set = {};  // ascending and disjoint, without surrogates
    std::vector<int> children = {};
    int min = 0;
    int max = kUnbounded;
  };

  std::vector<Node> nodes;
  int root = 0;
};

inline constexpr int kMaxRegexNesting = 64;   // groups within groups
inline constexpr int kMaxRegexRepeat = 1000;  // of {m,n}

// The whole text is to match, so that ^ and $ are allowed at the pattern's ends only, where they
// say so. INVALID_ARGUMENT names the byte of the pattern and what is wrong there.
absl::StatusOr<RegexTree> ParseRegex(absl::string_view pattern);

}  // namespace espalier
