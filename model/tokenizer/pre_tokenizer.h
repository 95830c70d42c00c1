// Cuts a text into the pieces that byte-pair encoding never merges across: a chain of regular
// expressions, each applied to the pieces of the one before.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

#include "model/tokenizer/regex.h"

namespace espalier {

class PreTokenizer {
 public:
  // Pieces are the matches, or what lies between them, or both (the usual "isolated").
  void AddSplit(Regex regex, bool keep_matches = true, bool keep_gaps = true) {
    splits_.push_back({std::move(regex), keep_matches, keep_gaps});
  }

  // The pieces of valid UTF-8, in order; none is empty. They point into `text`.
  std::vector<std::string_view> Split(std::string_view text) const;

 private:
  struct Rule {
    Regex regex;
    bool keep_matches;
    bool keep_gaps;
  };
  std::vector<Rule> splits_;
};

// GPT-2's pattern, which the ByteLevel pre-tokenizer stands for.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace espalier
