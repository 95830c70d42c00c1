#include "engine/draft/ngram_drafter.h"

#include <algorithm>

namespace espalier {
namespace {

// Tokens of the text's prefix [0, end) that agree with the end of the path, at most `limit`.
int MatchBefore(std::span<const int32_t> text, int end, std::span<const int32_t> path, int limit) {
  limit = std::min({limit, end, static_cast<int>(path.size())});
  int match = 0;
  while (match < limit && text[end - 1 - match] == path[path.size() - 1 - match]) ++match;
  return match;
}

}  // namespace

std::vector<int32_t> DraftByNgram(std::span<const int32_t> path,
                                  std::span<const std::span<const int32_t>> others, int max_tokens,
                                  const NgramOptions& options) {
  std::span<const int32_t> found;
  int found_at = 0;
  int longest = options.min_match - 1;
  const auto look = [&](std::span<const int32_t> text) {
    for (int end = static_cast<int>(text.size()) - 1; end > longest; --end) {
      const int match = MatchBefore(text, end, path, options.max_match);
      if (match <= longest) continue;
      longest = match;
      found = text;
      found_at = end;
      if (longest == options.max_match) return;
    }
  };
  look(path);
  for (std::span<const int32_t> other : others) {
    if (longest == options.max_match) break;
    look(other);
  }
  std::vector<int32_t> draft;
  if (found.empty() || max_tokens <= 0) return draft;
  draft.reserve(max_tokens);
  const bool repeats = found.data() == path.data();
  const int size = static_cast<int>(found.size());
  for (int at = found_at; static_cast<int>(draft.size()) < max_tokens; ++at) {
    if (at < size) {
      draft.push_back(found[at]);
    } else if (repeats) {
      draft.push_back(draft[at - size]);
    } else {
      break;
    }
  }
  return draft;
}

}  // namespace espalier
