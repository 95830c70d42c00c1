// A checkpoint on disk: configuration, named tensors, and where the tokenizer is. Files are
// untrusted: every size is checked against the file before anything is allocated.
//
// Weights stay mapped while the checkpoint lives. A file that is cut short in place meanwhile raises
// SIGBUS: out of scope, so replace model files by rename. One thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/core/matrix.h"
#include "kernels/core/random_weight.h"
#include "model/config.h"

namespace espalier {

class Tokenizer;

class Checkpoint {
 public:
  // Opens a GGUF file or a Hugging Face folder (config.json, *.safetensors, tokenizer files).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual const ModelConfig& config() const = 0;

  // A tensor by its Hugging Face name ("model.layers.0.self_attn.q_proj.weight"), rows already in
  // Hugging Face order (GGUF's permuted Q and K are put back). A vector is one row. The data lives
  // as long as the checkpoint. NOT_FOUND when there is no such tensor; INVALID_ARGUMENT when its
  // shape is not rows x cols.
  virtual absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows,
                                             int64_t cols) = 0;
  virtual bool HasTensor(std::string_view name) const = 0;
  // How a device makes the tensor up, where it is not stored; `cols` are its input features.
  virtual std::optional<RandomWeights> Random(std::string_view /*name*/,
                                                       int64_t /*cols*/) const {
    return std::nullopt;
  }

  virtual absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() = 0;
};

}  // namespace espalier
