#include "model/llama.h"

#include <cmath>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/ops.h"
#include "model/llama_activations.h"
#include "model/llama_weights.h"

namespace espalier {

struct Llama::Impl {
  Impl(const Context& context, const ModelConfig& model_config, LlamaWeights llama_weights,
       int rows, int logits_rows)
      : config(model_config),
        weights(std::move(llama_weights)),
        max_rows(rows),
        max_logits_rows(logits_rows),
        act(context, weights.shape, rows, logits_rows) {}

  void Attention(const Context& ctx, const ForwardInput& input, const LlamaLayerWeights& layer,
                 const KvLayerView& kv, int rows);
  void FeedForward(const Context& ctx, const LlamaLayerWeights& layer, int rows);

  const ModelConfig config;
  const LlamaWeights weights;
  const int max_rows;
  const int max_logits_rows;
  LlamaActivations act;
};

// normed -> delta, by way of the KV cache.
void Llama::Impl::Attention(const Context& ctx, const ForwardInput& input,
                            const LlamaLayerWeights& layer, const KvLayerView& kv, int rows) {
  const LlamaShape& shape = weights.shape;
  const int64_t qkv_width = shape.q_width() + 2 * shape.kv_width();
  auto* qkv = act.qkv.As<std::byte>();
  const auto column = [&](int64_t index) { return qkv + BytesOf(ctx.activation_dtype(), index); };
  const kernels::Projection projections[] = {
      {.weight = layer.q.weight, .bias = layer.q.bias, .out = qkv, .out_stride = qkv_width},
      {.weight = layer.k.weight,
       .bias = layer.k.bias,
       .out = column(shape.q_width()),
       .out_stride = qkv_width},
      {.weight = layer.v.weight,
       .bias = layer.v.bias,
       .out = column(shape.q_width() + shape.kv_width()),
       .out_stride = qkv_width},
  };
  kernels::Project(ctx, {.x = act.normed.As<void>(), .projections = projections, .rows = rows});
  kernels::RopeStoreKv(ctx, {.qkv = qkv,
                             .q = act.q.As<void>(),
                             .positions = act.positions,
                             .kv_slots = act.kv_slots,
                             .inv_freq = act.inv_freq.As<float>(),
                             .rope_magnitude = 1.0f,
                             .rows = rows,
                             .num_heads = shape.num_heads,
                             .kv = kv,
                             .row_bad = act.row_bad.As<uint8_t>()});
  kernels::TreeAttention(ctx, {.q = act.q.As<void>(),
                               .kv = kv,
                               .plan = input.plan,
                               .device_plan = input.device_plan,
                               .num_heads = shape.num_heads,
                               .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                               .out = act.attended.As<void>()});
  kernels::MatMul(ctx, {.x = act.attended.As<void>(),
                        .weight = layer.attention_out.weight,
                        .bias = nullptr,
                        .rows = rows,
                        .out = act.delta.As<void>()});
}

// normed -> delta.
void Llama::Impl::FeedForward(const Context& ctx, const LlamaLayerWeights& layer, int rows) {
  const int64_t intermediate = weights.shape.intermediate;
  auto* gate_up = act.gate_up.As<std::byte>();
  const kernels::Projection projections[] = {
      {.weight = layer.gate.weight,
       .bias = nullptr,
       .out = gate_up,
       .out_stride = 2 * intermediate},
      {.weight = layer.up.weight,
       .bias = nullptr,
       .out = gate_up + BytesOf(ctx.activation_dtype(), intermediate),
       .out_stride = 2 * intermediate},
  };
  kernels::Project(ctx, {.x = act.normed.As<void>(), .projections = projections, .rows = rows});
  kernels::SwiGlu(ctx, {.gate_up = gate_up,
                        .rows = rows,
                        .intermediate = weights.shape.intermediate,
                        .out = act.gated.As<void>()});
  kernels::MatMul(ctx, {.x = act.gated.As<void>(),
                        .weight = layer.down.weight,
                        .bias = nullptr,
                        .rows = rows,
                        .out = act.delta.As<void>()});
}

absl::StatusOr<std::unique_ptr<Llama>> Llama::Create(const Context& ctx, Checkpoint* checkpoint,
                                                     int max_rows, int max_logits_rows,
                                                     LoadProgressCallback on_progress) {
  if (max_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_rows is ", max_rows, ", must be >= 1"));
  }
  if (max_logits_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_logits_rows is ", max_logits_rows, ", must be >= 1"));
  }
  absl::StatusOr<LlamaWeights> weights = LoadLlamaWeights(*checkpoint, ctx, std::move(on_progress));
  if (!weights.ok()) return weights.status();
  auto impl = std::make_unique<Impl>(ctx, checkpoint->config(), *std::move(weights), max_rows,
                                     max_logits_rows);
  if (!impl->act.complete()) {
    return absl::ResourceExhaustedError(absl::StrCat("there is no memory for the activations of ",
                                                     max_rows, " rows (", impl->act.bytes(),
                                                     " bytes were had)"));
  }
  const std::vector<float> inv_freq = RopeInvFreq(impl->config);
  CopyToDevice(ctx, impl->act.inv_freq.As<void>(), inv_freq.data(),
               inv_freq.size() * sizeof(float));
  return std::unique_ptr<Llama>(new Llama(std::move(impl)));
}

Llama::Llama(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Llama::~Llama() = default;

void Llama::Upload(const Context& ctx, const ForwardInput& input, int rows, int logits_rows) {
  ESPALIER_CHECK(rows <= impl_->max_rows);
  ESPALIER_CHECK(logits_rows <= impl_->max_logits_rows);
  ESPALIER_CHECK(std::ssize(input.token_ids) <= rows);
  ESPALIER_CHECK(std::ssize(input.logits_rows) <= logits_rows);
  ESPALIER_CHECK(input.positions.size() == input.token_ids.size());
  ESPALIER_CHECK(input.kv_slots.size() == input.token_ids.size());
  impl_->act.UploadInputs(ctx, input, rows, logits_rows);
}

Llama::Output Llama::Run(const Context& ctx, const ForwardInput& input, int rows, int logits_rows,
                         std::span<const KvLayerView> kv) {
  const LlamaWeights& weights = impl_->weights;
  const LlamaShape& shape = weights.shape;
  LlamaActivations& act = impl_->act;
  ESPALIER_CHECK(std::ssize(kv) == shape.num_layers);

  FillDevice(ctx, act.row_bad.As<void>(), 0, rows);
  kernels::Embedding(ctx, {.table = weights.embedding,
                           .token_ids = act.token_ids,
                           .rows = rows,
                           .out = act.x.As<float>()});

  const void* delta = nullptr;  // nothing to add before the first layer
  const auto norm = [&](const float* weight) {
    kernels::RmsNorm(ctx, {.x = act.x.As<float>(),
                           .residual = delta,
                           .weight = weight,
                           .eps = impl_->config.norm_eps,
                           .rows = rows,
                           .hidden = shape.hidden,
                           .out = act.normed.As<void>()});
    delta = act.delta.As<void>();
  };
  for (int i = 0; i < shape.num_layers; ++i) {
    const LlamaLayerWeights& layer = weights.layers[i];
    norm(layer.attention_norm);
    impl_->Attention(ctx, input, layer, kv[i], rows);
    norm(layer.ffn_norm);
    impl_->FeedForward(ctx, layer, rows);
  }
  norm(weights.final_norm);

  // A NaN or infinity anywhere in a row ends up in its residual stream.
  kernels::FlagNonFinite(ctx, {.x = act.normed.As<void>(),
                               .rows = rows,
                               .cols = shape.hidden,
                               .row_bad = act.row_bad.As<uint8_t>()});
  kernels::GatherRows(ctx, {.x = act.normed.As<void>(),
                            .indices = act.logits_rows,
                            .rows = logits_rows,
                            .cols = shape.hidden,
                            .out = act.head_input.As<void>()});
  kernels::MatMul(ctx, {.x = act.head_input.As<void>(),
                        .weight = weights.lm_head,
                        .bias = nullptr,
                        .rows = logits_rows,
                        .out = act.logits.As<void>(),
                        .out_f32 = true});
  return {.logits = {act.logits.As<float>(), static_cast<size_t>(logits_rows) * shape.vocab},
          .row_bad = {act.row_bad.As<uint8_t>(), static_cast<size_t>(rows)}};
}

Llama::Output Llama::Forward(const Context& ctx, const ForwardInput& input,
                             std::span<const KvLayerView> kv) {
  const int rows = static_cast<int>(input.token_ids.size());
  const int logits_rows = static_cast<int>(input.logits_rows.size());
  Upload(ctx, input, rows, logits_rows);
  return Run(ctx, input, rows, logits_rows, kv);
}

const ModelConfig& Llama::config() const { return impl_->config; }
int64_t Llama::parameters() const { return impl_->weights.parameters; }
int64_t Llama::weight_bytes() const { return impl_->weights.bytes; }
int64_t Llama::activation_bytes() const { return impl_->act.bytes(); }

}  // namespace espalier
