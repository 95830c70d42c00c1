// Reads the safetensors files under tests/golden with a parser of its own, so that a golden does
// not depend on the code that it tests. Trusts the file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace espalier::testing {

struct GoldenTensor {
  std::string dtype;  // as in the file: "F32", "I32", "U8"
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  template <typename T>
  std::vector<T> As() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::byte*>(values.data()));
    return values;
  }
};

// `path` is relative to tests/golden.
std::map<std::string, GoldenTensor> ReadGoldenTensors(const std::string& path);

}  // namespace espalier::testing
