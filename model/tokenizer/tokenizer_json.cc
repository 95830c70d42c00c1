#include "model/tokenizer/tokenizer_json.h"

#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/byte_level_bpe.h"
#include "model/tokenizer/json_fields.h"
#include "model/tokenizer/text.h"

namespace espalier {
namespace {

absl::Status Unsupported(std::string_view what) {
  return absl::UnimplementedError(Concat("tokenizer.json: ", what, " is not supported"));
}

// A component's type for a message. Not a dump: that recurses as deep as the file nests.
std::string NameOf(const Json& type) {
  return type.is_string() ? Concat("'", type.get_ref<const std::string&>(), "'")
                          : std::string("of no name");
}

// The components of `component`, which a Sequence lists under `list_name`; null has none.
std::vector<const Json*> Flatten(const Json& component, const char* list_name) {
  if (component.is_null()) return {};
  if (Field(component, "type") != "Sequence") return {&component};
  std::vector<const Json*> components;
  for (const Json& one : Field(component, list_name)) components.push_back(&one);
  return components;
}

// Reads one file; what it finds goes into the spec.
class Reader {
 public:
  Reader(const Json& root, ByteLevelBpeSpec* spec) : root_(root), spec_(*spec) {}

  absl::Status Read(const TokenizerConfig& config) {
    // Added tokens refer to the vocabulary, the rules and the post-processor to both.
    for (const auto step : {&Reader::ReadModel, &Reader::ReadAddedTokens, &Reader::ReadNormalizer,
                            &Reader::ReadPreTokenizer}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    absl::StatusOr<SequenceRules> rules = ResolveRules(config, &spec_.vocabulary);
    if (!rules.ok()) return rules.status();
    spec_.rules = *std::move(rules);
    // What the configuration says of BOS outweighs the template.
    if (!config.add_bos.has_value()) return ReadPostProcessor();
    if (*config.add_bos && spec_.rules.bos.has_value()) spec_.rules.prefix = {*spec_.rules.bos};
    return absl::OkStatus();
  }

 private:
  absl::Status ReadModel() {
    const Json& model = Field(root_, "model");
    const Json& type = Field(model, "type");
    if (!type.is_null() && type != "BPE") return Unsupported(Concat("model ", NameOf(type)));
    for (const char* name : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json& field = Field(model, name);
      if (!field.is_null() && field != "" && field != 0.0) {
        return Unsupported(Concat("model.", name));
      }
    }
    const absl::StatusOr<bool> byte_fallback = BoolField(model, "byte_fallback", false);
    if (!byte_fallback.ok()) return byte_fallback.status();
    if (*byte_fallback) return Unsupported("model.byte_fallback");
    const absl::StatusOr<bool> ignore_merges = BoolField(model, "ignore_merges", false);
    if (!ignore_merges.ok()) return ignore_merges.status();
    spec_.ignore_merges = *ignore_merges;

    const Json& vocab = Field(model, "vocab");
    if (!vocab.is_object() || vocab.empty()) return WrongField("model.vocab", "an object");
    for (const auto& [piece, id_value] : vocab.items()) {
      const absl::StatusOr<int32_t> id = IdOf(id_value, "model.vocab");
      if (!id.ok()) return id.status();
      if (absl::Status status = spec_.vocabulary.Set(
              *id, piece, ByteLevelDecode(piece).value_or(piece), PieceKind::kNormal);
          !status.ok()) {
        return status;
      }
    }
    return ReadMerges(Field(model, "merges"));
  }

  // Each merge is a string "left right" or, in newer files, a pair.
  absl::Status ReadMerges(const Json& merges) {
    if (!merges.is_array()) return WrongField("model.merges", "an array");
    for (const Json& merge : merges) {
      if (merge.is_string()) {
        const std::string_view both = merge.get_ref<const std::string&>();
        const size_t space = both.find(' ');
        if (space == std::string_view::npos ||
            both.find(' ', space + 1) != std::string_view::npos) {
          return WrongField("model.merges", "two pieces with a space between");
        }
        spec_.merges.emplace_back(both.substr(0, space), both.substr(space + 1));
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        spec_.merges.emplace_back(merge[0].get_ref<const std::string&>(),
                                  merge[1].get_ref<const std::string&>());
      } else {
        return WrongField("model.merges", "strings or pairs of strings");
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadAddedTokens() {
    const Json& added = Field(root_, "added_tokens");
    if (added.is_null()) return absl::OkStatus();
    if (!added.is_array()) return WrongField("added_tokens", "an array");
    for (const Json& token : added) {
      const absl::StatusOr<int32_t> id = IdOf(Field(token, "id"), "added_tokens.id");
      if (!id.ok()) return id.status();
      const absl::StatusOr<std::string> content = StringField(token, "content");
      if (!content.ok()) return content.status();
      if (content->empty()) return WrongField("added_tokens.content", "a string");
      const absl::StatusOr<bool> special = BoolField(token, "special", false);
      if (!special.ok()) return special.status();
      const absl::StatusOr<bool> normalized = BoolField(token, "normalized", !*special);
      if (!normalized.ok()) return normalized.status();
      for (const char* name : {"single_word", "lstrip", "rstrip"}) {
        const absl::StatusOr<bool> flag = BoolField(token, name, false);
        if (!flag.ok()) return flag.status();
        // Special tokens are not looked for in text, so for them the flags mean nothing.
        if (*flag && !*special) {
          return Unsupported(Concat("added token '", *content, "' with ", name));
        }
      }
      const Vocabulary& vocabulary = spec_.vocabulary;
      if (vocabulary.Find(*content).value_or(*id) != *id ||
          (vocabulary.Contains(*id) && !vocabulary.piece(*id).empty() &&
           vocabulary.piece(*id) != *content)) {
        return absl::InvalidArgumentError(
            Concat("added_tokens: '", *content, "' has id ", *id,
                   ", but the vocabulary says otherwise of the one or the other"));
      }
      if (*normalized) spec_.normalized_added_ids.insert(*id);
      if (absl::Status status = spec_.vocabulary.Set(
              *id, *content, *content, *special ? PieceKind::kControl : PieceKind::kUserDefined);
          !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadNormalizer() {
    for (const Json* one : Flatten(Field(root_, "normalizer"), "normalizers")) {
      const Json& type = Field(*one, "type");
      if (type != "NFC") return Unsupported(Concat("normalizer ", NameOf(type)));
      spec_.nfc = true;
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer() {
    bool byte_level = false;
    const auto components = Flatten(Field(root_, "pre_tokenizer"), "pretokenizers");
    for (const Json* one : components) {
      if (byte_level) return Unsupported("a pre-tokenizer after ByteLevel");
      const Json& type = Field(*one, "type");
      absl::Status status;
      if (type == "Split") {
        status = AddSplit(*one);
      } else if (type == "Digits") {
        status = AddDigits(*one);
      } else if (type == "ByteLevel") {
        byte_level = true;
        status = AddByteLevel(*one, /*alone=*/components.size() == 1);
      } else {
        status = Unsupported(Concat("pre-tokenizer ", NameOf(type)));
      }
      if (!status.ok()) return status;
    }
    return byte_level ? absl::OkStatus() : Unsupported("a BPE without the ByteLevel pre-tokenizer");
  }

  absl::Status AddSplit(const Json& split) {
    const Json& pattern = Field(split, "pattern");
    const Json& text = Field(pattern, "String");
    const Json& expression = Field(pattern, "Regex");
    if (!text.is_string() && !expression.is_string()) {
      return WrongField("pre_tokenizer.pattern", "a String or a Regex");
    }
    absl::StatusOr<Regex> regex = text.is_string()
                                      ? Regex::Literal(text.get_ref<const std::string&>())
                                      : Regex::Compile(expression.get_ref<const std::string&>());
    if (!regex.ok()) return regex.status();
    const absl::StatusOr<bool> invert = BoolField(split, "invert", false);
    if (!invert.ok()) return invert.status();
    const Json& behavior = Field(split, "behavior");
    if (behavior == "Isolated") {
      spec_.pre_tokenizer.AddSplit(*std::move(regex));
    } else if (behavior == "Removed") {
      // Inverted, the matches are the pieces and what lies between them is dropped.
      spec_.pre_tokenizer.AddSplit(*std::move(regex), /*keep_matches=*/*invert,
                                   /*keep_gaps=*/!*invert);
    } else {
      return Unsupported(Concat("split behavior ", NameOf(behavior)));
    }
    return absl::OkStatus();
  }

  absl::Status AddDigits(const Json& digits) {
    const absl::StatusOr<bool> individual = BoolField(digits, "individual_digits", false);
    if (!individual.ok()) return individual.status();
    return AddPattern(*individual ? R"(\p{N})" : R"(\p{N}+)");
  }

  absl::Status AddByteLevel(const Json& byte_level, bool alone) {
    const absl::StatusOr<bool> prefix_space = BoolField(byte_level, "add_prefix_space", true);
    if (!prefix_space.ok()) return prefix_space.status();
    if (*prefix_space && !alone) return Unsupported("add_prefix_space after another pre-tokenizer");
    spec_.add_prefix_space = *prefix_space;
    const absl::StatusOr<bool> use_regex = BoolField(byte_level, "use_regex", true);
    if (!use_regex.ok()) return use_regex.status();
    return *use_regex ? AddPattern(kGpt2Pattern) : absl::OkStatus();
  }

  absl::Status AddPattern(std::string_view pattern) {
    absl::StatusOr<Regex> regex = Regex::Compile(pattern);
    if (!regex.ok()) return regex.status();
    spec_.pre_tokenizer.AddSplit(*std::move(regex));
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor() {
    for (const Json* one : Flatten(Field(root_, "post_processor"), "processors")) {
      const Json& type = Field(*one, "type");
      if (type == "ByteLevel") continue;  // trims offsets, which we do not give
      if (type != "TemplateProcessing") {
        return Unsupported(Concat("post-processor ", NameOf(type)));
      }
      if (absl::Status status = ReadTemplate(*one); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // A template for one text: special tokens, then the text.
  absl::Status ReadTemplate(const Json& processor) {
    bool after_text = false;
    for (const Json& item : Field(processor, "single")) {
      if (!Field(item, "Sequence").is_null()) {
        after_text = true;
        continue;
      }
      if (after_text) return Unsupported("a template with tokens after the text");
      const absl::StatusOr<std::string> name = StringField(Field(item, "SpecialToken"), "id");
      if (!name.ok()) return name.status();
      const Json& tokens = Field(Field(processor, "special_tokens"), name->c_str());
      for (const Json& id_value : Field(tokens, "ids")) {
        const absl::StatusOr<int32_t> id = IdOf(id_value, "post_processor.special_tokens.ids");
        if (!id.ok()) return id.status();
        if (!spec_.vocabulary.Contains(*id)) {
          return WrongField("post_processor.special_tokens.ids", "an id of the vocabulary");
        }
        spec_.rules.prefix.push_back(*id);
      }
    }
    return absl::OkStatus();
  }

  const Json& root_;
  ByteLevelBpeSpec& spec_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(std::string_view json,
                                                              const TokenizerConfig& config) {
  const Json root = Json::parse(json, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return absl::InvalidArgumentError("tokenizer.json: not a JSON object");
  ByteLevelBpeSpec spec;
  if (absl::Status status = Reader(root, &spec).Read(config); !status.ok()) return status;
  return ByteLevelBpe::Create(std::move(spec));
}

}  // namespace espalier
