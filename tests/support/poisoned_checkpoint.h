// A checkpoint of which one token's embedding is not a number.
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
      : base_(std::move(base)), token_(token) {}

  const ModelConfig& config() const override { return base_->config(); }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override {
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
  const int32_t token_;
  std::vector<std::byte> embedding_;
};

}  // namespace espalier
