// A checkpoint in a Hugging Face folder: config.json and one or several safetensors files.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/safetensors.h"

namespace espalier {

class HfCheckpoint final : public Checkpoint {
 public:
  static absl::StatusOr<std::unique_ptr<HfCheckpoint>> Open(const std::string& folder);

  const ModelConfig& config() const override { return config_; }
  absl::StatusOr<ConstMatrix> Tensor(std::string_view name, int64_t rows, int64_t cols) override;
  bool HasTensor(std::string_view name) const override { return tensors_.contains(name); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer() override;

 private:
  struct Located {
    const SafetensorsFile* file;
    const SafetensorsTensor* tensor;
  };

  explicit HfCheckpoint(std::string folder) : folder_(std::move(folder)) {}
  absl::Status ReadConfig();
  absl::Status OpenSingle(const std::string& path);
  absl::Status OpenShards(const std::string& index_path);

  std::string folder_;
  ModelConfig config_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Located, std::less<>> tensors_;
};

}  // namespace espalier
