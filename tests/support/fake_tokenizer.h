// A tokenizer for tests: token i is the byte i, save the last few ids, which are special.
#pragma once

#include <string>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace espalier {

class FakeTokenizer : public Tokenizer {
 public:
  // Ids [vocab_size - num_special, vocab_size) are special; the last one ends a generation.
  explicit FakeTokenizer(int vocab_size, int num_special = 1)
      : vocab_size_(vocab_size), num_special_(num_special) {}

  std::vector<int32_t> Encode(std::string_view text, bool) const override {
    std::vector<int32_t> ids;
    for (unsigned char c : text) ids.push_back(c % (vocab_size_ - num_special_));
    return ids;
  }
  std::string TokenBytes(int32_t id, bool) const override {
    if (id < 0 || id >= vocab_size_ || IsSpecial(id)) return "";
    return std::string(1, static_cast<char>(id));
  }
  int vocab_size() const override { return vocab_size_; }
  bool IsSpecial(int32_t id) const override { return id >= vocab_size_ - num_special_; }
  std::optional<int32_t> FindPiece(std::string_view piece) const override {
    if (piece.size() != 1) return std::nullopt;
    return static_cast<unsigned char>(piece[0]);
  }
  std::optional<int32_t> bos() const override { return std::nullopt; }
  std::vector<int32_t> eos() const override { return {vocab_size_ - 1}; }
  ChatFormat chat_format() const override { return ChatFormat::kNone; }

 private:
  const int vocab_size_;
  const int num_special_;
};

}  // namespace espalier
