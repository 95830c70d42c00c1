#include "engine/tree/text_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "engine/utf8.h"
#include "kernels/core/check.h"

namespace espalier {

TextStream::TextStream(const Tokenizer* tokenizer, const std::vector<std::string>* stop,
                       bool include_stop_str_in_output)
    : tokenizer_(tokenizer),
      stop_(stop),
      include_stop_(include_stop_str_in_output),
      matcher_(stop) {}

TextStream::Output TextStream::Push(int32_t token, bool may_stop) {
  const std::string bytes = tokenizer_->TokenBytes(token, /*special=*/false);
  int64_t end = released_ + static_cast<int64_t>(held_.size());
  held_ += bytes;
  token_ends_.push_back(end + static_cast<int64_t>(bytes.size()));
  for (char byte : bytes) {
    ++end;
    const int match = matcher_.Push(byte);
    if (match >= 0 && may_stop) return Stop(match, end);
  }

  int64_t hold = end - matcher_.pending();
  if (!include_stop_ && hold < end) hold = TokenStart(hold);
  Output output;
  output.text = Release(hold);
  output.tokens_released = tokens_released_;
  output.kept_tokens = tokens_released_ + static_cast<int>(token_ends_.size());
  return output;
}

TextStream::Output TextStream::Stop(int stop_index, int64_t match_end) {
  const auto match_bytes = static_cast<int64_t>((*stop_)[stop_index].size());
  // All tokens but the last end before the match does, so with the stop string all are kept.
  const int64_t cut = include_stop_ ? match_end : TokenStart(match_end - match_bytes);
  Output output;
  output.stop_index = stop_index;
  output.text = ReleaseLast(cut);
  output.kept_tokens =
      include_stop_ ? tokens_released_ + static_cast<int>(token_ends_.size()) : tokens_released_;
  output.tokens_released = output.kept_tokens;
  return output;
}

TextStream::Output TextStream::Finish() {
  Output output;
  output.text = ReleaseLast(released_ + static_cast<int64_t>(held_.size()));
  ESPALIER_CHECK(token_ends_.empty());
  output.tokens_released = tokens_released_;
  output.kept_tokens = tokens_released_;
  return output;
}

TextStream TextStream::Fork() const {
  ESPALIER_CHECK(stop_->empty());
  TextStream fork(tokenizer_, stop_, include_stop_);
  fork.held_ = held_;
  return fork;
}

// A character that begins before `hold` and ends after it stays: what it becomes depends on
// whether the text is cut there.
std::string TextStream::Release(int64_t hold) {
  const std::string_view held = held_;
  const auto limit = static_cast<size_t>(std::max<int64_t>(hold - released_, 0));
  size_t length = 0;
  while (length < limit) {
    const Utf8Unit unit = NextUtf8Unit(held.substr(length));
    if (unit.kind == Utf8Unit::Kind::kIncomplete || length + unit.length > limit) break;
    length += unit.length;
  }
  return ReleaseLast(released_ + static_cast<int64_t>(length));
}

std::string TextStream::ReleaseLast(int64_t end) {
  ESPALIER_CHECK(end >= released_);
  const auto length = static_cast<size_t>(end - released_);
  std::string text;
  AppendAsUtf8(std::string_view(held_).substr(0, length), &text);
  held_.erase(0, length);
  released_ = end;
  ForgetTokensBefore(end);
  return text;
}

void TextStream::ForgetTokensBefore(int64_t offset) {
  while (!token_ends_.empty() && token_ends_.front() <= offset) {
    tokens_released_end_ = token_ends_.front();
    token_ends_.pop_front();
    ++tokens_released_;
  }
}

int64_t TextStream::TokenStart(int64_t offset) const {
  const auto next = std::ranges::upper_bound(token_ends_, offset);
  return next == token_ends_.begin() ? tokens_released_end_ : *std::prev(next);
}

}  // namespace espalier
