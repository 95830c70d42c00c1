// Who drafts tokens for branches to verify, and how much.
#pragma once

#include <vector>

namespace espalier {

// off: nobody, a step computes one token a branch. ngram: what followed the same few tokens earlier
// in the tree. draft: a small model.
enum class Speculative { kOff, kNgram, kDraft };

// The tree of tokens that a draft model guesses below a branch's last token.
struct DraftShape {
  // Children of every token of a level, level by level. Empty: the tree grows where the draft model
  // puts its probability, within the three limits below.
  std::vector<int> children = {};
  int depth = 6;        // tokens on a path
  int width = 4;        // tokens of a level that the draft model goes on from
  int max_tokens = 16;  // verified a branch and step
  // What would bring less than its time does otherwise is not drafted. False: the tree is as large
  // as its limits let it be, whatever it costs.
  bool adaptive = true;
};

}  // namespace espalier
