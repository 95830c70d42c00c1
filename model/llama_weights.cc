#include "model/llama_weights.h"

#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace espalier {
namespace {

// Fetches tensors and counts them. After the first failure it fetches nothing and keeps the status,
// so that the list of a layer's tensors reads as a list.
class WeightReader {
 public:
  WeightReader(Checkpoint& checkpoint, WeightStore& store)
      : checkpoint_(checkpoint), store_(store) {}

  ConstMatrix Matrix(const std::string& name, int64_t rows, int64_t cols) {
    ConstMatrix matrix;
    if (const auto random = checkpoint_.Random(name, cols)) {
      matrix = store_.AddRandom(*random, rows, cols);
    } else if (const auto stored = Stored(name, rows, cols)) {
      matrix = store_.Add(*stored);
    } else {
      return {};
    }
    parameters_ += rows * cols;
    bytes_ += BytesOf(matrix.dtype, rows * cols);
    return matrix;
  }

  const float* Vector(const std::string& name, int64_t size) {
    const float* vector = nullptr;
    if (const auto random = checkpoint_.Random(name, size)) {
      vector = store_.AddRandomVector(*random, size);
    } else if (const auto stored = Stored(name, 1, size)) {
      vector = store_.AddVector(*stored);
    } else {
      return nullptr;
    }
    parameters_ += size;
    bytes_ += size * sizeof(float);
    return vector;
  }

  // Biases come after the weights of all: those are multiplied together where they lie side by
  // side.
  LinearWeights Linear(const std::string& name, int64_t out_features, int64_t in_features) {
    return {.weight = Matrix(absl::StrCat(name, ".weight"), out_features, in_features)};
  }
  const float* Bias(const std::string& name, int64_t out_features) {
    return Vector(absl::StrCat(name, ".bias"), out_features);
  }

  const absl::Status& status() const { return status_; }
  int64_t parameters() const { return parameters_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::optional<ConstMatrix> Stored(const std::string& name, int64_t rows, int64_t cols) {
    if (!status_.ok()) return std::nullopt;
    absl::StatusOr<ConstMatrix> matrix = checkpoint_.Tensor(name, rows, cols);
    if (matrix.ok()) return *matrix;
    status_ = matrix.status();
    return std::nullopt;
  }

  Checkpoint& checkpoint_;
  WeightStore& store_;
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
  weights.q = reader.Linear(attention + "q_proj", shape.q_width(), shape.hidden);
  weights.k = reader.Linear(attention + "k_proj", shape.kv_width(), shape.hidden);
  weights.v = reader.Linear(attention + "v_proj", shape.kv_width(), shape.hidden);
  if (qkv_bias) {
    weights.q.bias = reader.Bias(attention + "q_proj", shape.q_width());
    weights.k.bias = reader.Bias(attention + "k_proj", shape.kv_width());
    weights.v.bias = reader.Bias(attention + "v_proj", shape.kv_width());
  }
  weights.attention_out = reader.Linear(attention + "o_proj", shape.hidden, shape.q_width());
  weights.ffn_norm = reader.Vector(prefix + "post_attention_layernorm.weight", shape.hidden);
  weights.gate = reader.Linear(ffn + "gate_proj", shape.intermediate, shape.hidden);
  weights.up = reader.Linear(ffn + "up_proj", shape.intermediate, shape.hidden);
  weights.down = reader.Linear(ffn + "down_proj", shape.hidden, shape.intermediate);
  return weights;
}

// Bytes of all tensors in a store for CUDA.
int64_t StoreBytes(const Context& ctx, const LlamaShape& shape, const ModelConfig& config) {
  const auto matrix = [&](int64_t rows, int64_t cols) {
    return WeightStore::SizeOf(ctx, rows, cols, /*vector=*/false);
  };
  const auto vector = [&](int64_t size) {
    return WeightStore::SizeOf(ctx, 1, size, /*vector=*/true);
  };
  int64_t layer =
      2 * vector(shape.hidden) + matrix(shape.q_width(), shape.hidden) +
      2 * matrix(shape.kv_width(), shape.hidden) + matrix(shape.hidden, shape.q_width()) +
      2 * matrix(shape.intermediate, shape.hidden) + matrix(shape.hidden, shape.intermediate);
  if (config.qkv_bias) layer += vector(shape.q_width()) + 2 * vector(shape.kv_width());
  const int64_t tables = config.tied_embeddings ? 1 : 2;
  return shape.num_layers * layer + tables * matrix(shape.vocab, shape.hidden) +
         vector(shape.hidden);
}

}  // namespace

absl::StatusOr<LlamaWeights> LoadLlamaWeights(Checkpoint& checkpoint, const Context& ctx,
                                              LoadProgressCallback on_progress) {
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
  absl::StatusOr<std::unique_ptr<WeightStore>> store =
      WeightStore::Create(ctx, StoreBytes(ctx, shape, config), std::move(on_progress));
  if (!store.ok()) return store.status();
  weights.store = *std::move(store);

  WeightReader reader(checkpoint, *weights.store);
  weights.embedding = reader.Matrix("model.embed_tokens.weight", shape.vocab, shape.hidden);
  for (int layer = 0; layer < shape.num_layers && reader.status().ok(); ++layer) {
    weights.layers.push_back(ReadLayer(reader, shape, config.qkv_bias, layer));
  }
  weights.final_norm = reader.Vector("model.norm.weight", shape.hidden);
  weights.lm_head = config.tied_embeddings
                        ? weights.embedding
                        : reader.Matrix("lm_head.weight", shape.vocab, shape.hidden);
  const absl::Status finished = weights.store->Finish();
  if (!reader.status().ok()) return reader.status();
  if (!finished.ok()) return finished;
  weights.parameters = reader.parameters();
  weights.bytes = reader.bytes();
  return weights;
}

}  // namespace espalier
