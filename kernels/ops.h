// THE list of ops: a params struct and a function each. ops.cc switches on the context's device.
//
// All pointers are to memory of the context's device, row-major and contiguous. An activation
// (`void*`) has elements of the context's activation type: fp32 on the CPU, bf16 or fp16 on CUDA.
// The residual stream, norm weights, biases and logits are fp32 everywhere. `rows` is the number of
// flattened tokens of the step. Preconditions are the caller's duty (ESPALIER_CHECK); ops never
// allocate once their scratch has grown. On CUDA an op is enqueued on the context's stream; a
// failure is kept by the context (Context::TakeError), named after the op.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention/kv_view.h"
#include "kernels/core/matrix.h"
#include "kernels/runtime/context.h"

namespace espalier {
struct DevicePlan;
struct TreePlan;
}  // namespace espalier

namespace espalier::kernels {

// out[r] = dequantised row token_ids[r] of table.
struct EmbeddingParams {
  ConstMatrix table;         // [vocab, hidden], any dtype that the device holds
  const int32_t* token_ids;  // [rows], each in [0, vocab)
  int rows;
  float* out;  // [rows, hidden], the residual stream
};
void Embedding(const Context& ctx, const EmbeddingParams& p);

// out = x / sqrt(mean(x^2) + eps) * weight; with residual: x += residual first, in place.
struct RmsNormParams {
  float* x;              // [rows, hidden], the residual stream; written when residual is given
  const void* residual;  // [rows, hidden] or null
  const float* weight;   // [hidden]
  float eps;
  int rows;
  int hidden;
  void* out;  // [rows, hidden]
};
void RmsNorm(const Context& ctx, const RmsNormParams& p);

// out = x * weight^T (+ bias). Weight rows are output features.
struct MatMulParams {
  const void* x;       // [rows, weight.cols]
  ConstMatrix weight;  // [out_features, in_features], any dtype that the device holds
  const float* bias;   // [out_features] or null
  int rows;
  void* out;             // [rows, weight.rows]
  bool out_f32 = false;  // out is fp32 instead of an activation
};
void MatMul(const Context& ctx, const MatMulParams& p);

// Several products of the same x, in one go: on the CPU x is quantised once and the threads meet
// once; on CUDA neighbours in memory, weights and outputs both, become one product.
struct Projection {
  ConstMatrix weight;  // [out_features, in_features], any dtype that the device holds
  const float* bias;   // [out_features] or null
  void* out;           // [rows, out_features], rows out_stride elements apart
  int64_t out_stride;
  bool out_f32 = false;  // out is fp32 instead of an activation
};
struct ProjectParams {
  const void* x;                            // [rows, in_features]
  std::span<const Projection> projections;  // all with the same in_features
  int rows;
};
void Project(const Context& ctx, const ProjectParams& p);

// Rotates q, and k on its way into the cache; stores k and v at kv_slots. Pairs are
// (i, i + head_dim / 2) of each head, as Hugging Face checkpoints expect.
// A row with a non-finite k or v element has that element stored as 0 and row_bad[r] set to 1; an
// element beyond the KV type's largest value, times its head's scale if it has one, is stored as
// that value.
struct RopeStoreKvParams {
  const void* qkv;           // [rows, (num_heads + 2 * num_kv_heads) * head_dim], rows [q | k | v]
  void* q;                   // [rows, num_heads * head_dim], out
  const int32_t* positions;  // [rows]
  const int64_t* kv_slots;   // [rows], -1: rotate q only, store nothing
  const float* inv_freq;     // [head_dim / 2], after rope scaling
  float rope_magnitude;      // factor on cos and sin; 1 unless the scaling says otherwise
  int rows;
  int num_heads;
  KvLayerView kv;
  uint8_t* row_bad;  // [rows]
};
void RopeStoreKv(const Context& ctx, const RopeStoreKvParams& p);

// Attention of the plan's queries over their paths, softmax scale 1 / sqrt(head_dim) unless given.
struct TreeAttentionParams {
  const void* q;  // [num_queries, num_heads, head_dim], in the shape's query order
  KvLayerView kv;
  const TreePlan* plan;                     // CPU
  const DevicePlan* device_plan = nullptr;  // CUDA: what PlanBuffers uploaded
  int num_heads;
  float scale;
  void* out;  // [num_queries, num_heads, head_dim]
};
void TreeAttention(const Context& ctx, const TreeAttentionParams& p);

// out = silu(gate) * up, where each row of gate_up is [gate | up].
struct SwiGluParams {
  const void* gate_up;  // [rows, 2 * intermediate]
  int rows;
  int intermediate;
  void* out;  // [rows, intermediate]
};
void SwiGlu(const Context& ctx, const SwiGluParams& p);

// out[i] = x[indices[i]].
struct GatherRowsParams {
  const void* x;           // [any, cols]
  const int32_t* indices;  // [rows]
  int rows;
  int cols;
  void* out;  // [rows, cols]
};
void GatherRows(const Context& ctx, const GatherRowsParams& p);

// Copies K and V of slot from[i] to slot to[i] of every layer, in order of i: an entry may overwrite
// what an earlier one read, but reads nothing that an earlier one wrote.
struct CopySlotsParams {
  KvLayerView kv;  // the first layer's
  int num_layers = 1;
  ptrdiff_t layer_bytes = 0;  // from a layer's K to the next one's, and V's
  const int64_t* from;  // [count]
  const int64_t* to;    // [count]
  int count;
};
void CopySlots(const Context& ctx, const CopySlotsParams& p);

// row_bad[r] = 1 where row r of x has a NaN or an infinity; the other entries stay.
struct FlagNonFiniteParams {
  const void* x;  // [rows, cols]
  int rows;
  int cols;
  uint8_t* row_bad;  // [rows]
};
void FlagNonFinite(const Context& ctx, const FlagNonFiniteParams& p);

}  // namespace espalier::kernels
