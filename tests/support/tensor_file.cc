#include "tests/support/tensor_file.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "kernels/core/check.h"

namespace espalier::testing {

std::map<std::string, GoldenTensor> ReadGoldenTensors(const std::string& path) {
  std::ifstream file(std::string(ESPALIER_SOURCE_DIR) + "/tests/golden/" + path, std::ios::binary);
  ESPALIER_CHECK(file.is_open());
  const std::string content((std::istreambuf_iterator<char>(file)), {});
  uint64_t header_size = 0;
  std::memcpy(&header_size, content.data(), sizeof(header_size));
  const auto header = nlohmann::json::parse(content.substr(sizeof(header_size), header_size));
  const auto* data = reinterpret_cast<const std::byte*>(content.data()) + 8 + header_size;

  std::map<std::string, GoldenTensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto offsets = entry["data_offsets"].get<std::vector<int64_t>>();
    tensors[name] = {.dtype = entry["dtype"].get<std::string>(),
                     .shape = entry["shape"].get<std::vector<int64_t>>(),
                     .bytes = {data + offsets[0], data + offsets[1]}};
  }
  return tensors;
}

}  // namespace espalier::testing
