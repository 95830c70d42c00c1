// model.safetensors.index.json: which shard holds each tensor. Untrusted text.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace espalier {

// Shard file name -> the tensors it holds. Names are plain file names ending in ".safetensors": one
// that could leave the folder is refused. INVALID_ARGUMENT names what is wrong.
absl::StatusOr<std::map<std::string, std::vector<std::string>>> ParseSafetensorsIndex(
    std::string_view json);

}  // namespace espalier
