// Reads fields of JSON from untrusted files: a wrong type is a status that names the field.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/text.h"

namespace espalier {

using Json = nlohmann::json;

// The field, or null when `object` is no object or has no such field.
inline const Json& Field(const Json& object, const char* name) {
  static const Json null;
  if (!object.is_object()) return null;
  const auto field = object.find(name);
  return field == object.end() ? null : *field;
}

inline absl::Status WrongField(std::string_view name, std::string_view wanted) {
  return absl::InvalidArgumentError(Concat("field '", name, "': wanted ", wanted));
}

// A missing or null field gives the default.
inline absl::StatusOr<bool> BoolField(const Json& object, const char* name, bool missing) {
  const Json& field = Field(object, name);
  if (field.is_null()) return missing;
  if (!field.is_boolean()) return WrongField(name, "true or false");
  return field.get<bool>();
}

inline absl::StatusOr<std::string> StringField(const Json& object, const char* name) {
  const Json& field = Field(object, name);
  if (field.is_null()) return std::string();
  if (!field.is_string()) return WrongField(name, "a string");
  return field.get<std::string>();
}

// Ids are refused here when they do not fit; whether the vocabulary has them is for the caller.
inline absl::StatusOr<int32_t> IdOf(const Json& value, std::string_view name) {
  if (!value.is_number_integer() || value < 0 || value > INT32_MAX) {
    return WrongField(name, "a token id");
  }
  return value.get<int32_t>();
}

}  // namespace espalier
