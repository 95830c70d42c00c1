// A safetensors file, and the same bytes as the index of a sharded checkpoint.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/core/check.h"
#include "model/checkpoint/safetensors.h"
#include "model/checkpoint/safetensors_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file = espalier::SafetensorsFile::Parse(bytes, "input");
  if (file.ok()) {
    size_t tensor_bytes = 0;
    for (const auto& [name, tensor] : (*file)->tensors()) {
      tensor_bytes += tensor.data.size();
      if (tensor.data.empty()) continue;
      ESPALIER_CHECK(tensor.data.data() >= bytes.data());
      ESPALIER_CHECK(tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size());
    }
    ESPALIER_CHECK(tensor_bytes < size);
  }

  const auto shards =
      espalier::ParseSafetensorsIndex(std::string_view(reinterpret_cast<const char*>(data), size));
  if (shards.ok()) {
    for (const auto& [shard, tensors] : *shards) {
      ESPALIER_CHECK(shard.find('/') == std::string::npos);
      ESPALIER_CHECK(!shard.starts_with('.'));
      ESPALIER_CHECK(!tensors.empty());
    }
  }
  return 0;
}
