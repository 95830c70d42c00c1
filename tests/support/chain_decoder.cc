#include "tests/support/chain_decoder.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/check.h"

namespace espalier::testing {

ChainDecoder::ChainDecoder(const Context& ctx, Llama& model, int max_tokens, DType kv_dtype,
                           uint32_t seed)
    : ctx_(ctx), model_(model) {
  const ModelConfig& config = model.config();
  const int num_pages = (max_tokens + kPageSize - 1) / kPageSize + 2;
  pages_.resize(num_pages);
  std::iota(pages_.begin(), pages_.end(), 0);
  std::mt19937 rng(seed);
  std::shuffle(pages_.begin(), pages_.end(), rng);

  const int64_t elements = int64_t{num_pages} * kPageSize * config.num_kv_heads * config.head_dim;
  for (int i = 0; i < 2 * config.num_layers; ++i) {
    memory_.emplace_back(ctx, BytesOf(kv_dtype, elements));
    FillDevice(ctx, memory_.back().As<void>(), 0xff, memory_.back().bytes());
  }
  for (int layer = 0; layer < config.num_layers; ++layer) {
    kv_.push_back({.k = memory_[2 * layer].As<void>(),
                   .v = memory_[2 * layer + 1].As<void>(),
                   .num_pages = num_pages,
                   .num_kv_heads = config.num_kv_heads,
                   .head_dim = config.head_dim,
                   .page_size = kPageSize,
                   .dtype = kv_dtype});
  }
  if (ctx.device() == Device::kCuda) {
    plan_buffers_ = std::make_unique<PlanBuffers>(ctx, config.num_heads, config.head_dim, kv_dtype);
  }
}

std::span<const float> ChainDecoder::Step(std::span<const int32_t> tokens, bool want_logits) {
  return Forward(tokens, want_logits ? 0 : static_cast<int>(tokens.size()));
}

std::span<const float> ChainDecoder::StepLast(std::span<const int32_t> tokens) {
  return Forward(tokens, static_cast<int>(tokens.size()) - 1);
}

std::span<const float> ChainDecoder::Forward(std::span<const int32_t> tokens,
                                             int first_logits_row) {
  const int rows = static_cast<int>(tokens.size());
  shape_.Clear();
  shape_.page_size = kPageSize;
  const int used_pages = (num_tokens_ + rows + kPageSize - 1) / kPageSize;
  const int node = shape_.AddNode(-1, num_tokens_ + rows, 0, std::span(pages_).first(used_pages));
  std::vector<int32_t> positions;
  std::vector<int64_t> slots;
  std::vector<int32_t> logits_rows;
  for (int r = 0; r < rows; ++r) {
    const int position = num_tokens_ + r;
    shape_.AddQuery(node, position);
    positions.push_back(position);
    slots.push_back(slot(position));
    if (r >= first_logits_row) logits_rows.push_back(r);
  }
  const ModelConfig& config = model_.config();
  PlanOptions options{.group_size = config.num_heads / config.num_kv_heads,
                      .num_kv_heads = config.num_kv_heads,
                      .num_workers = ctx_.pool().num_threads()};
  if (plan_buffers_ != nullptr) {
    options = CudaPlanOptions(ctx_, AttentionVariant::kDefault, config.num_heads,
                              config.num_kv_heads, ctx_.activation_dtype());
  }
  const TreePlan& plan = planner_.Plan(shape_, options);
  if (plan_buffers_ != nullptr) ESPALIER_CHECK(plan_buffers_->Upload(plan));
  num_tokens_ += rows;
  const ForwardInput input{
      .token_ids = tokens,
      .positions = positions,
      .kv_slots = slots,
      .logits_rows = logits_rows,
      .plan = &plan,
      .device_plan = plan_buffers_ == nullptr ? nullptr : &plan_buffers_->device_plan()};
  const Llama::Output output = model_.Forward(ctx_, input, kv_);
  logits_.resize(output.logits.size());
  row_bad_.resize(output.row_bad.size());
  CopyToHost(ctx_, logits_.data(), output.logits.data(), logits_.size() * sizeof(float));
  CopyToHost(ctx_, row_bad_.data(), output.row_bad.data(), row_bad_.size());
  Synchronize(ctx_);
  return logits_;
}

}  // namespace espalier::testing
