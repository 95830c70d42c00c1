// Who drafts tokens for branches to verify.
#pragma once

namespace espalier {

// off: nobody, a step computes one token a branch. ngram: what followed the same few tokens earlier
// in the tree.
enum class Speculative { kOff, kNgram };

}  // namespace espalier
