// Checkpoints of which some weights are others, for tests of what goes wrong.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// Everything as in another checkpoint, but for what a subclass changes.
class ChangedCheckpoint : public Checkpoint {
 public:
  explicit ChangedCheckpoint(std::unique_ptr<Checkpoint> base) : base_(std::move(base)) {}

  const ModelConfig& config() const override { return base_->config(); }
  bool HasTensor(std::string_view name) const override { return base_->HasTensor(name); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override {
    return base_->LoadTokenizer();
  }

 protected:
  Checkpoint& base() const { return *base_; }

 private:
  const std::unique_ptr<Checkpoint> base_;
};

// One tensor has the same byte everywhere: zeros, or, with 0xff, values that are not numbers.
class FilledCheckpoint : public ChangedCheckpoint {
 public:
  FilledCheckpoint(std::unique_ptr<Checkpoint> base, std::string name, uint8_t byte)
      : ChangedCheckpoint(std::move(base)), name_(std::move(name)), byte_(byte) {}

  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override {
    absl::StatusOr<ConstMatrix> matrix = base().Tensor(name, rows, cols);
    if (!matrix.ok() || name != name_) return matrix;
    bytes_.assign(BytesOf(matrix->dtype, rows * cols), std::byte{byte_});
    matrix->data = bytes_.data();
    return matrix;
  }

 private:
  const std::string name_;
  const uint8_t byte_;
  std::vector<std::byte> bytes_;
};

// One token's embedding is not a number. A tied output projection is not poisoned with it, or every
// row of logits would be.
class PoisonedCheckpoint : public ChangedCheckpoint {
 public:
  PoisonedCheckpoint(std::unique_ptr<Checkpoint> unpoisoned, int32_t token)
      : ChangedCheckpoint(std::move(unpoisoned)), config_(base().config()), token_(token) {
    config_.tied_embeddings = false;
  }

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override {
    if (base().config().tied_embeddings && name == "lm_head.weight") {
      return base().Tensor("model.embed_tokens.weight", rows, cols);
    }
    absl::StatusOr<ConstMatrix> matrix = base().Tensor(name, rows, cols);
    if (!matrix.ok() || name != "model.embed_tokens.weight") return matrix;
    const size_t row_bytes = BytesOf(matrix->dtype, cols);
    embedding_.resize(row_bytes * rows);
    std::memcpy(embedding_.data(), matrix->data, embedding_.size());
    // All ones are a NaN in every float type, and so in the scale of every quantised block.
    std::memset(embedding_.data() + row_bytes * token_, 0xff, row_bytes);
    matrix->data = embedding_.data();
    return matrix;
  }

 private:
  ModelConfig config_;
  const int32_t token_;
  std::vector<std::byte> embedding_;
};

}  // namespace espalier
