// A branch's text on its way out: releases bytes on UTF-8 boundaries, holds back what may become a
// stop string, and says which tokens belong to the branch once one matched.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/tokenizer/tokenizer.h"

namespace espalier {

class TextStream {
 public:
  // `stop` are the stop strings; borrowed pointers outlive the stream.
  TextStream(const Tokenizer* tokenizer, const std::vector<std::string>* stop,
             bool include_stop_str_in_output);

  struct Output {
    std::string text;        // to send now; complete UTF-8 (an invalid byte becomes U+FFFD)
    int tokens_released = 0; // tokens whose text is wholly decided; ids up to here may be sent
    int stop_index = -1;     // which stop string matched, -1: none
    int kept_tokens = 0;     // when one matched: tokens of the branch that remain in its context
  };
  // Feeds the branch's next token. `may_stop` is false below min_tokens: a match is then ignored.
  Output Push(int32_t token, bool may_stop);
  // The branch ended for another reason: what is held back goes out.
  Output Finish();

 private:
  // (the implementer fills in the members)
};

}  // namespace espalier
