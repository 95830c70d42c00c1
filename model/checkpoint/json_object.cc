#include "model/checkpoint/json_object.h"

#include "absl/strings/str_cat.h"

namespace espalier {

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text) {
  using nlohmann::json;
  constexpr int kMaxDepth = 64;
  bool too_deep = false;
  // A value whose start is refused is skipped, so nothing deeper is built.
  const json::parser_callback_t keep = [&too_deep](int depth, json::parse_event_t, json&) {
    too_deep |= depth > kMaxDepth;
    return depth <= kMaxDepth;
  };
  json parsed = json::parse(text, keep, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(absl::StrCat("JSON is nested deeper than ", kMaxDepth));
  }
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("not a JSON object (", text.size(), " bytes)"));
  }
  return parsed;
}

}  // namespace espalier
