#include "model/checkpoint/hf_checkpoint.h"

#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/checkpoint/hf_config.h"
#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/quoted.h"
#include "model/checkpoint/safetensors_index.h"
#include "model/tokenizer/load.h"

namespace espalier {
namespace {

// config.json is a few kB, an index a few hundred.
constexpr size_t kMaxJsonBytes = 64 << 20;

std::string_view Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

absl::StatusOr<MappedFile> OpenJson(const std::string& path) {
  auto file = MappedFile::Open(path);
  if (file.ok() && file->bytes().size() > kMaxJsonBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", file->bytes().size(), " bytes, the limit is ", kMaxJsonBytes));
  }
  return file;
}

absl::Status InFolder(const std::string& folder, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(folder, ": ", status.message()));
}

bool Exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// Empty: an element type that models do not compute with.
std::optional<DType> ComputeDType(std::string_view dtype) {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HfCheckpoint>> HfCheckpoint::Open(const std::string& folder) {
  std::unique_ptr<HfCheckpoint> checkpoint(new HfCheckpoint(folder));
  if (absl::Status status = checkpoint->ReadConfig(); !status.ok()) return status;

  const std::string single = folder + "/model.safetensors";
  const std::string index = folder + "/model.safetensors.index.json";
  absl::Status status;
  if (Exists(single)) {
    status = checkpoint->OpenSingle(single);
  } else if (Exists(index)) {
    status = checkpoint->OpenShards(index);
  } else {
    status = absl::NotFoundError(absl::StrCat(
        folder,
        " has neither model.safetensors nor model.safetensors.index.json (other weight "
        "files are not read)"));
  }
  if (!status.ok()) return status;
  return checkpoint;
}

absl::Status HfCheckpoint::ReadConfig() {
  const std::string path = folder_ + "/config.json";
  if (!Exists(path)) {
    return absl::NotFoundError(absl::StrCat(
        folder_, " is not a model: it has no config.json (a Hugging Face folder has one)"));
  }
  const auto file = OpenJson(path);
  if (!file.ok()) return file.status();
  auto config = ParseHfConfig(Text(*file));
  if (!config.ok()) return InFolder(folder_, config.status());
  config_ = *std::move(config);
  config_.name = std::filesystem::path(folder_).lexically_normal().filename().string();
  if (config_.name.empty()) {  // the path ended in a slash
    config_.name =
        std::filesystem::path(folder_).lexically_normal().parent_path().filename().string();
  }

  const std::string generation_path = folder_ + "/generation_config.json";
  if (!Exists(generation_path)) return absl::OkStatus();
  const auto generation = OpenJson(generation_path);
  if (!generation.ok()) return generation.status();
  absl::Status status = MergeGenerationConfig(Text(*generation), &config_);
  return status.ok() ? status : InFolder(folder_, status);
}

absl::Status HfCheckpoint::OpenSingle(const std::string& path) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  for (const auto& [name, tensor] : (*file)->tensors()) {
    tensors_.emplace(name, Located{file->get(), &tensor});
  }
  files_.push_back(*std::move(file));
  return absl::OkStatus();
}

absl::Status HfCheckpoint::OpenShards(const std::string& index_path) {
  const auto index = OpenJson(index_path);
  if (!index.ok()) return index.status();
  const auto shards = ParseSafetensorsIndex(Text(*index));
  if (!shards.ok()) return InFolder(index_path, shards.status());
  for (const auto& [file_name, tensor_names] : *shards) {
    auto file = SafetensorsFile::Open(absl::StrCat(folder_, "/", file_name));
    if (!file.ok()) return file.status();
    for (const std::string& name : tensor_names) {
      const SafetensorsTensor* tensor = (*file)->Find(name);
      if (tensor == nullptr) {
        return absl::InvalidArgumentError(
            absl::StrCat(index_path, ": tensor ", Quoted(name), " is not in ", (*file)->name()));
      }
      tensors_.emplace(name, Located{file->get(), tensor});
    }
    files_.push_back(*std::move(file));
  }
  return absl::OkStatus();
}

absl::StatusOr<ConstMatrix> HfCheckpoint::Tensor(std::string_view name, int64_t rows,
                                                 int64_t cols) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(folder_, ": no tensor ", Quoted(name)));
  }
  const auto& [file, tensor] = it->second;
  const auto dtype = ComputeDType(tensor->dtype);
  if (!dtype) {
    return absl::UnimplementedError(absl::StrCat(file->name(), ": tensor ", Quoted(name),
                                                 " has element type ", tensor->dtype,
                                                 "; supported are F32, F16, BF16"));
  }
  const std::vector<int64_t>& shape = tensor->shape;
  const bool is_vector = rows == 1 && shape == std::vector<int64_t>{cols};
  if (!is_vector && shape != std::vector<int64_t>{rows, cols}) {
    return absl::InvalidArgumentError(absl::StrCat(file->name(), ": tensor ", Quoted(name),
                                                   " has shape [", absl::StrJoin(shape, ", "),
                                                   "], not [", rows, ", ", cols, "]"));
  }
  return ConstMatrix{tensor->data.data(), *dtype, rows, cols};
}

absl::StatusOr<std::unique_ptr<Tokenizer>> HfCheckpoint::LoadTokenizer() {
  return LoadTokenizerFromFolder(folder_);
}

}  // namespace espalier
