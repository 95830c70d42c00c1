#include "model/tokenizer/tokenizer_config.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/numbers.h"
#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/text.h"

namespace espalier {
namespace {

constexpr size_t kMaxConfigBytes = 16 << 20;

// A special token is a string or, in full form, an object with its content.
std::string TokenText(const Json& token) {
  const Json& text = token.is_object() ? Field(token, "content") : token;
  return text.is_string() ? text.get<std::string>() : std::string();
}

// One template, or a list of named ones of which "default" is meant.
std::string TemplateText(const Json& field) {
  if (field.is_string()) return field.get<std::string>();
  if (!field.is_array()) return {};
  for (const Json& named : field) {
    const Json& text = Field(named, "template");
    if (Field(named, "name") == "default" && text.is_string()) return text.get<std::string>();
  }
  return {};
}

// The keys of added_tokens_decoder are ids in decimal.
absl::Status ReadAddedTokens(const Json& decoder, TokenizerConfig* config) {
  if (!decoder.is_object()) return absl::OkStatus();
  for (const auto& [key, token] : decoder.items()) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(key, &id)) return WrongField("added_tokens_decoder", "ids as keys");
    const absl::StatusOr<bool> special = BoolField(token, "special", false);
    if (!special.ok()) return special.status();
    config->added_tokens.push_back({.id = id, .content = TokenText(token), .special = *special});
  }
  return absl::OkStatus();
}

absl::Status ReadMain(const Json& root, TokenizerConfig* config) {
  config->bos_token = TokenText(Field(root, "bos_token"));
  config->eos_token = TokenText(Field(root, "eos_token"));
  config->chat_template = TemplateText(Field(root, "chat_template"));
  if (!Field(root, "add_bos_token").is_null()) {
    const absl::StatusOr<bool> add_bos = BoolField(root, "add_bos_token", false);
    if (!add_bos.ok()) return add_bos.status();
    config->add_bos = *add_bos;
  }
  return ReadAddedTokens(Field(root, "added_tokens_decoder"), config);
}

absl::Status ReadSpecialTokensMap(const Json& root, TokenizerConfig* config) {
  if (config->bos_token.empty()) config->bos_token = TokenText(Field(root, "bos_token"));
  if (config->eos_token.empty()) config->eos_token = TokenText(Field(root, "eos_token"));
  return absl::OkStatus();
}

absl::Status ReadGenerationConfig(const Json& root, TokenizerConfig* config) {
  for (const Json& value : Field(root, "eos_token_id")) {  // one id, or an array of ids
    const absl::StatusOr<int32_t> id = IdOf(value, "eos_token_id");
    if (!id.ok()) return id.status();
    config->eos_ids.push_back(*id);
  }
  return absl::OkStatus();
}

// Older folders: content to id, where the newer form does not list the id already.
absl::Status ReadAddedTokensJson(const Json& root, TokenizerConfig* config) {
  if (!config->added_tokens.empty() || !root.is_object()) return absl::OkStatus();
  for (const auto& [content, value] : root.items()) {
    const absl::StatusOr<int32_t> id = IdOf(value, content);
    if (!id.ok()) return id.status();
    config->added_tokens.push_back({.id = *id, .content = content, .special = true});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(Concat(path, ": no such file"));
  }
  const auto bytes = std::filesystem::file_size(path, error);
  if (error || bytes > max_bytes) {
    return absl::InvalidArgumentError(Concat(
        path, ": ", error ? error.message() : Concat(bytes, " bytes"), ", at most ", max_bytes));
  }
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes))) {
    return absl::UnavailableError(Concat(path, ": cannot be read"));
  }
  return text;
}

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& folder) {
  struct Source {
    const char* name;
    absl::Status (*read)(const Json&, TokenizerConfig*);
  };
  TokenizerConfig config;
  for (const Source& source : {Source{"tokenizer_config.json", ReadMain},
                               Source{"special_tokens_map.json", ReadSpecialTokensMap},
                               Source{"generation_config.json", ReadGenerationConfig},
                               Source{"added_tokens.json", ReadAddedTokensJson}}) {
    const std::string path = Concat(folder, "/", source.name);
    const absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxConfigBytes);
    if (absl::IsNotFound(text.status())) continue;
    if (!text.ok()) return text.status();
    const Json root = Json::parse(*text, /*cb=*/nullptr, /*allow_exceptions=*/false);
    if (!root.is_object()) {
      return absl::InvalidArgumentError(Concat(path, ": not a JSON object"));
    }
    if (absl::Status status = source.read(root, &config); !status.ok()) {
      return absl::Status(status.code(), Concat(path, ": ", status.message()));
    }
  }
  // The newest form keeps the template in a file of its own, which then holds.
  absl::StatusOr<std::string> jinja =
      ReadSmallFile(Concat(folder, "/chat_template.jinja"), kMaxConfigBytes);
  if (jinja.ok()) config.chat_template = *std::move(jinja);
  return config;
}

absl::StatusOr<SequenceRules> ResolveRules(const TokenizerConfig& config, Vocabulary* vocabulary) {
  SequenceRules rules;
  rules.bos = vocabulary->Find(config.bos_token);
  rules.eos = config.eos_ids;
  if (const auto eos = vocabulary->Find(config.eos_token)) rules.eos.push_back(*eos);
  std::sort(rules.eos.begin(), rules.eos.end());
  rules.eos.erase(std::unique(rules.eos.begin(), rules.eos.end()), rules.eos.end());
  for (const int32_t id : rules.eos) {
    if (!vocabulary->Contains(id)) {
      return absl::InvalidArgumentError(Concat("generation_config.json: eos_token_id ", id,
                                               ", vocabulary of ", vocabulary->size()));
    }
    vocabulary->MakeSpecial(id);
  }
  if (rules.bos.has_value()) vocabulary->MakeSpecial(*rules.bos);
  rules.chat = RecognizeChatTemplate(config.chat_template);
  return rules;
}

}  // namespace espalier
