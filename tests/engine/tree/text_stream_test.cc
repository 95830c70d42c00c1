#include "engine/tree/text_stream.h"

#include <algorithm>
#include <optional>
#include <random>

#include "engine/utf8.h"
#include "gtest/gtest.h"

namespace espalier {
namespace {

// Token i adds the i-th piece, whatever bytes that is.
class PieceTokenizer : public Tokenizer {
 public:
  explicit PieceTokenizer(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {}

  std::string TokenBytes(int32_t id, bool) const override { return pieces_.at(id); }
  std::vector<int32_t> Encode(std::string_view, bool) const override { return {}; }
  int vocab_size() const override { return static_cast<int>(pieces_.size()); }
  bool IsSpecial(int32_t) const override { return false; }
  std::optional<int32_t> FindPiece(std::string_view) const override { return std::nullopt; }
  std::optional<int32_t> bos() const override { return std::nullopt; }
  std::vector<int32_t> eos() const override { return {}; }
  ChatFormat chat_format() const override { return ChatFormat::kNone; }

 private:
  std::vector<std::string> pieces_;
};

std::string AsText(const std::string& bytes) {
  std::string text;
  AppendAsUtf8(bytes, &text);
  return text;
}

// What a whole branch becomes, by looking at it when it is over.
struct Answer {
  std::string text;
  int kept_tokens = 0;
  int fed_tokens = 0;  // up to the one that completed the match
  int stop_index = -1;
};

Answer WholeAnswer(const std::vector<std::string>& pieces, const std::vector<std::string>& stop,
                   bool include_stop, int min_tokens) {
  std::string bytes;
  std::vector<size_t> ends;
  for (const std::string& piece : pieces) ends.push_back((bytes += piece).size());
  // The first end of any match in a token that may stop; the longest match that ends there.
  for (size_t end = 1; end <= bytes.size(); ++end) {
    const auto token = std::ranges::lower_bound(ends, end) - ends.begin();
    if (token + 1 < min_tokens) continue;
    int match = -1;
    for (size_t s = 0; s < stop.size(); ++s) {
      if (bytes.substr(0, end).ends_with(stop[s]) &&
          (match < 0 || stop[s].size() > stop[match].size())) {
        match = static_cast<int>(s);
      }
    }
    if (match < 0) continue;
    Answer answer{.text = "",
                  .kept_tokens = 0,
                  .fed_tokens = static_cast<int>(token) + 1,
                  .stop_index = match};
    if (include_stop) {
      answer.kept_tokens = answer.fed_tokens;
      answer.text = AsText(bytes.substr(0, end));
    } else {
      const size_t start = end - stop[match].size();
      std::string kept;
      for (size_t i = 0; i < pieces.size() && ends[i] <= start; ++i) {
        kept += pieces[i];
        ++answer.kept_tokens;
      }
      answer.text = AsText(kept);
    }
    return answer;
  }
  const int all = static_cast<int>(pieces.size());
  return {.text = AsText(bytes), .kept_tokens = all, .fed_tokens = all, .stop_index = -1};
}

// The least that must be held back after `bytes`, the pieces so far: all that a longer text could
// still take away or change.
size_t MustHold(const std::vector<std::string>& pieces, const std::vector<std::string>& stop,
                bool include_stop) {
  std::string bytes;
  std::vector<size_t> starts;
  for (const std::string& piece : pieces) {
    starts.push_back(bytes.size());
    bytes += piece;
  }
  size_t hold = bytes.size();
  for (const std::string& s : stop) {
    for (size_t length = 1; length < s.size() && length <= bytes.size(); ++length) {
      if (bytes.ends_with(s.substr(0, length))) hold = std::min(hold, bytes.size() - length);
    }
  }
  if (!include_stop && hold < bytes.size()) {
    for (size_t i = starts.size(); i-- > 0;) {
      if (starts[i] <= hold && !pieces[i].empty()) {
        hold = starts[i];
        break;
      }
    }
  }
  // Back to the last border between characters.
  size_t at = 0;
  while (at < hold) {
    const Utf8Unit unit = NextUtf8Unit(std::string_view(bytes).substr(at));
    if (unit.kind == Utf8Unit::Kind::kIncomplete || at + unit.length > hold) break;
    at += unit.length;
  }
  return at;
}

void ExpectStreamEqualsWhole(const std::vector<std::string>& pieces,
                             const std::vector<std::string>& stop, bool include_stop,
                             int min_tokens) {
  const PieceTokenizer tokenizer(pieces);
  TextStream stream(&tokenizer, &stop, include_stop);
  const Answer expected = WholeAnswer(pieces, stop, include_stop, min_tokens);

  std::string text;
  std::string bytes;
  int released = 0;
  for (int i = 0; i < static_cast<int>(pieces.size()); ++i) {
    const TextStream::Output out = stream.Push(i, i + 1 >= min_tokens);
    EXPECT_TRUE(IsValidUtf8(out.text)) << testing::PrintToString(out.text);
    text += out.text;
    bytes += pieces[i];
    EXPECT_GE(out.tokens_released, released);
    released = out.tokens_released;
    ASSERT_EQ(out.stop_index >= 0, i + 1 == expected.fed_tokens && expected.stop_index >= 0);
    if (out.stop_index >= 0) {
      EXPECT_EQ(out.stop_index, expected.stop_index);
      EXPECT_EQ(out.kept_tokens, expected.kept_tokens);
      EXPECT_EQ(out.tokens_released, expected.kept_tokens);
      EXPECT_EQ(text, expected.text);
      return;
    }
    EXPECT_EQ(out.kept_tokens, i + 1);
    // Exactly what is decided has gone out, and exactly the tokens that it covers.
    const std::vector<std::string> so_far(pieces.begin(), pieces.begin() + i + 1);
    const size_t border = MustHold(so_far, stop, include_stop);
    EXPECT_EQ(text, AsText(bytes.substr(0, border)));
    int covered = 0;
    size_t end = 0;
    for (const std::string& piece : so_far) covered += (end += piece.size()) <= border;
    EXPECT_EQ(out.tokens_released, covered);
  }
  const TextStream::Output out = stream.Finish();
  EXPECT_EQ(out.stop_index, -1);
  EXPECT_EQ(out.tokens_released, expected.kept_tokens);
  EXPECT_EQ(out.kept_tokens, expected.kept_tokens);
  EXPECT_EQ(text + out.text, expected.text);
}

// Cuts `bytes` at random places; some tokens have no bytes, as special ones.
std::vector<std::string> RandomPieces(const std::string& bytes, std::mt19937_64& rng) {
  std::vector<std::string> pieces;
  const size_t longest = 1 + rng() % 6;
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = rng() % 8 == 0 ? 0 : 1 + rng() % longest;
    pieces.push_back(bytes.substr(at, length));
    at += length;
  }
  return pieces;
}

TEST(TextStreamTest, EqualsTheWholeStringAnswerOnRandomTokens) {
  const std::string alphabets[][6] = {
      {"a", "b", "a", "b", "a", "b"},                                  // stops overlap themselves
      {"a", "\n", "é", "中", "😀", "b"},                                // text of all widths
      {"a", "\xE4", "\xBD", "\xA0", "\xF0\x9F", "\xFF"},               // torn and invalid
      {"中", "\xE4\xB8", "\xAD", "\xED\xA0", "\xEF\xBF\xBD", "\xC3"},  // both
  };
  int matched = 0;
  for (uint64_t seed = 0; seed < 4000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 rng(seed);
    const auto& alphabet = alphabets[rng() % 4];
    const auto random_bytes = [&](uint64_t symbols) {
      std::string bytes;
      for (uint64_t i = 0; i < symbols; ++i) bytes += alphabet[rng() % 6];
      return bytes;
    };
    const std::string bytes = random_bytes(rng() % 40);
    std::vector<std::string> stop(rng() % 4);
    for (std::string& s : stop) s = random_bytes(1 + rng() % 5);
    const std::vector<std::string> pieces = RandomPieces(bytes, rng);
    const int min_tokens = rng() % 2 == 0 ? 0 : static_cast<int>(rng() % 12);
    for (bool include_stop : {false, true}) {
      SCOPED_TRACE(testing::Message() << "include_stop " << include_stop);
      ExpectStreamEqualsWhole(pieces, stop, include_stop, min_tokens);
      matched += WholeAnswer(pieces, stop, include_stop, min_tokens).stop_index >= 0;
      if (HasFatalFailure()) return;
    }
  }
  EXPECT_GT(matched, 1500);
  EXPECT_LT(matched, 7000);
}

// One text, every way to cut it into three tokens.
TEST(TextStreamTest, EqualsTheWholeStringAnswerForEveryCut) {
  const std::string bytes = "né 中\n\nUser: 😀\xFF!";
  const std::vector<std::string> stop = {"\n\nUser:", "😀!"};
  for (size_t a = 0; a <= bytes.size(); ++a) {
    for (size_t b = a; b <= bytes.size(); ++b) {
      SCOPED_TRACE(testing::Message() << "seed: cuts at " << a << " and " << b);
      const std::vector<std::string> pieces = {bytes.substr(0, a), bytes.substr(a, b - a),
                                               bytes.substr(b)};
      for (bool include_stop : {false, true}) {
        ExpectStreamEqualsWhole(pieces, stop, include_stop, 0);
      }
    }
  }
}

std::vector<TextStream::Output> Feed(const std::vector<std::string>& pieces,
                                     const std::vector<std::string>& stop, bool include_stop) {
  const PieceTokenizer tokenizer(pieces);
  TextStream stream(&tokenizer, &stop, include_stop);
  std::vector<TextStream::Output> outputs;
  for (int i = 0; i < static_cast<int>(pieces.size()); ++i) {
    outputs.push_back(stream.Push(i, true));
    if (outputs.back().stop_index >= 0) return outputs;
  }
  outputs.push_back(stream.Finish());
  return outputs;
}

TEST(TextStreamTest, EndsBeforeTheFirstTokenThatOverlapsAStopString) {
  const auto out = Feed({"Paris", ".\n", "\nQ"}, {"\n\n"}, false);
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(out[0].text, "Paris");
  EXPECT_EQ(out[1].text, "");  // ".\n" may have to go
  EXPECT_EQ(out[1].tokens_released, 1);
  EXPECT_EQ(out[2].text, "");
  EXPECT_EQ(out[2].stop_index, 0);
  EXPECT_EQ(out[2].kept_tokens, 1);
}

TEST(TextStreamTest, EndsWithTheStopStringWhenItIsIncluded) {
  const auto out = Feed({"Paris", ".\n", "\nQ"}, {"\n\n"}, true);
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(out[1].text, ".");
  EXPECT_EQ(out[1].tokens_released, 1);
  EXPECT_EQ(out[2].text, "\n\n");
  EXPECT_EQ(out[2].kept_tokens, 3);
  EXPECT_EQ(out[2].tokens_released, 3);
}

TEST(TextStreamTest, ReleasesWhatDidNotBecomeAStopString) {
  const auto out = Feed({"a\n", "b"}, {"\n\n"}, false);
  EXPECT_EQ(out[0].text, "");
  EXPECT_EQ(out[0].tokens_released, 0);
  EXPECT_EQ(out[1].text, "a\nb");
  EXPECT_EQ(out[1].tokens_released, 2);
}

TEST(TextStreamTest, HoldsACharacterUntilItIsComplete) {
  const auto out = Feed({"x\xF0\x9F", "\x98", "\x80y", "\xE4\xBD"}, {}, false);
  EXPECT_EQ(out[0].text, "x");
  EXPECT_EQ(out[0].tokens_released, 0);
  EXPECT_EQ(out[1].text, "");
  EXPECT_EQ(out[2].text, "😀y");
  EXPECT_EQ(out[2].tokens_released, 3);
  EXPECT_EQ(out[3].text, "");
  EXPECT_EQ(out[4].text, "\xEF\xBF\xBD");  // Finish: it never came
  EXPECT_EQ(out[4].tokens_released, 4);
}

TEST(TextStreamTest, AMatchBelowMinTokensIsIgnored) {
  const std::vector<std::string> pieces = {"a", "\n", "b", "\n"};
  const std::vector<std::string> stop = {"\n"};
  const PieceTokenizer tokenizer(pieces);
  TextStream stream(&tokenizer, &stop, false);
  EXPECT_EQ(stream.Push(0, false).text, "a");
  EXPECT_EQ(stream.Push(1, false).text, "\n");
  EXPECT_EQ(stream.Push(2, true).text, "b");
  const TextStream::Output out = stream.Push(3, true);
  EXPECT_EQ(out.stop_index, 0);
  EXPECT_EQ(out.kept_tokens, 3);
}

TEST(TextStreamTest, TheLargestAllowedStopStringsStayCheapOnAText) {
  // Every byte is a near match of every string; comparing each string at each byte would be
  // 4e9 comparisons and run into the test's time limit many times over.
  const std::vector<std::string> stop(16, std::string(255, 'a') + 'b');
  const std::vector<std::string> pieces(1 << 14, std::string(64, 'a'));
  const PieceTokenizer tokenizer({pieces[0], "b"});
  TextStream stream(&tokenizer, &stop, true);
  size_t bytes = 0;
  for (size_t i = 0; i < pieces.size(); ++i) bytes += stream.Push(0, true).text.size();
  EXPECT_EQ(bytes, (pieces.size() * 64) - 255);
  EXPECT_EQ(stream.Push(1, true).stop_index, 0);
}

}  // namespace
}  // namespace espalier
