#include "model/tokenizer/pre_tokenizer.h"

namespace espalier {

std::vector<std::string_view> PreTokenizer::Split(std::string_view text) const {
  std::vector<std::string_view> pieces;
  if (!text.empty()) pieces.push_back(text);
  for (const Rule& rule : splits_) {
    std::vector<std::string_view> finer;
    finer.reserve(pieces.size());
    for (const std::string_view piece : pieces) {
      size_t done = 0;
      Regex::Span match;
      while (done < piece.size() && rule.regex.FindNext(piece, done, &match)) {
        if (rule.keep_gaps && match.begin > done) {
          finer.push_back(piece.substr(done, match.begin - done));
        }
        if (rule.keep_matches) finer.push_back(piece.substr(match.begin, match.end - match.begin));
        done = match.end;
      }
      if (rule.keep_gaps && done < piece.size()) finer.push_back(piece.substr(done));
    }
    pieces.swap(finer);
  }
  return pieces;
}

}  // namespace espalier
