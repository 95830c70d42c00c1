#include "tests/server/tiny_model.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/tokenizer/byte_level.h"

namespace espalier {

TinyModel::TinyModel() {
  namespace fs = std::filesystem;
  path_ = fs::temp_directory_path() / "espalier_tiny_XXXXXX";
  EXPECT_NE(mkdtemp(path_.data()), nullptr);

  const fs::path golden = fs::path(ESPALIER_SOURCE_DIR) / "tests/golden/tiny/llama-gqa3-tied";
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::copy_file(golden / name, fs::path(path_) / name);
  }

  nlohmann::json vocab;
  for (int byte = 0; byte < kVocabSize; ++byte) {
    vocab[ByteLevelSymbol(static_cast<unsigned char>(byte))] = byte;
  }
  const nlohmann::json tokenizer = {
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}}};
  std::ofstream(fs::path(path_) / "tokenizer.json") << tokenizer;
}

TinyModel::~TinyModel() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace espalier
