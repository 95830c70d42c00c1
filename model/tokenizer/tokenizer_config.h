// What the small JSON files beside a tokenizer say: tokenizer_config.json, special_tokens_map.json,
// generation_config.json, added_tokens.json and chat_template.jinja of a Hugging Face folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/tokenizer/vocabulary_tokenizer.h"

namespace espalier {

struct AddedToken {
  int32_t id;
  std::string content;
  bool special;
};

struct TokenizerConfig {
  std::string bos_token;  // as written; empty: not said
  std::string eos_token;
  std::vector<int32_t> eos_ids;  // of generation_config.json
  std::optional<bool> add_bos;   // empty: not said
  std::string chat_template;     // Jinja; empty: none
  std::vector<AddedToken> added_tokens;
};

// Reads what exists in the folder. INVALID_ARGUMENT names the file and the field.
absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& folder);

// A file's bytes, at most `max_bytes`. NOT_FOUND when there is no such file.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

// The rules that the configuration and the vocabulary make together, without a prefix. Tokens that
// begin or end sequences become special where the vocabulary did not say so. INVALID_ARGUMENT: an
// id outside the vocabulary.
absl::StatusOr<SequenceRules> ResolveRules(const TokenizerConfig& config, Vocabulary* vocabulary);

}  // namespace espalier
