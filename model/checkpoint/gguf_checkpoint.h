// A checkpoint in one GGUF file. Tensors are served from the mapping; only Q and K of architecture
// "llama" are copied, because GGUF stores their rows in another order.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/gguf.h"

namespace espalier {

class GgufCheckpoint final : public Checkpoint {
 public:
  static absl::StatusOr<std::unique_ptr<GgufCheckpoint>> Create(std::unique_ptr<GgufFile> file);

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override;
  bool HasTensor(std::string_view name) const override;
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override;

 private:
  GgufCheckpoint(std::unique_ptr<GgufFile> file, ModelConfig config)
      : file_(std::move(file)), config_(std::move(config)) {}

  std::unique_ptr<GgufFile> file_;
  ModelConfig config_;
  // Q and K in Hugging Face order, by GGUF name. The buffers never move.
  absl::flat_hash_map<std::string, std::unique_ptr<std::byte[]>> reordered_;
};

}  // namespace espalier
