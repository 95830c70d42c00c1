#include "model/tokenizer/gguf_pre_tokenizers.h"

#include <array>
#include <string>

#include "model/tokenizer/text.h"

namespace espalier {
namespace {

constexpr std::string_view kDigit = R"(\p{N})";

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Mistral's Tekken: words split where lower case turns to upper case.
constexpr std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// What files from before the key was introduced are read with.
constexpr std::string_view kDefaultPunctuation = R"([\p{P}\$\+<=>\^~\|]+)";
constexpr std::string_view kDefaultNumbers = R"(\p{N}+)";
constexpr std::string_view kDefaultThousands = R"([0-9][0-9][0-9])";

struct Family {
  std::string_view name;
  std::array<std::string_view, 4> patterns;  // applied in turn; empty: no more
  bool ignore_merges = false;
  bool nfc = false;
  bool add_bos = false;
};

constexpr Family kFamilies[] = {
    {.name = "default",
     .patterns = {kDefaultPunctuation, kGpt2Pattern, kDefaultNumbers, kDefaultThousands}},
    {.name = "gpt-2", .patterns = {kGpt2Pattern}},
    {.name = "smollm", .patterns = {kDigit, kGpt2Pattern}},
    {.name = "starcoder", .patterns = {kDigit, kGpt2Pattern}},
    {.name = "llama-bpe", .patterns = {kLlama3Pattern}, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .patterns = {kLlama3Pattern}, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .patterns = {kLlama3Pattern}, .ignore_merges = true, .add_bos = true},
    {.name = "qwen2", .patterns = {kQwen2Pattern}, .nfc = true},
    {.name = "deepseek-r1-qwen", .patterns = {kQwen2Pattern}, .nfc = true},
    {.name = "tekken", .patterns = {kTekkenPattern}, .ignore_merges = true, .add_bos = true},
};

}  // namespace

absl::StatusOr<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name) {
  std::string known;
  for (const Family& family : kFamilies) {
    known += Concat(known.empty() ? "" : ", ", family.name);
    if (family.name != name) continue;
    GgufPreTokenizer result = {
        .splitter = {},
        .ignore_merges = family.ignore_merges,
        .nfc = family.nfc,
        .add_bos = family.add_bos,
    };
    for (const std::string_view pattern : family.patterns) {
      if (pattern.empty()) continue;
      absl::StatusOr<Regex> regex = Regex::Compile(pattern);
      if (!regex.ok()) return regex.status();
      result.splitter.AddSplit(*std::move(regex));
    }
    return result;
  }
  return absl::UnimplementedError(
      Concat("tokenizer.ggml.pre: '", name, "' is not supported, only ", known));
}

}  // namespace espalier
