// A checkpoint that is quick to load and run: random weights of tests/golden, with a tokenizer
// whose tokens are the 256 bytes. Its folder is removed in the end.
#pragma once

#include <string>

namespace espalier {

class TinyModel {
 public:
  TinyModel();
  ~TinyModel();
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  const std::string& path() const { return path_; }

  static constexpr int kVocabSize = 256;
  static constexpr int kContext = 512;

 private:
  std::string path_;
};

}  // namespace espalier
