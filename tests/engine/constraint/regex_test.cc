// Patterns compiled to automata against RE2, and what is refused.
#include "engine/constraint/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <re2/re2.h>

#include <random>
#include <string>

#include "engine/constraint/byte_automaton.h"
#include "tests/engine/constraint/random_pattern.h"

namespace espalier {
namespace {

using testing::HasSubstr;

absl::StatusOr<ByteAutomaton> Compile(const std::string& pattern) {
  const absl::StatusOr<RegexTree> tree = ParseRegex(pattern);
  if (!tree.ok()) return tree.status();
  return ByteAutomaton::Compile(*tree, {});
}

bool Matches(const ByteAutomaton& automaton, const std::string& text) {
  int state = automaton.initial();
  for (const char byte : text) {
    state = automaton.Advance(state, static_cast<uint8_t>(byte));
    if (state == ByteAutomaton::kDead) return false;
  }
  return automaton.accepts(state);
}

// A match, by random bytes that lead on; most are short. Empty where it became too long.
std::optional<std::string> RandomMatch(const ByteAutomaton& automaton, std::mt19937_64& rng) {
  std::string text;
  int state = automaton.initial();
  while (text.size() < 200) {
    if (automaton.accepts(state) && (!automaton.continues(state) || rng() % 3 == 0)) return text;
    // A state that is reached leads to a match, so some byte leads on.
    const int offset = static_cast<int>(rng() % 256);
    for (int i = 0; i < 256; ++i) {
      const auto byte = static_cast<uint8_t>(offset + i);
      const int next = automaton.Advance(state, byte);
      if (next == ByteAutomaton::kDead) continue;
      text.push_back(static_cast<char>(byte));
      state = next;
      break;
    }
  }
  return std::nullopt;
}

TEST(RegexTest, EqualsRe2OnRandomPatternsAndTexts) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 rng(seed);
  int compared = 0;
  int matched = 0;
  int too_large = 0;
  for (int round = 0; round < 1500; ++round) {
    const std::string pattern = RandomPattern(rng);
    SCOPED_TRACE(pattern);
    RE2::Options options;
    options.set_log_errors(false);
    const RE2 reference(pattern, options);
    ASSERT_TRUE(reference.ok()) << reference.error();
    const absl::StatusOr<ByteAutomaton> automaton = Compile(pattern);
    if (!automaton.ok()) {
      ASSERT_THAT(automaton.status().message(), HasSubstr("than the limit"));
      ++too_large;
      continue;
    }
    for (int i = 0; i < 20; ++i, ++compared) {
      const std::string text = RandomText(rng);
      ASSERT_EQ(Matches(*automaton, text), RE2::FullMatch(text, reference)) << text;
      const std::optional<std::string> match = RandomMatch(*automaton, rng);
      if (!match) continue;
      ++matched;
      ASSERT_TRUE(RE2::FullMatch(*match, reference)) << *match;
    }
  }
  EXPECT_GT(compared, 20000);
  EXPECT_GT(matched, 10000);
  EXPECT_LT(too_large, 30);
}

TEST(RegexTest, EscapesAndClasses) {
  const struct {
    const char* pattern;
    const char* match;
    const char* other;
  } cases[] = {
      {R"(\d+\.\d{2})", "12.50", "12.5"},
      {R"(^\w+@\w+$)", "ab_1@x", "ab-1@x"},
      {R"([\]\-x]+)", "-]x", "\\"},
      {R"([]a]+)", "]a", "b"},
      {R"([^\s"]*)", "abc", "a b"},
      {R"(\x41\x{1F600}\u00e9)", "A\U0001F600\u00e9", "A"},
      {R"((?:yes|no)\n?)", "no\n", "no\n\n"},
      {R"(\{"a": (true|null)\})", R"({"a": null})", R"({"a": 1})"},
      {R"(.{3})", "\u00e9\u20ac\U0001F600", "ab"},
      {R"(a{2,})", "aaaa", "a"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.pattern);
    const absl::StatusOr<ByteAutomaton> automaton = Compile(c.pattern);
    ASSERT_TRUE(automaton.ok()) << automaton.status();
    EXPECT_TRUE(Matches(*automaton, c.match));
    EXPECT_FALSE(Matches(*automaton, c.other));
  }
}

TEST(RegexTest, RefusalsSayWhereAndWhat) {
  const struct {
    std::string pattern;
    const char* message;
  } cases[] = {
      {"ab)", "byte 2: an unmatched )"},
      {"(ab", "byte 3"},
      {"[ab", "a ] is missing"},
      {"*a", "nothing to repeat before *"},
      {"a{3,2}", "{3,2} asks for fewer at most than at least"},
      {"a{1001}", "more than 1000 repetitions"},
      {"a{,2}", "a number is missing"},
      {"[z-a]", "runs backwards"},
      {"[[:alpha:]]", "named classes"},
      {R"(\bword)", R"(\b is not supported)"},
      {R"((a)\1)", R"(\1 is not supported)"},
      {R"(\p{L})", R"(\p is not supported)"},
      {"(?i)a", "byte"},
      {"(?=a)b", "byte"},
      {"a^b", "byte 1"},
      {R"(\x{110000})", "no character"},
      {R"(\xg0)", "incomplete hexadecimal"},
      {"a\\", "nothing follows"},
      {"\xff", "not valid UTF-8"},
      {std::string(70, '(') + "a" + std::string(70, ')'), "byte"},
      {"((a{1000}){1000}){1000}", "than the limit"},
      {"(){1000}{1000}", "byte"},
      {"(a|b)*a(a|b){20}", "states times byte classes"},
      {R"([^\x{0}-\x{10FFFF}])", "no text matches the pattern"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.pattern.substr(0, 80));
    const absl::Status status = Compile(c.pattern).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace espalier
