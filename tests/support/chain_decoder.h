// Runs a model over one sequence with KV pages in a shuffled order, for tests of the forward.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "kernels/attention/kv_view.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/cuda/plan_buffers.h"
#include "kernels/runtime/context.h"
#include "kernels/runtime/device_memory.h"
#include "model/llama.h"

namespace espalier::testing {

// One sequence as one chain node. Slots that no token has are NaN.
class ChainDecoder {
 public:
  ChainDecoder(const Context& ctx, Llama& model, int max_tokens, DType kv_dtype, uint32_t seed);
  ChainDecoder(const ChainDecoder&) = delete;

  // Feeds the next tokens in one step. The logits of each of them, [tokens, vocab], valid until the
  // next step; empty when `want_logits` is false.
  std::span<const float> Step(std::span<const int32_t> tokens, bool want_logits = true);
  // As Step, with the logits of the last token only.
  std::span<const float> StepLast(std::span<const int32_t> tokens);

  std::span<const uint8_t> row_bad() const { return row_bad_; }
  int num_tokens() const { return num_tokens_; }

  const KvLayerView& layer(int index) const { return kv_[index]; }
  int64_t slot(int position) const {
    return int64_t{pages_[position / kPageSize]} * kPageSize + position % kPageSize;
  }

 private:
  static constexpr int kPageSize = 16;

  std::span<const float> Forward(std::span<const int32_t> tokens, int first_logits_row);

  const Context& ctx_;
  Llama& model_;
  std::vector<int32_t> pages_;
  std::vector<DeviceBuffer> memory_;  // K and V of each layer
  std::vector<KvLayerView> kv_;
  TreeShape shape_;
  TreePlanner planner_;
  std::unique_ptr<PlanBuffers> plan_buffers_;  // CUDA
  std::vector<float> logits_;
  std::vector<uint8_t> row_bad_;
  int num_tokens_ = 0;
};

}  // namespace espalier::testing
