#include "engine/sampler/token_history.h"

#include <algorithm>
#include <utility>

namespace espalier {

void TokenHistory::AddPrompt(std::span<const int32_t> tokens) {
  std::vector<int32_t> distinct(tokens.begin(), tokens.end());
  std::ranges::sort(distinct);
  distinct.erase(std::ranges::unique(distinct).begin(), distinct.end());
  distinct.shrink_to_fit();
  prompts_.push_back(std::make_shared<const std::vector<int32_t>>(std::move(distinct)));
}

void TokenHistory::AddGenerated(int32_t token) {
  const auto at = std::ranges::lower_bound(generated_, token, {}, &Count::token);
  if (at != generated_.end() && at->token == token) {
    ++at->times;
  } else {
    generated_.insert(at, {token, 1});
  }
}

}  // namespace espalier
