// A Llama's tensors, found in the checkpoint by name, where the context's device can use them. Norm
// weights and biases are small and become fp32.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/matrix.h"
#include "model/checkpoint/checkpoint.h"
#include "model/weight_store.h"

namespace espalier {

// Sizes of the part of the model that one worker computes.
struct LlamaShape {
  int vocab = 0;
  int hidden = 0;
  int intermediate = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  int q_width() const { return num_heads * head_dim; }
  int kv_width() const { return num_kv_heads * head_dim; }
};

// A linear map's weight [out_features, in_features], and its bias, null when it has none.
struct LinearWeights {
  ConstMatrix weight;
  const float* bias = nullptr;  // [out_features]
};

struct LlamaLayerWeights {
  const float* attention_norm = nullptr;  // [hidden]
  LinearWeights q;
  LinearWeights k;
  LinearWeights v;
  LinearWeights attention_out;
  const float* ffn_norm = nullptr;  // [hidden]
  LinearWeights gate;
  LinearWeights up;
  LinearWeights down;
};

struct LlamaWeights {
  LlamaShape shape;
  std::unique_ptr<WeightStore> store;  // of what is not the checkpoint's
  ConstMatrix embedding;               // [vocab, hidden]
  std::vector<LlamaLayerWeights> layers;
  const float* final_norm = nullptr;  // [hidden]
  ConstMatrix lm_head;                // [vocab, hidden]; the embedding when tied

  int64_t parameters = 0;  // a tied embedding counts once
  int64_t bytes = 0;       // as the device holds them
};

// NOT_FOUND or INVALID_ARGUMENT names the tensor, RESOURCE_EXHAUSTED the bytes that the device
// lacks. The checkpoint and the context must outlive the weights.
absl::StatusOr<LlamaWeights> LoadLlamaWeights(Checkpoint& checkpoint, const Context& ctx,
                                              LoadProgressCallback on_progress);

}  // namespace espalier
