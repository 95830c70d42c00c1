// Reads one safetensors file (source: the format section of the safetensors README). The file is
// untrusted: the header is capped and every offset is checked against the file before use.
//
// Tensor data points into the mapping and lives as long as the SafetensorsFile. Immutable after
// opening: any thread may read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint/mapped_file.h"

namespace espalier {

struct SafetensorsTensor {
  std::string dtype;  // as written: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

class SafetensorsFile {
 public:
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

  // Maps and parses. Messages name the path, the tensor and the numbers. INVALID_ARGUMENT: not
  // safetensors, truncated, or inconsistent. UNIMPLEMENTED: an element type unknown to us.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  // Parses bytes that the caller keeps alive. `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Parse(std::span<const std::byte> bytes,
                                                                std::string name);

  const std::string& name() const { return name_; }
  const std::map<std::string, SafetensorsTensor, std::less<>>& tensors() const { return tensors_; }
  // Null when there is no such tensor.
  const SafetensorsTensor* Find(std::string_view tensor_name) const;

 private:
  explicit SafetensorsFile(std::string name) : name_(std::move(name)) {}
  absl::Status ParseBytes(std::span<const std::byte> bytes);

  std::string name_;
  std::optional<MappedFile> file_;  // empty when the caller owns the bytes
  std::map<std::string, SafetensorsTensor, std::less<>> tensors_;
};

}  // namespace espalier
