#include "tests/model/tokenizer/fixtures.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "model/tokenizer/load.h"

namespace espalier {

std::string GoldenPath(const std::string& name) {
  return std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/tokenizer/" + name;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string WhyNoDemoModel() {
  return std::getenv("ESPALIER_DEMO_MODEL") == nullptr
             ? "ESPALIER_DEMO_MODEL does not name the demo model's GGUF file"
             : "";
}

std::unique_ptr<Tokenizer> LoadFixture(const std::string& name) {
  if (name != "demo" && !name.ends_with(".gguf")) {
    auto tokenizer = LoadTokenizerFromFolder(GoldenPath(name));
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
  }
  const auto file =
      GgufFile::Open(name == "demo" ? std::getenv("ESPALIER_DEMO_MODEL") : GoldenPath(name));
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return nullptr;
  auto tokenizer = LoadTokenizerFromGguf(**file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

const std::vector<std::string>& CorpusLines() {
  static const std::vector<std::string> lines = [] {
    std::vector<std::string> result;
    std::ifstream file(GoldenPath("corpus.jsonl"));
    for (std::string line; std::getline(file, line);) {
      result.push_back(nlohmann::json::parse(line).get<std::string>());
    }
    return result;
  }();
  return lines;
}

}  // namespace espalier
