// Text to token ids and back. Immutable after loading: any thread may call it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

enum class ChatFormat { kNone, kChatMl, kLlama3 };

// What a model's own chat template does beyond its format.
struct ChatTemplate {
  ChatFormat format = ChatFormat::kNone;
  bool starts_with_bos = false;  // at the root
  bool trims_content = false;    // white space around every content is dropped
  // The system message of a conversation that brings none.
  std::optional<std::string> default_system = {};
  std::string system_preamble = {};  // stands before the content of every first system message
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of plain text. Special tokens never come out of text. `at_root` adds what the model puts at
  // the start of a sequence (BOS, sentencepiece's dummy prefix). Any bytes are accepted.
  virtual std::vector<int32_t> Encode(std::string_view text, bool at_root) const = 0;

  // The bytes that the token adds to a text; empty for special tokens unless `special`, which
  // gives their written form. Out-of-range ids give no bytes. Concatenated over a sequence this
  // is the byte interface: Bytes(Encode(s)) == s for any s, save a dummy prefix's space.
  virtual std::string TokenBytes(int32_t id, bool special) const = 0;
  std::string Decode(std::span<const int32_t> ids, bool special) const;

  virtual int vocab_size() const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // The id whose written form is exactly `piece`, special tokens included.
  virtual std::optional<int32_t> FindPiece(std::string_view piece) const = 0;
  virtual std::optional<int32_t> bos() const = 0;
  virtual std::vector<int32_t> eos() const = 0;  // every end-of-generation id
  virtual ChatFormat chat_format() const = 0;
  virtual ChatTemplate chat_template() const { return {.format = chat_format()}; }
};

// Ids of a conversation, ending where the assistant's next turn begins when
// `add_generation_prompt`. Contents are encoded as plain text, so they cannot inject special
// tokens. Empty when the model has no chat format that we know.
std::optional<std::vector<int32_t>> EncodeChat(const Tokenizer& tokenizer,
                                               std::span<const ChatMessage> messages, bool at_root,
                                               bool add_generation_prompt);

// What closes an assistant's turn that was left open, as a generation leaves it: a generation does
// not keep the token that stopped it. Empty without a chat format.
std::vector<int32_t> EncodeTurnEnd(const Tokenizer& tokenizer);

}  // namespace espalier
