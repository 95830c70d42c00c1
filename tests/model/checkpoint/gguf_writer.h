// Writes GGUF bytes for tests, valid or not: it follows the specification's layout and checks
// nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace espalier {

class GgufWriter {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; the key is the caller's to add

  // One metadata pair. `type` is the specification's number; the payload is what T's bytes are.
  template <typename T>
  void Add(std::string_view key, uint32_t type, T value) {
    Key(key, type);
    Append(values_, value);
  }
  void AddString(std::string_view key, std::string_view value) {
    Key(key, 8);
    AppendString(values_, value);
  }
  template <typename T>
  void AddArray(std::string_view key, uint32_t element_type, const std::vector<T>& elements) {
    Key(key, 9);
    Append(values_, element_type);
    Append(values_, uint64_t{elements.size()});
    for (const T& element : elements) {
      if constexpr (std::is_convertible_v<T, std::string_view>) {
        AppendString(values_, element);
      } else {
        Append(values_, element);
      }
    }
  }
  // An array whose claimed length has no elements behind it.
  void AddHollowArray(std::string_view key, uint32_t element_type, uint64_t claimed) {
    Key(key, 9);
    Append(values_, element_type);
    Append(values_, claimed);
  }

  void AddTensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t ggml_type,
                 uint64_t offset) {
    AppendString(tensors_, name);
    Append(tensors_, static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) Append(tensors_, dim);
    Append(tensors_, ggml_type);
    Append(tensors_, offset);
    ++num_tensors_;
  }

  std::vector<std::byte> Build(size_t data_bytes) const {
    std::vector<std::byte> file;
    for (const char c : {'G', 'G', 'U', 'F'}) Append(file, c);
    Append(file, version);
    Append(file, num_tensors_);
    Append(file, num_values_);
    file.insert(file.end(), values_.begin(), values_.end());
    file.insert(file.end(), tensors_.begin(), tensors_.end());
    if (data_bytes > 0) {
      while (file.size() % alignment != 0) file.push_back(std::byte{0});
      for (size_t i = 0; i < data_bytes; ++i) file.push_back(std::byte(i % 251));
    }
    return file;
  }

 private:
  template <typename T>
  static void Append(std::vector<std::byte>& to, T value) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    to.insert(to.end(), bytes, bytes + sizeof(T));
  }
  static void AppendString(std::vector<std::byte>& to, std::string_view text) {
    Append(to, uint64_t{text.size()});
    for (const char c : text) Append(to, c);
  }
  void Key(std::string_view key, uint32_t type) {
    AppendString(values_, key);
    Append(values_, type);
    ++num_values_;
  }

  uint64_t num_tensors_ = 0;
  uint64_t num_values_ = 0;
  std::vector<std::byte> values_;
  std::vector<std::byte> tensors_;
};

}  // namespace espalier
