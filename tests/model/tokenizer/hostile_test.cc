// Texts made to be slow, and files made to break the loaders.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "model/tokenizer/gguf_pre_tokenizers.h"
#include "model/tokenizer/load.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/sentencepiece_model.h"
#include "model/tokenizer/tokenizer_json.h"
#include "tests/model/tokenizer/fixtures.h"

namespace espalier {
namespace {

using testing::HasSubstr;

std::string Repeat(std::string_view unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += unit;
  return text;
}

class LongTextTest : public testing::TestWithParam<const char*> {};

// Quadratic work on any of these would take minutes to days.
TEST_P(LongTextTest, AMebibyteOfOneThingIsEncoded) {
  const auto tokenizer = LoadFixture(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  const bool lossless = std::string_view(GetParam()) == "llama3" ||
                        std::string_view(GetParam()) == "gpt2" ||
                        std::string_view(GetParam()) == "spm_bpe";
  const std::pair<const char*, std::string_view> units[] = {
      {"spaces", " "},
      {"a", "a"},
      {"words", "the tree "},
      {"line ends", "\n"},
      {"spaces then letter", "                                                       x"},
      {"combining character", "\u0301"},
      {"combining characters out of order", "\u0301\u0323"},
      {"invalid bytes", "\xFF"},
      {"U+2581", "\u2581"},
      {"apostrophes", "'"},
  };
  for (const auto& [name, unit] : units) {
    const std::string text = Repeat(unit, 1 << 20);
    const auto start = std::chrono::steady_clock::now();
    const std::vector<int32_t> ids = tokenizer->Encode(text, /*at_root=*/false);
    const std::chrono::duration<double, std::milli> taken =
        std::chrono::steady_clock::now() - start;
    std::cout << GetParam() << ", 1 MiB of " << name << ": " << ids.size() << " ids, "
              << static_cast<int>(taken.count()) << " ms\n";
    if (lossless) {
      EXPECT_TRUE(tokenizer->Decode(ids, false) == text) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LongTextTest,
                         testing::Values("llama3", "qwen2", "gpt2", "spm_bpe", "spm_unigram",
                                         "spm_unknown"));

TEST(RegexTest, RefusesWhatMeansSomethingElseHere) {
  for (const char* pattern : {R"(\w+)", R"(\h)", R"(a\b)", "[a[bc]]", "[a&&b]", "(*LIMIT_MATCH=1)a",
                              R"(\K)", R"([\S])", "^a", "a$", "(?m).", "[]a]"}) {
    EXPECT_EQ(Regex::Compile(pattern).status().code(), absl::StatusCode::kUnimplemented) << pattern;
  }
}

TEST(RegexTest, RefusesMalformedAndHugePatterns) {
  for (const std::string& pattern :
       {std::string("("), std::string("a{2,1}"),
        std::string("((((((a{999}){999}){999}){999}){999})"), std::string(5000, 'a'),
        std::string(100, '(') + std::string(100, ')'), std::string("\xFF"),
        std::string("(?<=a+)b")}) {
    EXPECT_EQ(Regex::Compile(pattern).status().code(), absl::StatusCode::kInvalidArgument)
        << pattern.substr(0, 60);
  }
}

TEST(RegexTest, RunawayPatternsEndAndLoseNothing) {
  auto regex = Regex::Compile("(a+)+b|c");
  ASSERT_TRUE(regex.ok()) << regex.status();
  Regex::Span found;
  EXPECT_FALSE(regex->FindNext(std::string(40, 'a') + "c", 0, &found));
  ASSERT_TRUE(regex->FindNext("aaab", 0, &found));
  EXPECT_EQ(found.end, 4u);
}

TEST(RegexTest, WhiteSpaceIsUnicodes) {
  auto regex = Regex::Compile(R"(\s+|\S+|[^\s]+)");
  ASSERT_TRUE(regex.ok()) << regex.status();
  Regex::Span found;
  ASSERT_TRUE(regex->FindNext("\u00A0\u3000\u0085x", 0, &found));
  EXPECT_EQ(found.end, 7u);
  ASSERT_TRUE(regex->FindNext("\u180Ex y", 0, &found));  // no white space since Unicode 6.3
  EXPECT_EQ(found.end, 4u);
}

// A small tokenizer.json with one thing changed.
absl::Status Load(const std::function<void(nlohmann::json&)>& change) {
  auto json = nlohmann::json::parse(ReadFile(GoldenPath("gpt2/tokenizer.json")));
  change(json);
  return ParseTokenizerJson(json.dump(), {}).status();
}

TEST(TokenizerJsonTest, NamesWhatItDoesNotSupport) {
  using Json = nlohmann::json;
  const auto refused = [](const std::function<void(Json&)>& change) {
    const absl::Status status = Load(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](Json& j) { j["model"]["type"] = "WordPiece"; }), HasSubstr("WordPiece"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["dropout"] = 0.1; }), HasSubstr("dropout"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["byte_fallback"] = true; }),
              HasSubstr("byte_fallback"));
  EXPECT_THAT(refused([](Json& j) {
                j["normalizer"] = {{"type", "Lowercase"}};
              }),
              HasSubstr("Lowercase"));
  EXPECT_THAT(refused([](Json& j) {
                j["pre_tokenizer"] = {{"type", "Metaspace"}};
              }),
              HasSubstr("Metaspace"));
  EXPECT_THAT(refused([](Json& j) { j["pre_tokenizer"] = nullptr; }), HasSubstr("ByteLevel"));
  EXPECT_THAT(refused([](Json& j) {
                j["post_processor"] = {{"type", "BertProcessing"}};
              }),
              HasSubstr("BertProcessing"));
  EXPECT_THAT(refused([](Json& j) {
                j["added_tokens"].push_back(
                    {{"id", 1200}, {"content", "<x>"}, {"special", false}, {"lstrip", true}});
              }),
              HasSubstr("lstrip"));
}

TEST(TokenizerJsonTest, NamesWhatIsMalformed) {
  using Json = nlohmann::json;
  const auto refused = [](const std::function<void(Json&)>& change) {
    const absl::Status status = Load(change);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](Json& j) { j["model"]["vocab"] = 1; }), HasSubstr("model.vocab"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["vocab"]["x"] = -1; }), HasSubstr("model.vocab"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["vocab"]["x"] = 4000000000u; }),
              HasSubstr("model.vocab"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["vocab"]["new"] = 2000000000; }),
              HasSubstr("2000000000"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["vocab"][std::string(2000, 'x')] = 5; }),
              HasSubstr("2000"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["merges"].push_back("nospace"); }),
              HasSubstr("merges"));
  EXPECT_THAT(refused([](Json& j) { j["model"]["merges"].push_back("qqq zzz"); }),
              HasSubstr("qqq"));
  EXPECT_THAT(refused([](Json& j) { j["added_tokens"][0]["id"] = 3; }), HasSubstr("<|endoftext|>"));
  EXPECT_THAT(refused([](Json& j) { j["added_tokens"] = "x"; }), HasSubstr("added_tokens"));
  EXPECT_FALSE(ParseTokenizerJson("{", {}).ok());
  EXPECT_FALSE(ParseTokenizerJson("[]", {}).ok());
  EXPECT_FALSE(ParseTokenizerJson(std::string(1 << 20, '['), {}).ok());
}

TEST(TokenizerJsonTest, MergesNeverMakeASpecialToken) {
  auto json = nlohmann::json::parse(ReadFile(GoldenPath("gpt2/tokenizer.json")));
  json["model"]["ignore_merges"] = true;
  json["model"]["vocab"]["zq"] = 1500;
  json["model"]["merges"].push_back({"z", "q"});
  json["added_tokens"].push_back({{"id", 1500}, {"content", "zq"}, {"special", true}});
  const auto tokenizer = ParseTokenizerJson(json.dump(), {});
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::vector<int32_t> ids = (*tokenizer)->Encode("zq", false);
  EXPECT_EQ(ids,
            (std::vector<int32_t>{*(*tokenizer)->FindPiece("z"), *(*tokenizer)->FindPiece("q")}));
}

TEST(SentencePieceModelTest, AnyMutationIsRefusedOrWorks) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  int accepted = 0;
  for (const char* name : {"spm_bpe", "spm_unigram"}) {
    const std::string model = ReadFile(GoldenPath(std::string(name) + "/tokenizer.model"));
    for (int round = 0; round < 150; ++round) {
      std::string mutated = model;
      if (round % 10 == 0) mutated.resize(random() % mutated.size());
      // The rules and options stand at the end.
      const size_t from =
          round % 2 == 0 || mutated.size() < 100 ? 0 : mutated.size() - mutated.size() / 2;
      for (uint64_t i = 0, n = 1 + random() % 20; i < n && !mutated.empty(); ++i) {
        mutated[from + random() % (mutated.size() - from)] = static_cast<char>(random());
      }
      const auto tokenizer = ParseSentencePieceModel(mutated, {});
      if (!tokenizer.ok()) continue;
      ++accepted;
      for (int i = 0; i < 5; ++i) {
        const auto& line = CorpusLines()[random() % CorpusLines().size()];
        for (const int32_t id : (*tokenizer)->Encode(line + "\xFF", true)) {
          ASSERT_LT(id, (*tokenizer)->vocab_size());
          ASSERT_GE(id, 0);
        }
      }
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(LoadFolderTest, NamesWhatIsMissing) {
  const absl::Status status = LoadTokenizerFromFolder(GoldenPath("nowhere")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nowhere"));
}

// A folder of its own under the test's temporary files.
std::string MakeFolder(const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& files) {
  const std::string folder =
      testing::TempDir() + "/" + name + std::to_string(std::random_device()());
  std::filesystem::create_directories(folder);
  for (const auto& [file, text] : files) std::ofstream(folder + "/" + file) << text;
  return folder;
}

TEST(LoadFolderTest, ATokenizerJsonOfAnotherKindGivesWayToTheModel) {
  const std::string folder = MakeFolder(
      "both", {{"tokenizer.json", R"({"model": {"type": "Unigram", "vocab": []}})"},
               {"tokenizer.model", ReadFile(GoldenPath("spm_bpe/tokenizer.model"))},
               {"tokenizer_config.json", R"({"add_bos_token": false, "added_tokens_decoder": {
                   "2000": {"content": "<|im_start|>", "special": true},
                   "2001": {"content": "<tool>", "special": false}}})"}});
  const auto tokenizer = LoadTokenizerFromFolder(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 2002);
  EXPECT_TRUE((*tokenizer)->IsSpecial(2000));
  EXPECT_EQ((*tokenizer)->Encode("<tool>", false), std::vector<int32_t>{2001});
  EXPECT_NE((*tokenizer)->Encode("x", true).front(), *(*tokenizer)->bos());
}

TEST(LoadFolderTest, GenerationConfigAddsWaysToEnd) {
  const std::string folder =
      MakeFolder("eos", {{"tokenizer.json", ReadFile(GoldenPath("qwen2/tokenizer.json"))},
                         {"tokenizer_config.json", R"({"eos_token": "<|im_end|>"})"},
                         {"generation_config.json", R"({"eos_token_id": [7, 5]})"}});
  const auto tokenizer = LoadTokenizerFromFolder(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT((*tokenizer)->eos(),
              testing::ElementsAre(5, 7, *(*tokenizer)->FindPiece("<|im_end|>")));
  std::ofstream(folder + "/generation_config.json") << R"({"eos_token_id": 99999})";
  EXPECT_THAT(std::string(LoadTokenizerFromFolder(folder).status().message()), HasSubstr("99999"));
}

TEST(GgufPreTokenizerTest, UnknownNamesAreRefusedByName) {
  const absl::Status status = FindGgufPreTokenizer("klingon").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("klingon"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("llama-bpe"));
}

}  // namespace
}  // namespace espalier
