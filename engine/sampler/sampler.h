// Turns a row of logits into a token. Pure: the same logits, history and random number give the
// same token. Any thread.
//
// Order, as in vLLM's V1 sampler (docs, "Logits processing") with Hugging Face transformers'
// definitions of the single steps; README.md beside this file says each in a formula:
//   1. log-probabilities, of the raw logits
//   2. logit bias, then banned tokens and those that are not allowed
//   3. repetition penalty (whole path), then frequency and presence penalty (generated tokens)
//   4. temperature below 1e-5: the most likely token; of equal ones the lowest id
//   5. else: temperature, min-p, top-k, top-p, each on what the one before left
//   6. the lowest id whose cumulative weight, in order of ids, exceeds uniform * total weight
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "engine/sampler/candidate_set.h"
#include "engine/sampler/token_history.h"

namespace espalier {

// Seed of a branch: a hash of the request's seed and the branch's path (the parent branch's seed,
// the prompt node's index and the sample's number), so that choices do not depend on batch mates.
uint64_t BranchSeed(uint64_t parent_seed, int node, int sample);
// Uniform in [0, 1) for the index-th token of a branch: the upper 53 bits of output `token_index`
// of the SplitMix64 stream that starts at `branch_seed`. Counter-based, so that a preempted branch
// draws the same numbers again, and integer arithmetic only, so that a device kernel can too.
double BranchUniform(uint64_t branch_seed, int64_t token_index);

// Whether the sampler looks at the history.
bool HasPenalty(const SamplingParams& params);

struct SampleInput {
  std::span<const float> logits;  // [vocab]; -inf: masked
  const SamplingParams* params = nullptr;
  const TokenHistory* history = nullptr;  // may be null when no penalty is set
  std::span<const int32_t> banned =
      {};  // tokens that may not be chosen (min_tokens: eos and stops)
  // Bit token % 64 of word token / 64 is set where the token may be chosen. Empty: all may.
  std::span<const uint64_t> allowed = {};
  double uniform = 0;     // in [0, 1)
  int top_logprobs = -1;  // -1: no log-probabilities beyond the chosen token's
};

struct Sample {
  int32_t token = 0;
  float logprob = 0;                           // log-softmax of the raw logits
  std::vector<std::pair<int32_t, float>> top;  // most likely first; of equal ones the lowest id
  // False: the row had a NaN or +inf, or nothing that may be chosen. The rest is meaningless then.
  bool finite = true;
};

// Keeps its scratch between calls. Not thread-safe.
class Sampler {
 public:
  // Every token id of the input is in [0, vocab): the validator saw to it.
  Sample Run(const SampleInput& input);
  // Log-softmax of the raw logits at `token`, and the `top` most likely.
  Sample Score(std::span<const float> logits, int32_t token, int top_logprobs);

 private:
  void Process(const SampleInput& input);
  void ApplyPenalties(const SamplingParams& params, const TokenHistory& history);
  int32_t Draw(std::span<const float> logits, float max, const SamplingParams& params,
               double uniform);
  int32_t DrawFromAll(double target) const;
  std::vector<std::pair<int32_t, float>> TopLogprobs(std::span<const float> logits, double log_sum,
                                                     int count);

  std::vector<float> processed_;    // [vocab] logits after steps 2 and 3
  std::vector<uint8_t> penalised_;  // [vocab] all 0 between calls
  std::vector<float> weights_;      // [vocab] exp((logit - max) / temperature)
  std::vector<double> block_sums_;  // of weights_
  std::vector<float> maxima_;       // scratch of KthLargestLowerBound
  CandidateSet candidates_;
};

}  // namespace espalier
