// The byte interface: whatever bytes go in come out, and special tokens never do.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/model/tokenizer/fixtures.h"

namespace espalier {
namespace {

// Random bytes, and valid text broken here and there.
std::string RandomBytes(std::mt19937_64& random) {
  std::string text;
  const int length = static_cast<int>(random() % 60);
  if (random() % 2 == 0) {
    for (int i = 0; i < length; ++i) text += static_cast<char>(random());
    return text;
  }
  text = CorpusLines()[random() % CorpusLines().size()];
  for (int i = 0; i < 3 && !text.empty(); ++i)
    text[random() % text.size()] = static_cast<char>(random());
  if (random() % 4 == 0) text += "\xE2\x96\x81";  // sentencepiece's own space symbol
  return text;
}

class RoundTripTest : public testing::TestWithParam<const char*> {};

TEST_P(RoundTripTest, AnyBytesComeBack) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 1500; ++i) {
    const std::string text = RandomBytes(random);
    const std::vector<int32_t> ids = tokenizer->Encode(text, /*at_root=*/false);
    ASSERT_EQ(tokenizer->Decode(ids, /*special=*/false), text) << testing::PrintToString(ids);
  }
}

// Not here: qwen2 (rewrites to NFC), spm_unigram (to NFKC), spm_unknown (has no byte pieces).
INSTANTIATE_TEST_SUITE_P(Lossless, RoundTripTest,
                         testing::Values("llama3", "gpt2", "spm_bpe", "llama-bpe.gguf",
                                         "gpt-2.gguf", "smollm.gguf", "tekken.gguf", "default.gguf",
                                         "spm_bpe.gguf"));

TEST(RoundTripDemoTest, OnlyBytesThatTheVocabularyLacksAreLost) {
  if (!WhyNoDemoModel().empty()) GTEST_SKIP() << WhyNoDemoModel();
  const auto tokenizer = LoadFixture("demo");
  ASSERT_NE(tokenizer, nullptr);
  std::string known;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string text(1, static_cast<char>(byte));
    const std::string back = tokenizer->Decode(tokenizer->Encode(text, false), false);
    if (back == text)
      known += text;
    else
      EXPECT_EQ(back, "");
  }
  EXPECT_EQ(known.size(), 256u - 21u);
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 1500; ++i) {
    std::string text = RandomBytes(random);
    std::erase_if(text, [&](char c) { return known.find(c) == std::string::npos; });
    ASSERT_EQ(tokenizer->Decode(tokenizer->Encode(text, false), false), text);
  }
}

TEST(RoundTripTest, NormalizationIsAllThatQwen2Loses) {
  const auto tokenizer = LoadFixture("qwen2");
  ASSERT_NE(tokenizer, nullptr);
  const auto back = [&](std::string_view text) {
    return tokenizer->Decode(tokenizer->Encode(text, false), false);
  };
  EXPECT_EQ(back("e\u0301"), "\u00E9");
  EXPECT_EQ(back("a\u0323\u0307"), "\u1EA1\u0307");
  EXPECT_EQ(back("a\u0307\u0323"), "\u1EA1\u0307");
  EXPECT_EQ(back("\xFF\xFE"
                 "e\xCC"),
            "\xFF\xFE"
            "e\xCC");
}

TEST(RoundTripTest, DummyPrefixStandsAtTheRootOnly) {
  const auto tokenizer = LoadFixture("spm_bpe");
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<int32_t> root = tokenizer->Encode("of the", /*at_root=*/true);
  ASSERT_TRUE(tokenizer->bos().has_value());
  EXPECT_EQ(root.front(), *tokenizer->bos());
  EXPECT_EQ(tokenizer->Decode(root, false), " of the");
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("of the", false), false), "of the");
}

class SpecialTokensTest : public testing::TestWithParam<const char*> {};

TEST_P(SpecialTokensTest, NeverComeOutOfText) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  int specials = 0;
  std::string all;
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    if (!tokenizer->IsSpecial(id)) continue;
    ++specials;
    const std::string written = tokenizer->TokenBytes(id, /*special=*/true);
    EXPECT_EQ(tokenizer->FindPiece(written), id);
    EXPECT_EQ(tokenizer->TokenBytes(id, /*special=*/false), "");
    all += written;
    for (const std::string& text : {written, "a " + written + " b", written + written, all}) {
      for (const int32_t got : tokenizer->Encode(text, /*at_root=*/false)) {
        // Text without a piece is what the unknown token is for.
        if (tokenizer->TokenBytes(got, true) == "<unk>") continue;
        EXPECT_FALSE(tokenizer->IsSpecial(got)) << text;
      }
    }
  }
  EXPECT_GT(specials, 0);
  EXPECT_FALSE(tokenizer->eos().empty());
}

TEST_P(SpecialTokensTest, IdsOutOfRangeAreHarmless) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const int32_t id : {-1, INT32_MIN, tokenizer->vocab_size(), INT32_MAX}) {
    EXPECT_EQ(tokenizer->TokenBytes(id, true), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

INSTANTIATE_TEST_SUITE_P(All, SpecialTokensTest, testing::ValuesIn(kFixtures));

}  // namespace
}  // namespace espalier
