// GGUF bytes: the container, the configuration, every tensor of the model that it describes, and
// the vocabulary.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kernels/core/check.h"
#include "model/checkpoint/gguf.h"
#include "model/checkpoint/gguf_checkpoint.h"
#include "model/config.h"
#include "model/tokenizer/tokenizer.h"

namespace {

using espalier::BytesOf;
using espalier::ConstMatrix;
using espalier::GgufCheckpoint;
using espalier::ModelConfig;

// Both ends of the data can be read, and lie in the file or in the checkpoint's own copy.
void Touch(GgufCheckpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols) {
  const auto tensor = checkpoint.Tensor(name, rows, cols);
  if (!tensor.ok()) return;
  ESPALIER_CHECK(tensor->rows == rows);
  ESPALIER_CHECK(tensor->cols == cols);
  const size_t bytes = BytesOf(tensor->dtype, rows * cols);
  const auto* data = static_cast<const volatile uint8_t*>(tensor->data);
  static_cast<void>(data[0]);
  static_cast<void>(data[bytes - 1]);
}

void TouchEveryTensor(GgufCheckpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const int64_t q_rows = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_kv_heads} * config.head_dim;
  Touch(checkpoint, "model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  Touch(checkpoint, "lm_head.weight", config.vocab_size, config.hidden_size);
  for (int i = 0; i < std::min(config.num_layers, 4); ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    Touch(checkpoint, layer + "input_layernorm.weight", 1, config.hidden_size);
    Touch(checkpoint, layer + "self_attn.q_proj.weight", q_rows, config.hidden_size);
    Touch(checkpoint, layer + "self_attn.k_proj.weight", kv_rows, config.hidden_size);
    Touch(checkpoint, layer + "self_attn.o_proj.weight", config.hidden_size, q_rows);
    Touch(checkpoint, layer + "mlp.down_proj.weight", config.hidden_size, config.intermediate_size);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto file = espalier::GgufFile::Parse(std::as_bytes(std::span(data, size)), "input");
  if (!file.ok()) return 0;
  const auto checkpoint = GgufCheckpoint::Create(*std::move(file));
  if (!checkpoint.ok()) return 0;
  ESPALIER_CHECK(espalier::ValidateConfig((*checkpoint)->config()).ok());
  TouchEveryTensor(**checkpoint);
  const auto tokenizer = (*checkpoint)->LoadTokenizer();
  if (tokenizer.ok()) (*tokenizer)->Encode("a fuzzed \xf0\x9f\x8c\xb3 vocabulary", true);
  return 0;
}
