// A checkpoint of which one token's embedding is not a number. A tied output projection is not
// poisoned with it, or every row of logits would be.
#pragma once

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

class PoisonedCheckpoint : public Checkpoint {
 public:
  PoisonedCheckpoint(std::unique_ptr<Checkpoint> base, int32_t token)
      : base_(std::move(base)), config_(base_->config()), token_(token) {
    config_.tied_embeddings = false;
  }

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override {
    if (base_->config().tied_embeddings && name == "lm_head.weight") {
      return base_->Tensor("model.embed_tokens.weight", rows, cols);
    }
    absl::StatusOr<ConstMatrix> matrix = base_->Tensor(name, rows, cols);
    if (!matrix.ok() || name != "model.embed_tokens.weight") return matrix;
    const size_t row_bytes = BytesOf(matrix->dtype, cols);
    embedding_.resize(row_bytes * rows);
    std::memcpy(embedding_.data(), matrix->data, embedding_.size());
    // All ones are a NaN in every float type, and so in the scale of every quantised block.
    std::memset(embedding_.data() + row_bytes * token_, 0xff, row_bytes);
    matrix->data = embedding_.data();
    return matrix;
  }
  bool HasTensor(std::string_view name) const override { return base_->HasTensor(name); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override {
    return base_->LoadTokenizer();
  }

 private:
  const std::unique_ptr<Checkpoint> base_;
  ModelConfig config_;
  const int32_t token_;
  std::vector<std::byte> embedding_;
};

}  // namespace espalier
