// A checkpoint of any shape whose weights are made up: to measure models without their weights.
// Reads config.json, and tokenizer files where the folder has them; else a token is a byte.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "model/checkpoint/checkpoint.h"

namespace espalier {

class RandomCheckpoint final : public Checkpoint {
 public:
  // `path` is a config.json or a folder that has one.
  static absl::StatusOr<std::unique_ptr<RandomCheckpoint>> Open(const std::string& path,
                                                                uint64_t seed);

  const ModelConfig& config() const override { return config_; }
  // NOT_FOUND: nothing is stored.
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override;
  bool HasTensor(std::string_view /*name*/) const override { return false; }
  std::optional<RandomWeights> Random(std::string_view name, int64_t cols) const override;
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override;

 private:
  RandomCheckpoint(std::string folder, ModelConfig config, uint64_t seed);

  const std::string folder_;
  const ModelConfig config_;
  const uint64_t seed_;
};

}  // namespace espalier
