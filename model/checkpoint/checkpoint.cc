#include "model/checkpoint/checkpoint.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/gguf_checkpoint.h"
#include "model/checkpoint/hf_checkpoint.h"

namespace espalier {

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(absl::StrCat("no model at ", path,
                                            error ? absl::StrCat(" (", error.message(), ")") : "",
                                            ": a GGUF file or a Hugging Face folder is needed"));
  }
  if (std::filesystem::is_directory(status)) return HfCheckpoint::Open(path);
  auto file = GgufFile::Open(path);
  if (!file.ok()) return file.status();
  return GgufCheckpoint::Create(*std::move(file));
}

}  // namespace espalier
