#include "engine/constraint/regex.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/utf8.h"

namespace espalier {
namespace {

using Kind = RegexTree::Kind;
using Set = std::vector<CodePointRange>;

constexpr uint32_t kLastCodePoint = 0x10FFFF;
constexpr uint32_t kFirstSurrogate = 0xD800;
constexpr uint32_t kLastSurrogate = 0xDFFF;

// Ascending, disjoint, neither adjacent nor surrogate.
Set Normalized(Set set) {
  std::ranges::sort(set, {}, &CodePointRange::first);
  Set merged;
  for (const CodePointRange& range : set) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  Set scalars;
  for (const CodePointRange& range : merged) {
    if (range.first < kFirstSurrogate) {
      scalars.push_back({range.first, std::min(range.last, kFirstSurrogate - 1)});
    }
    if (range.last > kLastSurrogate) {
      scalars.push_back({std::max(range.first, kLastSurrogate + 1), range.last});
    }
  }
  return scalars;
}

Set Complement(const Set& set) {
  Set rest;
  uint32_t next = 0;
  for (const CodePointRange& range : Normalized(set)) {
    if (range.first > next) rest.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) rest.push_back({next, kLastCodePoint});
  return Normalized(std::move(rest));
}

// \d, \w, \s and their complements; ASCII, as in RE2.
std::optional<Set> PerlClass(char letter) {
  switch (letter) {
    case 'd':
      return Set{{'0', '9'}};
    case 'w':
      return Set{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    case 's':
      return Set{{'\t', '\n'}, {'\f', '\r'}, {' ', ' '}};
    case 'D':
    case 'W':
    case 'S':
      return Complement(*PerlClass(static_cast<char>(letter - 'A' + 'a')));
    default:
      return std::nullopt;
  }
}

std::optional<uint32_t> ControlEscape(char letter) {
  switch (letter) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case 'f':
      return '\f';
    case 'v':
      return '\v';
    case 'a':
      return '\a';
    default:
      return std::nullopt;
  }
}

bool IsWordByte(char c) {
  return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_';
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Recursive descent. Every method leaves the position behind what it read; after an error the rest
// of the pattern is not looked at.
class Parser {
 public:
  explicit Parser(absl::string_view pattern) : text_(pattern) {}

  absl::StatusOr<RegexTree> Run() {
    Take('^');
    tree_.root = Alternation(0);
    if (status_.ok() && !AtEnd()) Fail("an unmatched )");
    if (!status_.ok()) return status_;
    return std::move(tree_);
  }

 private:
  bool AtEnd() const { return at_ >= text_.size(); }
  bool Next(char c) const { return !AtEnd() && text_[at_] == c; }
  bool Take(char c) {
    if (!Next(c)) return false;
    ++at_;
    return true;
  }
  template <typename... Part>
  void Fail(const Part&... part) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat("byte ", at_, ": ", part...));
  }
  int Add(RegexTree::Node node) {
    tree_.nodes.push_back(std::move(node));
    return static_cast<int>(tree_.nodes.size()) - 1;
  }
  int AddSet(Set set) { return Add({.kind = Kind::kSet, .set = Normalized(std::move(set))}); }

  int Alternation(int depth) {
    std::vector<int> branches = {Sequence(depth)};
    while (status_.ok() && Take('|')) branches.push_back(Sequence(depth));
    if (branches.size() == 1) return branches[0];
    return Add({.kind = Kind::kAlternate, .children = std::move(branches)});
  }

  int Sequence(int depth) {
    std::vector<int> parts;
    while (status_.ok() && !AtEnd() && !Next('|') && !Next(')')) {
      if (Next('$') && at_ + 1 == text_.size() && depth == 0) {
        ++at_;
        break;
      }
      const int atom = Atom(depth);
      if (!status_.ok()) break;
      parts.push_back(Repetition(atom));
    }
    if (parts.size() == 1) return parts[0];
    return Add({.kind = Kind::kSequence, .children = std::move(parts)});
  }

  int Atom(int depth) {
    switch (text_[at_]) {
      case '(':
        return Group(depth);
      case '[':
        return AddSet(Class());
      case '.':
        ++at_;
        return AddSet(Complement({{'\n', '\n'}}));
      case '\\':
        return AddSet(Escape());
      case '*':
      case '+':
      case '?':
        Fail("nothing to repeat before ", text_.substr(at_, 1));
        return 0;
      case '^':
      case '$':
        Fail(text_.substr(at_, 1), " is allowed at the pattern's ends only");
        return 0;
      default: {
        const uint32_t c = Character();
        return AddSet({{c, c}});
      }
    }
  }

  int Group(int depth) {
    if (depth >= kMaxRegexNesting) {
      Fail("more than ", kMaxRegexNesting, " groups within groups");
      return 0;
    }
    ++at_;
    if (Take('?') && !Take(':')) {
      Fail("a group that begins with (? other than (?: is not supported");
      return 0;
    }
    const int group = Alternation(depth + 1);
    if (!Take(')')) Fail("a ) is missing");
    return group;
  }

  // `atom`, or `atom` with the repetitions that follow it. That one is lazy changes nothing about
  // what matches.
  int Repetition(int atom) {
    RegexTree::Node repeat{.kind = Kind::kRepeat, .children = {atom}};
    if (Take('*')) {
      repeat.min = 0;
    } else if (Take('+')) {
      repeat.min = 1;
    } else if (Take('?')) {
      repeat.max = 1;
    } else if (Next('{')) {
      Counts(&repeat);
    } else {
      return atom;
    }
    Take('?');
    if (Next('*') || Next('+') || Next('?') || Next('{')) Fail("a repetition of a repetition");
    return Add(std::move(repeat));
  }

  void Counts(RegexTree::Node* repeat) {
    ++at_;
    repeat->min = Count();
    repeat->max = repeat->min;
    if (Take(',')) repeat->max = Next('}') ? RegexTree::kUnbounded : Count();
    if (!Take('}')) {
      Fail("a { that begins no {m}, {m,} or {m,n}; write \\{ for the character");
    } else if (repeat->max != RegexTree::kUnbounded && repeat->max < repeat->min) {
      Fail("{", repeat->min, ",", repeat->max, "} asks for fewer at most than at least");
    }
  }

  int Count() {
    int count = -1;
    while (!AtEnd() && text_[at_] >= '0' && text_[at_] <= '9' && count <= kMaxRegexRepeat) {
      count = std::max(count, 0) * 10 + (text_[at_++] - '0');
    }
    if (count < 0) Fail("a number is missing; write \\{ for the character {");
    if (count > kMaxRegexRepeat) Fail("more than ", kMaxRegexRepeat, " repetitions");
    return count;
  }

  Set Class() {
    ++at_;
    const bool negated = Take('^');
    Set set;
    // A ] that comes first stands for itself.
    for (bool first = true; status_.ok() && (first || !Next(']')); first = false) {
      if (AtEnd()) {
        Fail("a ] is missing");
        break;
      }
      if (text_.substr(at_, 2) == "[:") {
        Fail("named classes such as [:alpha:] are not supported");
        break;
      }
      ClassItem(&set);
    }
    Take(']');
    return negated ? Complement(set) : set;
  }

  void ClassItem(Set* set) {
    const Set low = Next('\\') ? Escape() : Single();
    const bool is_range = at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']';
    if (!status_.ok() || !is_range) {
      set->insert(set->end(), low.begin(), low.end());
      return;
    }
    ++at_;
    const Set high = Next('\\') ? Escape() : Single();
    if (!status_.ok()) return;
    const auto single = [](const Set& s) { return s.size() == 1 && s[0].first == s[0].last; };
    if (!single(low) || !single(high) || low[0].first > high[0].first) {
      Fail("a range of a class that runs backwards or from or to a class");
      return;
    }
    set->push_back({low[0].first, high[0].first});
  }

  Set Single() {
    const uint32_t c = Character();
    return {{c, c}};
  }

  Set Escape() {
    ++at_;
    if (AtEnd()) {
      Fail("nothing follows the \\");
      return {};
    }
    const char letter = text_[at_];
    if (std::optional<Set> set = PerlClass(letter)) {
      ++at_;
      return *set;
    }
    uint32_t c = 0;
    if (const std::optional<uint32_t> control = ControlEscape(letter)) {
      ++at_;
      c = *control;
    } else if (letter == 'x' || letter == 'u') {
      ++at_;
      c = Hex(letter == 'x' ? 2 : 4);
    } else if (IsWordByte(letter)) {
      Fail("\\", text_.substr(at_, 1), " is not supported");
    } else {
      c = Character();
    }
    return {{c, c}};
  }

  // Behind \x or \u: so many digits, or any number of them in braces.
  uint32_t Hex(int digits) {
    const bool braces = Take('{');
    uint32_t c = 0;
    int read = 0;
    for (; !AtEnd() && HexDigit(text_[at_]) >= 0 && read < (braces ? 6 : digits); ++read) {
      c = c * 16 + static_cast<uint32_t>(HexDigit(text_[at_++]));
    }
    if (read == 0 || (!braces && read < digits) || (braces && !Take('}'))) {
      Fail("an incomplete hexadecimal escape");
    } else if (c > kLastCodePoint || (c >= kFirstSurrogate && c <= kLastSurrogate)) {
      Fail("a hexadecimal escape of no character");
    }
    return c;
  }

  // One UTF-8 character; the pattern is valid as a whole.
  uint32_t Character() {
    const auto byte = [this](size_t i) { return static_cast<uint8_t>(text_[i]); };
    const uint8_t lead = byte(at_);
    const int more = lead < 0xC0 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    uint32_t c = more == 0 ? lead : lead & (0x3Fu >> more);
    for (int i = 1; i <= more; ++i) c = c << 6 | (byte(at_ + i) & 0x3Fu);
    at_ += 1 + static_cast<size_t>(more);
    return c;
  }

  const absl::string_view text_;
  size_t at_ = 0;
  RegexTree tree_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<RegexTree> ParseRegex(absl::string_view pattern) {
  if (!IsValidUtf8({pattern.data(), pattern.size()})) {
    return absl::InvalidArgumentError("the pattern is not valid UTF-8");
  }
  return Parser(pattern).Run();
}

}  // namespace espalier
