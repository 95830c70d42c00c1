#include "model/tokenizer/tokenizer.h"

namespace espalier {

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool special) const {
  std::string text;
  for (const int32_t id : ids) text += TokenBytes(id, special);
  return text;
}

}  // namespace espalier
