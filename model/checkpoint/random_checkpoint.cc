#include "model/checkpoint/random_checkpoint.h"

#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/hf_config.h"
#include "model/checkpoint/mapped_file.h"
#include "model/tokenizer/byte_tokenizer.h"
#include "model/tokenizer/load.h"

namespace espalier {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

// FNV-1a, so that a tensor has its own stream.
uint64_t HashOf(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RandomCheckpoint>> RandomCheckpoint::Open(const std::string& path,
                                                                         uint64_t seed) {
  std::error_code ignored;
  const bool is_folder = std::filesystem::is_directory(path, ignored);
  const std::string config_path = is_folder ? path + "/config.json" : path;
  absl::StatusOr<MappedFile> file = MappedFile::Open(config_path);
  if (!file.ok()) return file.status();
  if (file->bytes().size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(absl::StrCat(config_path, " has ", file->bytes().size(),
                                                   " bytes, the limit is ", kMaxConfigBytes));
  }
  absl::StatusOr<ModelConfig> config =
      ParseHfConfig({reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()});
  if (!config.ok()) {
    return absl::Status(config.status().code(),
                        absl::StrCat(config_path, ": ", config.status().message()));
  }
  const std::string folder = is_folder ? path : std::filesystem::path(path).parent_path().string();
  config->name = absl::StrCat(std::filesystem::path(path).filename().string(), " (random)");
  return std::unique_ptr<RandomCheckpoint>(new RandomCheckpoint(folder, *std::move(config), seed));
}

RandomCheckpoint::RandomCheckpoint(std::string folder, ModelConfig config, uint64_t seed)
    : folder_(std::move(folder)), config_(std::move(config)), seed_(seed) {}

absl::StatusOr<ConstMatrix> RandomCheckpoint::Tensor(std::string_view name, int64_t /*rows*/,
                                                     int64_t /*cols*/) {
  return absl::NotFoundError(absl::StrCat("tensor ", absl::string_view(name.data(), name.size()),
                                          " is not stored: the weights are random"));
}

// Matrices keep the scale of what they multiply; norms do nothing; biases are small.
std::optional<RandomWeights> RandomCheckpoint::Random(std::string_view name, int64_t cols) const {
  RandomWeights weights{.seed = seed_ ^ HashOf(name)};
  if (name.ends_with("norm.weight")) {
    weights.mean = 1.0f;
  } else if (name.ends_with(".bias")) {
    weights.deviation = 0.1f;
  } else {
    weights.deviation = 1.0f / std::sqrt(static_cast<float>(cols));
  }
  return weights;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> RandomCheckpoint::LoadTokenizer() {
  std::error_code ignored;
  for (const char* file : {"tokenizer.json", "tokenizer.model"}) {
    if (std::filesystem::exists(std::filesystem::path(folder_) / file, ignored)) {
      return LoadTokenizerFromFolder(folder_);
    }
  }
  return std::make_unique<ByteTokenizer>();
}

}  // namespace espalier
