// A branch's text on its way out: releases bytes on UTF-8 boundaries, holds back what may become a
// stop string, and says which tokens belong to the branch once one matched.
//
// The answer is that of decoding everything at the end:
// - The branch's bytes are its tokens' bytes, one after the other. A stop string matches bytes. The
//   match that ends first counts; of several that end with the same byte, the longest.
// - Without include_stop_str_in_output the branch ends before the first token that overlaps the
//   match; its text is the text of the tokens that remain.
// - With it, the branch ends with the token that completes the match; its text ends with the stop
//   string, though the token's may go on.
// - Text is the bytes as UTF-8, decoded as a whole, with ill-formed parts as U+FFFD (utf8.h).
//
// Held back are, at most: an incomplete character; the longest end of the text that may become a
// stop string; and, where stop strings are cut, the rest of the token that this end begins in.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "engine/tree/stop_matcher.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

class TextStream {
 public:
  // `stop` are the stop strings; borrowed pointers outlive the stream.
  TextStream(const Tokenizer* tokenizer, const std::vector<std::string>* stop,
             bool include_stop_str_in_output);

  struct Output {
    std::string text;         // to send now; complete UTF-8 (an invalid byte becomes U+FFFD)
    int tokens_released = 0;  // since the start: tokens whose text has gone out; ids may follow
    int stop_index = -1;      // which stop string matched, -1: none
    int kept_tokens = 0;      // tokens of the branch that remain in its context: all, if none did
  };
  // Feeds the branch's next token. `may_stop` is false below min_tokens: a match that the token
  // completes is then ignored. No call may follow one that reported a match.
  Output Push(int32_t token, bool may_stop);
  // The branch ended for another reason: what is held back goes out. The last call.
  Output Finish();
  // A stream that goes on where this one is, with another branch's tokens: it begins with the
  // incomplete character that this one holds, if any. Of a stream without stop strings.
  TextStream Fork() const;

 private:
  Output Stop(int stop_index, int64_t match_end);
  // Text up to `hold`, as far as characters are decided.
  std::string Release(int64_t hold);
  // All text up to `end`, the last.
  std::string ReleaseLast(int64_t end);
  void ForgetTokensBefore(int64_t offset);
  // Where the unreleased token begins that holds the byte at `offset`.
  int64_t TokenStart(int64_t offset) const;

  const Tokenizer* tokenizer_;
  const std::vector<std::string>* stop_;
  bool include_stop_;
  StopMatcher matcher_;

  // Offsets count the branch's bytes.
  std::string held_;                 // bytes from released_ to the end
  int64_t released_ = 0;             // text has gone out up to here
  int tokens_released_ = 0;          // tokens that end at or before released_
  int64_t tokens_released_end_ = 0;  // where the last of them ends
  std::deque<int64_t> token_ends_;   // of the tokens after them
};

}  // namespace espalier
