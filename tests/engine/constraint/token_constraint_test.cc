#include "engine/constraint/token_constraint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/constraint/constraint_cache.h"
#include "tests/engine/constraint/random_pattern.h"
#include "tests/support/fake_tokenizer.h"

namespace espalier {
namespace {

using testing::HasSubstr;

// Tokens of one to four bytes, which need not be whole characters; the last ends a generation.
class PieceTokenizer : public FakeTokenizer {
 public:
  explicit PieceTokenizer(std::vector<std::string> pieces)
      : FakeTokenizer(static_cast<int>(pieces.size()) + 1), pieces_(std::move(pieces)) {}
  std::string TokenBytes(int32_t id, bool) const override {
    return IsSpecial(id) ? "" : pieces_[id];
  }

 private:
  const std::vector<std::string> pieces_;
};

PieceTokenizer RandomVocabulary(std::mt19937_64& rng) {
  std::vector<std::string> pieces;
  for (int byte = 0; byte < 256; ++byte) pieces.emplace_back(1, static_cast<char>(byte));
  for (int i = 0; i < 300; ++i) {
    std::string text = RandomText(rng) + RandomText(rng);
    text = text.substr(std::min<size_t>(rng() % 3, text.size()), 1 + rng() % 4);
    if (!text.empty()) pieces.push_back(text);
  }
  return PieceTokenizer(std::move(pieces));
}

bool Allowed(const TokenMask& mask, int32_t token) {
  return (mask[token / 64] >> (token % 64) & 1) != 0;
}

TEST(TokenConstraintTest, MaskEqualsTryingEveryToken) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 rng(seed);
  int ends = 0;
  for (int round = 0; round < 60; ++round) {
    const PieceTokenizer tokenizer = RandomVocabulary(rng);
    const std::string pattern = RandomPattern(rng);
    SCOPED_TRACE(pattern);
    const auto constraint =
        TokenConstraint::Compile(pattern, std::make_shared<SortedVocabulary>(tokenizer));
    if (!constraint.ok()) continue;  // only the empty text matches
    const auto automaton = ByteAutomaton::Compile(*ParseRegex(pattern), {});
    ASSERT_TRUE(automaton.ok());
    int state = (*constraint)->initial();
    int byte_state = automaton->initial();
    for (int step = 0; step < 12 && !(*constraint)->complete(state); ++step) {
      const std::shared_ptr<const TokenMask> mask = (*constraint)->Mask(state);
      std::vector<int32_t> allowed;
      for (int32_t token = 0; token < tokenizer.vocab_size() - 1; ++token) {
        int next = byte_state;
        for (const char byte : tokenizer.TokenBytes(token, false)) {
          if (next != ByteAutomaton::kDead) {
            next = automaton->Advance(next, static_cast<uint8_t>(byte));
          }
        }
        ASSERT_EQ(Allowed(*mask, token), next != ByteAutomaton::kDead) << token;
        if (next != ByteAutomaton::kDead) allowed.push_back(token);
      }
      const int32_t eos = tokenizer.vocab_size() - 1;
      ASSERT_EQ(Allowed(*mask, eos), automaton->accepts(byte_state));
      ends += Allowed(*mask, eos) ? 1 : 0;
      ASSERT_FALSE((*constraint)->stuck(state)) << "every byte is a token";
      if (allowed.empty()) break;
      const int32_t token = allowed[rng() % allowed.size()];
      state = (*constraint)->Advance(state, token);
      for (const char byte : tokenizer.TokenBytes(token, false)) {
        byte_state = automaton->Advance(byte_state, static_cast<uint8_t>(byte));
      }
    }
  }
  EXPECT_GT(ends, 10);
}

TEST(TokenConstraintTest, AVocabularyWithoutTheBytesIsStuck) {
  const PieceTokenizer tokenizer({"a", "b"});
  const auto vocabulary = std::make_shared<SortedVocabulary>(tokenizer);
  EXPECT_THAT(TokenConstraint::Compile("cd", vocabulary).status().message(),
              HasSubstr("no token of the vocabulary begins a match"));
  const auto constraint = TokenConstraint::Compile("ac", vocabulary);
  ASSERT_TRUE(constraint.ok());
  EXPECT_TRUE((*constraint)->stuck((*constraint)->Advance((*constraint)->initial(), 0)));
}

TEST(TokenConstraintTest, RefusesWhatOnlyTheEmptyTextMatches) {
  const FakeTokenizer tokenizer(256);
  EXPECT_THAT(TokenConstraint::Compile("()", std::make_shared<SortedVocabulary>(tokenizer))
                  .status()
                  .message(),
              HasSubstr("only the empty text"));
}

TEST(ConstraintCacheTest, RemembersPatterns) {
  const FakeTokenizer tokenizer(256);
  ConstraintCache cache(&tokenizer);
  const auto first = cache.Get("a+");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*cache.Get("a+"), *first);
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(cache.Get("b{" + std::to_string(i + 1) + "}").ok());
  EXPECT_NE(*cache.Get("a+"), *first) << "40 other patterns have been asked for since";
  EXPECT_FALSE(cache.Get("a)").ok());
}

}  // namespace
}  // namespace espalier
