// Reads GGUF, versions 2 and 3 (source: the GGUF specification in ggml's documentation). The file
// is untrusted: every length is checked against the bytes that remain before it is used, and
// nothing is allocated in proportion to a number that the file only claims.
//
// Views (string_view, spans, tensor data) point into the mapping and live as long as the GgufFile.
// Immutable after opening: any thread may read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "kernels/core/matrix.h"
#include "model/checkpoint/mapped_file.h"

namespace espalier {

class GgufFile {
 public:
  // Maps and parses. Messages name the path, the key or tensor, and the numbers. UNIMPLEMENTED:
  // well-formed, but a version or an element type that we do not read.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);
  // Parses bytes that the caller keeps alive. `name` stands for the path in messages.
  static absl::StatusOr<std::unique_ptr<GgufFile>> Parse(std::span<const std::byte> bytes,
                                                         std::string name);

  const std::string& name() const { return name_; }

  // Metadata. Each getter: NOT_FOUND when there is no such key, INVALID_ARGUMENT when its type or
  // value does not fit. Integers of any width and sign are accepted where the value fits.
  bool Has(std::string_view key) const { return values_.contains(key); }
  absl::StatusOr<int64_t> GetInt(std::string_view key, int64_t min, int64_t max) const;
  absl::StatusOr<uint32_t> GetU32(std::string_view key) const;
  absl::StatusOr<float> GetF32(std::string_view key) const;  // also from f64
  absl::StatusOr<bool> GetBool(std::string_view key) const;
  absl::StatusOr<std::string_view> GetString(std::string_view key) const;
  absl::StatusOr<std::vector<std::string_view>> GetStringArray(std::string_view key) const;
  absl::StatusOr<std::vector<float>> GetF32Array(std::string_view key) const;
  absl::StatusOr<std::vector<int32_t>> GetI32Array(std::string_view key) const;

  // Tensors, by their GGUF name. GGUF's first dimension is `cols`; the others multiply to `rows`.
  const ConstMatrix* FindTensor(std::string_view tensor_name) const;
  size_t num_tensors() const { return tensors_.size(); }

 private:
  class Parser;

  // The specification's gguf_metadata_value_type.
  enum class Type : uint32_t {
    kU8,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64,
  };
  struct Value {
    Type type;  // of the element, for an array
    bool is_array;
    uint64_t count;  // elements; 1 for a scalar
    std::span<const std::byte> payload;
  };

  explicit GgufFile(std::string name) : name_(std::move(name)) {}

  static std::string_view TypeName(Type type);
  // Bytes of a scalar; 0 for strings and arrays, whose size depends on their content.
  static size_t TypeBytes(Type type);
  absl::StatusOr<const Value*> Find(std::string_view key, bool is_array) const;
  absl::Status WrongType(std::string_view key, const Value& value, std::string_view wanted) const;
  static std::optional<int64_t> ReadInt(Type type, const std::byte* data);

  std::string name_;
  std::optional<MappedFile> file_;  // empty when the caller owns the bytes
  absl::flat_hash_map<std::string_view, Value> values_;
  absl::flat_hash_map<std::string_view, ConstMatrix> tensors_;
};

}  // namespace espalier
