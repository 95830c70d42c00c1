#include "model/tokenizer/vocabulary_tokenizer.h"

namespace espalier {

std::vector<int32_t> VocabularyTokenizer::Encode(std::string_view text, bool at_root) const {
  std::vector<int32_t> ids;
  if (at_root) ids = rules_.prefix;
  EncodeText(text, at_root, &ids);
  return ids;
}

std::string VocabularyTokenizer::TokenBytes(int32_t id, bool special) const {
  if (!vocabulary_.Contains(id)) return {};
  if (vocabulary_.IsSpecial(id)) return special ? vocabulary_.piece(id) : std::string();
  return vocabulary_.bytes(id);
}

}  // namespace espalier
