// A checkpoint of which one tensor has the same byte everywhere: zeros, or, with 0xff, values that
// are not numbers.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

class FilledCheckpoint : public Checkpoint {
 public:
  FilledCheckpoint(std::unique_ptr<Checkpoint> base, std::string name, uint8_t byte)
      : base_(std::move(base)), name_(std::move(name)), byte_(byte) {}

  const ModelConfig& config() const override { return base_->config(); }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override {
    absl::StatusOr<ConstMatrix> matrix = base_->Tensor(name, rows, cols);
    if (!matrix.ok() || name != name_) return matrix;
    bytes_.assign(BytesOf(matrix->dtype, rows * cols), std::byte{byte_});
    matrix->data = bytes_.data();
    return matrix;
  }
  bool HasTensor(std::string_view name) const override { return base_->HasTensor(name); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override {
    return base_->LoadTokenizer();
  }

 private:
  const std::unique_ptr<Checkpoint> base_;
  const std::string name_;
  const uint8_t byte_;
  std::vector<std::byte> bytes_;
};

}  // namespace espalier
