#include "model/checkpoint/safetensors_index.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/json_object.h"
#include "model/checkpoint/quoted.h"

namespace espalier {
namespace {

constexpr size_t kMaxShards = 1024;

bool IsPlainShardName(std::string_view name) {
  constexpr size_t kMaxNameBytes = 255;
  return name.size() <= kMaxNameBytes && name.ends_with(".safetensors") && name[0] != '.' &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

}  // namespace

absl::StatusOr<std::map<std::string, std::vector<std::string>>> ParseSafetensorsIndex(
    std::string_view text) {
  using nlohmann::json;
  const auto parsed = ParseJsonObject(text);
  if (!parsed.ok()) return parsed.status();
  const auto weight_map = parsed->find("weight_map");
  if (weight_map == parsed->end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError("no object \"weight_map\"");
  }
  std::map<std::string, std::vector<std::string>> shards;
  for (const auto& [tensor, file] : weight_map->items()) {
    if (!file.is_string() || !IsPlainShardName(file.get_ref<const std::string&>())) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(tensor), " is in ",
                       file.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 300),
                       ", not the plain name of a .safetensors file"));
    }
    shards[file.get_ref<const std::string&>()].push_back(tensor);
    if (shards.size() > kMaxShards) {
      return absl::InvalidArgumentError(absl::StrCat("more than ", kMaxShards, " shards"));
    }
  }
  return shards;
}

}  // namespace espalier
