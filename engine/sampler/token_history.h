// What the penalties look at: which tokens are on a branch's path, and how often each was
// generated. Sparse, and cheap to copy: a fork copies the counts of the generated tokens and
// shares what the prompts contain.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/device_sampler.h"

namespace espalier {

class TokenHistory {
 public:
  using Count = DeviceSampleRequest::TokenCount;

  // May be called for each prompt node on the path, before, between and after generated tokens.
  void AddPrompt(std::span<const int32_t> tokens);
  void AddGenerated(int32_t token);

  // Distinct tokens of each AddPrompt, ascending; a token may be in several.
  std::span<const std::shared_ptr<const std::vector<int32_t>>> prompts() const { return prompts_; }
  // By token, ascending.
  std::span<const Count> generated() const { return generated_; }

 private:
  std::vector<std::shared_ptr<const std::vector<int32_t>>> prompts_;  // shared by forks
  std::vector<Count> generated_;
};

}  // namespace espalier
