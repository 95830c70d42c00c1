// Ids equal those of Hugging Face tokenizers and sentencepiece on every line of a corpus; the
// references were computed by scripts/make_tokenizer_corpus.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "tests/model/tokenizer/fixtures.h"

namespace espalier {
namespace {

// FNV-1a over the ids as little-endian 32-bit integers, in hexadecimal.
std::string HashOf(std::span<const int32_t> ids) {
  uint64_t hash = 0xCBF29CE484222325;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x100000001B3;
    }
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016" PRIx64, hash);
  return text;
}

struct Case {
  std::string tokenizer;
  std::string reference;
};

class TokenizerReferenceTest : public testing::TestWithParam<Case> {};

TEST_P(TokenizerReferenceTest, EveryLineHasTheReferenceIds) {
  if (GetParam().tokenizer == "demo" && !WhyNoDemoModel().empty()) {
    GTEST_SKIP() << WhyNoDemoModel();
  }
  const auto tokenizer = LoadFixture(GetParam().tokenizer);
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<int32_t> prefix = tokenizer->Encode("", /*at_root=*/true);
  std::ifstream reference(GoldenPath(GetParam().reference + ".reference"));
  int failures = 0;
  size_t lines = 0;
  for (std::string row; std::getline(reference, row) && failures < 5; ++lines) {
    ASSERT_LT(lines, CorpusLines().size());
    const std::string& text = CorpusLines()[lines];
    std::istringstream fields(row);
    std::string inner_hash, root_hash;
    fields >> inner_hash >> root_hash;
    if (root_hash == "=") root_hash = inner_hash;
    const std::vector<int32_t> wanted(std::istream_iterator<int32_t>(fields), {});

    const std::vector<int32_t> inner = tokenizer->Encode(text, /*at_root=*/false);
    const std::vector<int32_t> root = tokenizer->Encode(text, /*at_root=*/true);
    SCOPED_TRACE(testing::Message() << "line " << lines << ": " << testing::PrintToString(text));
    if (!wanted.empty()) {
      EXPECT_EQ(inner, wanted);
    }
    EXPECT_EQ(HashOf(inner), inner_hash) << testing::PrintToString(inner);
    ASSERT_GE(root.size(), prefix.size());
    EXPECT_THAT(std::vector<int32_t>(root.begin(), root.begin() + prefix.size()),
                testing::ElementsAreArray(prefix));
    EXPECT_EQ(HashOf(std::span(root).subspan(prefix.size())), root_hash);
    failures += HashOf(inner) != inner_hash;
  }
  EXPECT_EQ(lines, CorpusLines().size());
  EXPECT_GE(lines, 2000u);
}

INSTANTIATE_TEST_SUITE_P(
    All, TokenizerReferenceTest,
    testing::Values(Case{"llama3", "llama3"}, Case{"qwen2", "qwen2"}, Case{"gpt2", "gpt2"},
                    Case{"spm_bpe", "spm_bpe"}, Case{"spm_unigram", "spm_unigram"},
                    Case{"spm_unknown", "spm_unknown"}, Case{"llama-bpe.gguf", "llama3"},
                    Case{"qwen2.gguf", "qwen2"}, Case{"gpt-2.gguf", "gpt-2"},
                    Case{"smollm.gguf", "smollm"}, Case{"tekken.gguf", "tekken"},
                    Case{"default.gguf", "default"}, Case{"spm_bpe.gguf", "spm_bpe"},
                    Case{"demo", "demo"}),
    [](const auto& test) {
      std::string name = test.param.tokenizer;
      std::replace_if(
          name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
      return name;
    });

}  // namespace
}  // namespace espalier
