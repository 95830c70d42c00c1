// A token a byte, for models that come without a vocabulary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace espalier {

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int kVocab = 256;

  std::vector<int32_t> Encode(std::string_view text, bool /*at_root*/) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }
  std::string TokenBytes(int32_t id, bool /*special*/) const override {
    if (id < 0 || id >= kVocab) return "";
    return std::string(1, static_cast<char>(id));
  }
  int vocab_size() const override { return kVocab; }
  bool IsSpecial(int32_t /*id*/) const override { return false; }
  std::optional<int32_t> FindPiece(std::string_view piece) const override {
    if (piece.size() != 1) return std::nullopt;
    return static_cast<uint8_t>(piece[0]);
  }
  std::optional<int32_t> bos() const override { return std::nullopt; }
  std::vector<int32_t> eos() const override { return {}; }
  ChatFormat chat_format() const override { return ChatFormat::kNone; }
};

}  // namespace espalier
