#include "engine/tree/answer_pattern.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace espalier {
namespace {

constexpr int64_t kMaxCompiledBytes = 1 << 20;

}  // namespace

AnswerPattern::AnswerPattern(std::unique_ptr<const RE2> expression, int group)
    : expression_(std::move(expression)), group_(group) {}

absl::StatusOr<AnswerPattern> AnswerPattern::Compile(const std::string& pattern) {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_max_mem(kMaxCompiledBytes);
  // By itself first: an unbalanced pattern must not be completed by what is put around it.
  const RE2 alone(pattern, options);
  if (!alone.ok()) return absl::InvalidArgumentError(absl::string_view(alone.error()));
  // The greedy beginning leaves the match that begins last, found in one pass.
  auto expression = std::make_unique<const RE2>(absl::StrCat("(?s:.*)(", pattern, ")"), options);
  if (!expression->ok()) return absl::InvalidArgumentError(absl::string_view(expression->error()));
  return AnswerPattern(std::move(expression), alone.NumberOfCapturingGroups() > 0 ? 2 : 1);
}

std::optional<std::string> AnswerPattern::Find(std::string_view text) const {
  re2::StringPiece groups[3];
  const re2::StringPiece input(text.data(), text.size());
  if (!expression_->Match(input, 0, text.size(), RE2::ANCHOR_START, groups, group_ + 1)) {
    return std::nullopt;
  }
  return std::string(groups[group_].data(), groups[group_].size());
}

}  // namespace espalier
