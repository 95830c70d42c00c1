#include "model/llama.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/ops.h"
#include "model/llama_weights.h"

namespace espalier {
namespace {

// Not initialised: memory that no step has reached is not resident.
using Buffer = std::unique_ptr<float[]>;

Buffer Allocate(int64_t rows, int64_t cols) { return Buffer(new float[rows * cols]); }

// Every activation of a step, allocated once.
struct Activations {
  Activations(const LlamaShape& shape, int max_rows, int max_logits_rows)
      : x(Allocate(max_rows, shape.hidden)),
        delta(Allocate(max_rows, shape.hidden)),
        normed(Allocate(max_rows, shape.hidden)),
        q(Allocate(max_rows, shape.q_width())),
        k(Allocate(max_rows, shape.kv_width())),
        v(Allocate(max_rows, shape.kv_width())),
        attended(Allocate(max_rows, shape.q_width())),
        gate_up(Allocate(max_rows, 2 * int64_t{shape.intermediate})),
        gated(Allocate(max_rows, shape.intermediate)),
        head_input(Allocate(max_logits_rows, shape.hidden)),
        logits(Allocate(max_logits_rows, shape.vocab)),
        row_bad(max_rows) {}

  Buffer x;      // [rows, hidden], the residual stream
  Buffer delta;  // [rows, hidden], what the last sub-layer adds to it
  Buffer normed;
  Buffer q, k, v;
  Buffer attended;
  Buffer gate_up;
  Buffer gated;
  Buffer head_input;  // [logits_rows, hidden]
  Buffer logits;
  std::vector<uint8_t> row_bad;
};

}  // namespace

struct Llama::Impl {
  Impl(const ModelConfig& model_config, LlamaWeights llama_weights, int rows, int logits_rows)
      : config(model_config),
        weights(std::move(llama_weights)),
        inv_freq(RopeInvFreq(config)),
        max_rows(rows),
        max_logits_rows(logits_rows),
        act(weights.shape, rows, logits_rows) {}

  void Attention(const Context& ctx, const ForwardInput& input, const LlamaLayerWeights& layer,
                 const KvLayerView& kv);
  void FeedForward(const Context& ctx, const LlamaLayerWeights& layer, int rows);

  const ModelConfig config;
  const LlamaWeights weights;
  const std::vector<float> inv_freq;  // [head_dim / 2]
  const int max_rows;
  const int max_logits_rows;
  Activations act;
};

// normed -> delta, by way of the KV cache.
void Llama::Impl::Attention(const Context& ctx, const ForwardInput& input,
                            const LlamaLayerWeights& layer, const KvLayerView& kv) {
  const LlamaShape& shape = weights.shape;
  const int rows = static_cast<int>(input.token_ids.size());
  const kernels::Projection qkv[] = {
      {.weight = layer.q.weight,
       .bias = layer.q.bias_or_null(),
       .out = act.q.get(),
       .out_stride = shape.q_width()},
      {.weight = layer.k.weight,
       .bias = layer.k.bias_or_null(),
       .out = act.k.get(),
       .out_stride = shape.kv_width()},
      {.weight = layer.v.weight,
       .bias = layer.v.bias_or_null(),
       .out = act.v.get(),
       .out_stride = shape.kv_width()},
  };
  kernels::Project(ctx, {.x = act.normed.get(), .projections = qkv, .rows = rows});
  kernels::RopeStoreKv(ctx, {.q = act.q.get(),
                             .k = act.k.get(),
                             .v = act.v.get(),
                             .positions = input.positions.data(),
                             .kv_slots = input.kv_slots.data(),
                             .inv_freq = inv_freq.data(),
                             .rope_magnitude = 1.0f,
                             .rows = rows,
                             .num_heads = shape.num_heads,
                             .kv = kv,
                             .row_bad = act.row_bad.data()});
  kernels::TreeAttention(ctx, {.q = act.q.get(),
                               .kv = kv,
                               .plan = input.plan,
                               .num_heads = shape.num_heads,
                               .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                               .out = act.attended.get()});
  kernels::MatMul(ctx, {.x = act.attended.get(),
                        .weight = layer.attention_out.weight,
                        .bias = nullptr,
                        .rows = rows,
                        .out = act.delta.get()});
}

// normed -> delta.
void Llama::Impl::FeedForward(const Context& ctx, const LlamaLayerWeights& layer, int rows) {
  const int intermediate = weights.shape.intermediate;
  const kernels::Projection gate_up[] = {
      {.weight = layer.gate.weight,
       .bias = nullptr,
       .out = act.gate_up.get(),
       .out_stride = 2 * int64_t{intermediate}},
      {.weight = layer.up.weight,
       .bias = nullptr,
       .out = act.gate_up.get() + intermediate,
       .out_stride = 2 * int64_t{intermediate}},
  };
  kernels::Project(ctx, {.x = act.normed.get(), .projections = gate_up, .rows = rows});
  kernels::SwiGlu(ctx, {.gate_up = act.gate_up.get(),
                        .rows = rows,
                        .intermediate = intermediate,
                        .out = act.gated.get()});
  kernels::MatMul(ctx, {.x = act.gated.get(),
                        .weight = layer.down.weight,
                        .bias = nullptr,
                        .rows = rows,
                        .out = act.delta.get()});
}

absl::StatusOr<std::unique_ptr<Llama>> Llama::Create(Checkpoint* checkpoint, int max_rows,
                                                     int max_logits_rows) {
  if (max_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_rows is ", max_rows, ", must be >= 1"));
  }
  if (max_logits_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_logits_rows is ", max_logits_rows, ", must be >= 1"));
  }
  absl::StatusOr<LlamaWeights> weights = LoadLlamaWeights(*checkpoint);
  if (!weights.ok()) return weights.status();
  return std::unique_ptr<Llama>(new Llama(std::make_unique<Impl>(
      checkpoint->config(), *std::move(weights), max_rows, max_logits_rows)));
}

Llama::Llama(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Llama::~Llama() = default;

Llama::Output Llama::Forward(const Context& ctx, const ForwardInput& input,
                             std::span<const KvLayerView> kv) {
  const LlamaWeights& weights = impl_->weights;
  const LlamaShape& shape = weights.shape;
  Activations& act = impl_->act;
  const int rows = static_cast<int>(input.token_ids.size());
  const int logits_rows = static_cast<int>(input.logits_rows.size());
  ESPALIER_CHECK(rows <= impl_->max_rows);
  ESPALIER_CHECK(logits_rows <= impl_->max_logits_rows);
  ESPALIER_CHECK(input.positions.size() == input.token_ids.size());
  ESPALIER_CHECK(input.kv_slots.size() == input.token_ids.size());
  ESPALIER_CHECK(std::ssize(kv) == shape.num_layers);

  std::fill_n(act.row_bad.begin(), rows, uint8_t{0});
  kernels::Embedding(ctx, {.table = weights.embedding,
                           .token_ids = input.token_ids.data(),
                           .rows = rows,
                           .out = act.x.get()});

  const float* delta = nullptr;  // nothing to add before the first layer
  const auto norm = [&](const std::vector<float>& weight) {
    kernels::RmsNorm(ctx, {.x = act.x.get(),
                           .residual = delta,
                           .weight = weight.data(),
                           .eps = impl_->config.norm_eps,
                           .rows = rows,
                           .hidden = shape.hidden,
                           .out = act.normed.get()});
    delta = act.delta.get();
  };
  for (int i = 0; i < shape.num_layers; ++i) {
    const LlamaLayerWeights& layer = weights.layers[i];
    norm(layer.attention_norm);
    impl_->Attention(ctx, input, layer, kv[i]);
    norm(layer.ffn_norm);
    impl_->FeedForward(ctx, layer, rows);
  }
  norm(weights.final_norm);

  // A NaN or infinity anywhere in a row ends up in its residual stream.
  kernels::FlagNonFinite(
      ctx,
      {.x = act.normed.get(), .rows = rows, .cols = shape.hidden, .row_bad = act.row_bad.data()});
  kernels::GatherRows(ctx, {.x = act.normed.get(),
                            .indices = input.logits_rows.data(),
                            .rows = logits_rows,
                            .cols = shape.hidden,
                            .out = act.head_input.get()});
  kernels::MatMul(ctx, {.x = act.head_input.get(),
                        .weight = weights.lm_head,
                        .bias = nullptr,
                        .rows = logits_rows,
                        .out = act.logits.get()});
  return {.logits = {act.logits.get(), static_cast<size_t>(logits_rows) * shape.vocab},
          .row_bad = {act.row_bad.data(), static_cast<size_t>(rows)}};
}

const ModelConfig& Llama::config() const { return impl_->config; }
int64_t Llama::parameters() const { return impl_->weights.parameters; }
int64_t Llama::weight_bytes() const { return impl_->weights.bytes; }

}  // namespace espalier
