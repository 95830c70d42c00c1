// The JSON header of a safetensors file, read as a stream: nothing is stored but the entries that
// the format allows, so a hostile header cannot nest or repeat.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace espalier {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;  // each at least 0; at most kSafetensorsMaxDims of them
  uint64_t begin = 0;          // bytes from the end of the header
  uint64_t end = 0;
};

inline constexpr size_t kSafetensorsMaxDims = 8;

// The entries in the order of the file. INVALID_ARGUMENT says which rule is broken and where: not
// JSON, a key twice, a key missing or unknown, a value of the wrong kind.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view json);

}  // namespace espalier
