// A Llama's tensors, found in the checkpoint by name. Matrices are borrowed as they are stored;
// norm weights and biases are small and become fp32.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/matrix.h"
#include "model/checkpoint/checkpoint.h"

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

// A linear map's weight [out_features, in_features], and its bias, empty when it has none.
struct LinearWeights {
  ConstMatrix weight;
  std::vector<float> bias;  // [out_features]

  const float* bias_or_null() const { return bias.empty() ? nullptr : bias.data(); }
};

struct LlamaLayerWeights {
  std::vector<float> attention_norm;  // [hidden]
  LinearWeights q;
  LinearWeights k;
  LinearWeights v;
  LinearWeights attention_out;
  std::vector<float> ffn_norm;  // [hidden]
  LinearWeights gate;
  LinearWeights up;
  LinearWeights down;
};

struct LlamaWeights {
  LlamaShape shape;
  ConstMatrix embedding;  // [vocab, hidden]
  std::vector<LlamaLayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  ConstMatrix lm_head;            // [vocab, hidden]; the embedding when tied

  int64_t parameters = 0;  // a tied embedding counts once
  int64_t bytes = 0;       // as stored
};

// NOT_FOUND or INVALID_ARGUMENT names the tensor. The checkpoint must outlive the weights.
absl::StatusOr<LlamaWeights> LoadLlamaWeights(Checkpoint& checkpoint);

}  // namespace espalier
