// What the two families of tokenizers share: everything but how plain text becomes ids.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/vocabulary.h"

namespace espalier {

// How sequences of a model begin and end.
struct SequenceRules {
  std::optional<int32_t> bos;
  std::vector<int32_t> eos;     // every end-of-generation id, ascending
  std::vector<int32_t> prefix;  // ids that a sequence's plain text starts with, usually BOS or none
  ChatTemplate chat;
};

class VocabularyTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> Encode(std::string_view text, bool at_root) const final;
  std::string TokenBytes(int32_t id, bool special) const final;
  int vocab_size() const final { return vocabulary_.size(); }
  bool IsSpecial(int32_t id) const final {
    return vocabulary_.Contains(id) && vocabulary_.IsSpecial(id);
  }
  std::optional<int32_t> FindPiece(std::string_view piece) const final {
    return vocabulary_.Find(piece);
  }
  std::optional<int32_t> bos() const final { return rules_.bos; }
  std::vector<int32_t> eos() const final { return rules_.eos; }
  ChatFormat chat_format() const final { return rules_.chat.format; }
  ChatTemplate chat_template() const final { return rules_.chat; }

 protected:
  VocabularyTokenizer(Vocabulary vocabulary, SequenceRules rules)
      : vocabulary_(std::move(vocabulary)), rules_(std::move(rules)) {}

  // Appends the ids of plain text. `at_root`: the text starts a sequence.
  virtual void EncodeText(std::string_view text, bool at_root, std::vector<int32_t>* ids) const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
  SequenceRules rules_;
};

}  // namespace espalier
