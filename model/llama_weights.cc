#include "model/llama_weights.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/dequantize.h"

namespace espalier {
namespace {

// Fetches tensors and counts them. After the first failure it fetches nothing and keeps the status,
// so that the list of a layer's tensors reads as a list.
class WeightReader {
 public:
  explicit WeightReader(Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  ConstMatrix Matrix(const std::string& name, int64_t rows, int64_t cols) {
    if (!status_.ok()) return {};
    absl::StatusOr<ConstMatrix> matrix = checkpoint_.Tensor(name, rows, cols);
    if (!matrix.ok()) {
      status_ = matrix.status();
      return {};
    }
    parameters_ += rows * cols;
    bytes_ += BytesOf(matrix->dtype, rows * cols);
    return *matrix;
  }

  std::vector<float> Vector(const std::string& name, int64_t size) {
    const ConstMatrix matrix = Matrix(name, 1, size);
    if (matrix.empty()) return {};
    std::vector<float> values(size);
    kernels::cpu::Dequantize(matrix, values.data());
    return values;
  }

  LinearWeights Linear(const std::string& name, int64_t out_features, int64_t in_features,
                       bool bias) {
    LinearWeights linear;
    linear.weight = Matrix(absl::StrCat(name, ".weight"), out_features, in_features);
    if (bias) linear.bias = Vector(absl::StrCat(name, ".bias"), out_features);
    return linear;
  }

  const absl::Status& status() const { return status_; }
  int64_t parameters() const { return parameters_; }
  int64_t bytes() const { return bytes_; }

 private:
  Checkpoint& checkpoint_;
  absl::Status status_;
  int64_t parameters_ = 0;
  int64_t bytes_ = 0;
};

LlamaLayerWeights ReadLayer(WeightReader& reader, const LlamaShape& shape, bool qkv_bias,
                            int layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.";
  const std::string ffn = prefix + "mlp.";
  LlamaLayerWeights weights;
  weights.attention_norm = reader.Vector(prefix + "input_layernorm.weight", shape.hidden);
  weights.q = reader.Linear(attention + "q_proj", shape.q_width(), shape.hidden, qkv_bias);
  weights.k = reader.Linear(attention + "k_proj", shape.kv_width(), shape.hidden, qkv_bias);
  weights.v = reader.Linear(attention + "v_proj", shape.kv_width(), shape.hidden, qkv_bias);
  weights.attention_out =
      reader.Linear(attention + "o_proj", shape.hidden, shape.q_width(), /*bias=*/false);
  weights.ffn_norm = reader.Vector(prefix + "post_attention_layernorm.weight", shape.hidden);
  weights.gate = reader.Linear(ffn + "gate_proj", shape.intermediate, shape.hidden, false);
  weights.up = reader.Linear(ffn + "up_proj", shape.intermediate, shape.hidden, false);
  weights.down = reader.Linear(ffn + "down_proj", shape.hidden, shape.intermediate, false);
  return weights;
}

}  // namespace

absl::StatusOr<LlamaWeights> LoadLlamaWeights(Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  LlamaWeights weights;
  weights.shape = {.vocab = config.vocab_size,
                   .hidden = config.hidden_size,
                   .intermediate = config.intermediate_size,
                   .num_layers = config.num_layers,
                   .num_heads = config.num_heads,
                   .num_kv_heads = config.num_kv_heads,
                   .head_dim = config.head_dim};
  const LlamaShape& shape = weights.shape;

  WeightReader reader(checkpoint);
  weights.embedding = reader.Matrix("model.embed_tokens.weight", shape.vocab, shape.hidden);
  for (int layer = 0; layer < shape.num_layers && reader.status().ok(); ++layer) {
    weights.layers.push_back(ReadLayer(reader, shape, config.qkv_bias, layer));
  }
  weights.final_norm = reader.Vector("model.norm.weight", shape.hidden);
  weights.lm_head = config.tied_embeddings
                        ? weights.embedding
                        : reader.Matrix("lm_head.weight", shape.vocab, shape.hidden);
  if (!reader.status().ok()) return reader.status();
  weights.parameters = reader.parameters();
  weights.bytes = reader.bytes();
  return weights;
}

}  // namespace espalier
