// Prompt lookup: what followed the last few tokens where they occurred before is what may follow
// them now. Answers quote their prompts, and siblings answer alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace espalier {

struct NgramOptions {
  int min_match = 2;  // tokens that must agree
  int max_match = 4;  // more than this is not better than this
};

// Up to `max_tokens` tokens that may follow `path`; empty when its end occurs nowhere else. Longer
// matches win, then the path itself before `others` (each a text of its own, in order), then later
// places before earlier ones. A continuation that reaches the end of the path goes on with itself,
// so that a loop is drafted whole.
// O(tokens of path and others) and one allocation.
std::vector<int32_t> DraftByNgram(std::span<const int32_t> path,
                                  std::span<const std::span<const int32_t>> others, int max_tokens,
                                  const NgramOptions& options = {});

}  // namespace espalier
