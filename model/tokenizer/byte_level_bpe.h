// Byte-pair encoding over bytes, as GPT-2, Llama 3, Qwen2 and SmolLM2 use it. Equal, id by id, to
// Hugging Face tokenizers with special tokens left out of plain text. Beyond it, any bytes are
// accepted: a stretch that is not UTF-8 is one piece, merged like any other.
#pragma once

#include <array>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/merge_symbols.h"
#include "model/tokenizer/piece_trie.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/text.h"
#include "model/tokenizer/vocabulary_tokenizer.h"

namespace espalier {

struct ByteLevelBpeSpec {
  // Normal pieces are written in the byte alphabet. A byte whose symbol is missing is dropped from
  // texts, as the reference does; the models' vocabularies lack only bytes that text never has.
  Vocabulary vocabulary;
  // The two sides of each merge, best first; they and their joined spelling are pieces.
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  bool ignore_merges = false;     // a piece of text that is in the vocabulary is one token
  bool nfc = false;               // normalise text first
  bool add_prefix_space = false;  // at the root, unless the text starts with a space
  PreTokenizer pre_tokenizer;
  // Added pieces that are looked for after normalisation instead of before.
  absl::flat_hash_set<int32_t> normalized_added_ids;
  SequenceRules rules;
};

class ByteLevelBpe final : public VocabularyTokenizer {
 public:
  // INVALID_ARGUMENT: a merge names a piece that the vocabulary does not have.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(ByteLevelBpeSpec spec);

 private:
  struct Scratch {
    std::vector<MergeSymbol> symbols;
    std::vector<MergeCandidate> heap;
  };
  explicit ByteLevelBpe(ByteLevelBpeSpec spec);
  absl::Status AddMerges(const std::vector<std::pair<std::string_view, std::string_view>>& merges);

  void EncodeText(std::string_view text, bool at_root, std::vector<int32_t>* ids) const override;
  // Calls `between(text)` for the stretches of `text` outside the added pieces found in it.
  template <typename Between>
  void SplitAdded(const PieceTrie& added, std::string_view text, std::vector<int32_t>* ids,
                  Between between) const;
  void EncodeValid(std::string_view text, bool prefix_space, Scratch* scratch,
                   std::vector<int32_t>* ids) const;
  void EncodePiece(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  const bool ignore_merges_;
  const bool nfc_;
  const bool add_prefix_space_;
  const PreTokenizer pre_tokenizer_;
  PieceTrie added_;                              // in the text as it comes
  PieceTrie normalized_added_;                   // in the normalised text
  std::array<int32_t, 256> byte_ids_;            // -1: no such symbol
  absl::flat_hash_map<uint64_t, Merge> merges_;  // by PairKey(left id, right id)
  absl::flat_hash_map<std::string_view, int32_t, TextHash>
      whole_pieces_;  // by bytes, if ignore_merges_
};

}  // namespace espalier
