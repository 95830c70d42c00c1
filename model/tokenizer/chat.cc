// EncodeChat: the ids of a conversation, written as its model's chat template writes it.
#include <string>
#include <string_view>

#include "model/tokenizer/text.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

namespace espalier {
namespace {

// What Jinja's `trim` drops, which is what Python's str.strip() does.
bool IsPythonSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view Trim(std::string_view text) {
  size_t begin = 0;
  size_t end = 0;  // after the last character that stays
  bool started = false;
  for (size_t at = 0; at < text.size();) {
    const size_t valid_bytes = ValidCharBytes(text.substr(at));
    const size_t bytes = valid_bytes > 0 ? valid_bytes : 1;
    if (valid_bytes == 0 || !IsPythonSpace(DecodeChar(text.substr(at, bytes)))) {
      if (!started) begin = at;
      started = true;
      end = at + bytes;
    }
    at += bytes;
  }
  return text.substr(begin, end - begin);
}

// The special tokens of a format; the text between two of them is encoded as one.
class TurnWriter {
 public:
  TurnWriter(const Tokenizer& tokenizer, ChatFormat format, std::vector<int32_t>* ids)
      : tokenizer_(tokenizer), format_(format), ids_(ids) {}

  // False when the vocabulary lacks one of the format's special tokens.
  bool FindTokens() {
    return format_ == ChatFormat::kChatMl
               ? Find("<|im_start|>", &begin_) && Find("<|im_end|>", &end_)
               : Find("<|start_header_id|>", &begin_) && Find("<|end_header_id|>", &header_end_) &&
                     Find("<|eot_id|>", &end_);
  }

  void OpenTurn(std::string_view role, std::string_view content) {
    ids_->push_back(begin_);
    if (format_ == ChatFormat::kChatMl) {
      Text(Concat(role, "\n", content));
    } else {
      Text(role);
      ids_->push_back(header_end_);
      Text(Concat("\n\n", content));
    }
  }

  void CloseTurn() {
    ids_->push_back(end_);
    if (format_ == ChatFormat::kChatMl) Text("\n");
  }

 private:
  bool Find(std::string_view piece, int32_t* id) const {
    const std::optional<int32_t> found = tokenizer_.FindPiece(piece);
    if (!found.has_value() || !tokenizer_.IsSpecial(*found)) return false;
    *id = *found;
    return true;
  }
  void Text(std::string_view text) {
    const std::vector<int32_t> ids = tokenizer_.Encode(text, /*at_root=*/false);
    ids_->insert(ids_->end(), ids.begin(), ids.end());
  }

  const Tokenizer& tokenizer_;
  const ChatFormat format_;
  std::vector<int32_t>* const ids_;
  int32_t begin_ = -1;
  int32_t header_end_ = -1;
  int32_t end_ = -1;
};

}  // namespace

std::optional<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                               std::span<const ChatMessage> messages, bool at_root,
                                               bool add_generation_prompt) {
  const ChatTemplate chat = tokenizer.chat_template();
  if (chat.format == ChatFormat::kNone) return std::nullopt;
  std::vector<int32_t> ids;
  TurnWriter writer(tokenizer, chat.format, &ids);
  if (!writer.FindTokens()) return std::nullopt;

  const auto content = [&](std::string_view text) {
    return chat.trims_content ? Trim(text) : text;
  };
  // What a sequence starts with belongs to the root; messages further down the tree continue one.
  if (at_root) {
    if (chat.starts_with_bos && tokenizer.bos().has_value()) ids.push_back(*tokenizer.bos());
    if (chat.default_system.has_value() && !messages.empty() && messages.front().role != "system") {
      writer.OpenTurn("system", Concat(chat.system_preamble, *chat.default_system));
      writer.CloseTurn();
    }
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool first_system = at_root && i == 0 && messages[i].role == "system";
    writer.OpenTurn(messages[i].role,
                    Concat(first_system ? chat.system_preamble : "", content(messages[i].content)));
    writer.CloseTurn();
  }
  if (add_generation_prompt) writer.OpenTurn("assistant", "");
  return ids;
}

std::vector<int32_t> EncodeTurnEnd(const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  TurnWriter writer(tokenizer, tokenizer.chat_format(), &ids);
  if (tokenizer.chat_format() != ChatFormat::kNone && writer.FindTokens()) writer.CloseTurn();
  return ids;
}

}  // namespace espalier
