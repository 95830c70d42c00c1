// Turns a row of logits into a token. Pure: the same logits, history and random number give the
// same token. Any thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/event.h"
#include "engine/request.h"

namespace espalier {

// What the penalties look at: how often each token occurred. Kept by the branch, updated with each
// token; sparse, so a fork copies only what occurred.
class TokenHistory {
 public:
  void AddPrompt(std::span<const int32_t> tokens);
  void AddGenerated(int32_t token);
  // (the implementer fills in accessors and members)
};

// Seed of a branch: a hash of the request's seed and the branch's path (the parent branch's seed,
// the prompt node's index and the sample's number), so that choices do not depend on batch mates.
uint64_t BranchSeed(uint64_t parent_seed, int node, int sample);
// Uniform in [0, 1) for the index-th token of a branch; counter-based, so that a preempted branch
// draws the same numbers again.
double BranchUniform(uint64_t branch_seed, int64_t token_index);

struct SampleInput {
  std::span<const float> logits;          // [vocab]
  const SamplingParams* params = nullptr;
  const TokenHistory* history = nullptr;  // may be null when no penalty is set
  std::span<const int32_t> banned;        // tokens that may not be chosen (min_tokens: eos and stops)
  double uniform = 0;                     // in [0, 1)
  int top_logprobs = -1;                  // -1: no log-probabilities beyond the chosen token's
};

struct Sample {
  int32_t token = 0;
  float logprob = 0;  // log-softmax of the raw logits
  std::vector<std::pair<int32_t, float>> top;
  bool finite = true;  // false: the row had a NaN or no finite logit, token is meaningless
};

// Keeps its scratch between calls. Not thread-safe.
class Sampler {
 public:
  Sample Run(const SampleInput& input);
  // Log-softmax of the raw logits at `token`, and the `top` most likely.
  Sample Score(std::span<const float> logits, int32_t token, int top_logprobs);

 private:
  // (the implementer fills in the members)
};

}  // namespace espalier
