// Sampling on the CUDA device: the same tokens as engine/sampler draws from the same logits.
// No CUDA headers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/runtime/context.h"

namespace espalier {

// What one row of logits is asked for. The spans are read by Upload only. Meanings, order and
// defaults are those of engine/sampler/sampler.h.
struct DeviceSampleRequest {
  struct TokenCount {
    int32_t token;
    int32_t times;
  };
  int32_t logits_row = 0;
  int32_t score_token = -1;  // >= 0: nothing is drawn, this token's log-probability is wanted
  float temperature = 1;
  float min_p = 0;
  int32_t top_k = 0;
  float top_p = 1;
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;
  double uniform = 0;
  int top_logprobs = -1;
  std::span<const std::pair<int32_t, float>> logit_bias;
  std::span<const int32_t> banned;
  std::span<const uint64_t> allowed;                    // of engine/sampler/sampler.h; empty: all
  std::vector<std::span<const int32_t>> prompt_tokens;  // distinct tokens of each prompt, ascending
  std::span<const TokenCount> generated;                // by token, ascending
};

struct DeviceSample {
  int32_t token = 0;
  float logprob = 0;
  bool finite = true;
  std::span<const std::pair<int32_t, float>> top;  // until the next Upload
};

class DeviceSampler {
 public:
  // Of DeviceSampleRequest::top_logprobs.
  static constexpr int kMaxTopLogprobs = 32;

  // Rows at most `max_requests` a step, of at most 2^19 tokens. The context must outlive it.
  // `portable` chooses the kernel of devices before sm_90 on any device, for tests.
  DeviceSampler(const Context& ctx, int vocab, int max_requests, bool portable = false);
  ~DeviceSampler();
  bool ok() const;  // false: the device lacks the memory

  // The three parts of a step. Upload and Download are enqueued copies between own pinned memory
  // and the device; Run only launches kernels, reads how many requests there are from the device,
  // and may be captured in a graph for any number of requests up to `max_requests` given to it.
  // Before Upload the caller has waited for the last step. Memory grows when a step's lists are
  // longer than all before; false when the device lacks it.
  [[nodiscard]] bool Upload(std::span<const DeviceSampleRequest> requests);
  void Run(const float* logits /* [rows, vocab] device */, int max_requests);
  void Download();
  // After the context was synchronised: one a request.
  std::span<const DeviceSample> Results() const;
  // As PlanBuffers::generation.
  int generation() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
