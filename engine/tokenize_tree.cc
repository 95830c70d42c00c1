#include "engine/tokenize_tree.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"

namespace espalier {
namespace {

bool HasMessages(const PromptNode& node) {
  return std::holds_alternative<std::vector<ChatMessage>>(node.content);
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> TokenizeNode(const PromptNode& node, int index,
                                                  const Tokenizer& tokenizer, bool at_root,
                                                  bool add_generation_prompt) {
  if (const auto* text = std::get_if<std::string>(&node.content)) {
    return tokenizer.Encode(*text, at_root);
  }
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&node.content)) return *ids;
  std::optional<std::vector<int32_t>> ids = EncodeChat(
      tokenizer, std::get<std::vector<ChatMessage>>(node.content), at_root, add_generation_prompt);
  if (!ids) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nodes[", index, "].messages: this model has no chat format that the server knows"));
  }
  return *std::move(ids);
}

absl::StatusOr<TokenizedTree> TokenizeTree(const TreeRequest& request, const Tokenizer& tokenizer) {
  const std::vector<PromptNode>& nodes = request.nodes;
  std::vector<char> opens_turn(nodes.size(), 0);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i].generation) opens_turn[i] = 1;
    if (nodes[i].parent >= 0 && !HasMessages(nodes[i])) opens_turn[nodes[i].parent] = 1;
  }
  TokenizedTree tree;
  tree.ids.reserve(nodes.size());
  std::vector<char>& turn_is_open = tree.turn_is_open;
  turn_is_open.assign(nodes.size(), 0);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const PromptNode& node = nodes[i];
    const bool continues_turn = node.parent >= 0 && turn_is_open[node.parent] != 0;
    absl::StatusOr<std::vector<int32_t>> ids =
        TokenizeNode(node, static_cast<int>(i), tokenizer, node.parent < 0, opens_turn[i] != 0);
    if (!ids.ok()) return ids.status();
    if (HasMessages(node)) {
      turn_is_open[i] = opens_turn[i];
      if (continues_turn) {
        const std::vector<int32_t> end = EncodeTurnEnd(tokenizer);
        ids->insert(ids->begin(), end.begin(), end.end());
      }
    } else {
      turn_is_open[i] = continues_turn;
    }
    if (ids->empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("nodes[", i, "] comes to 0 tokens; must be at least 1"));
    }
    tree.ids.push_back(*std::move(ids));
  }
  return tree;
}

absl::StatusOr<TokenizedJudge> TokenizeJudge(const Judge& judge, int index,
                                             const Tokenizer& tokenizer, bool turn_is_open) {
  const auto empty = [index](const std::string& field) {
    return absl::InvalidArgumentError(absl::StrCat("nodes[", index, "].generation.best_of_n.judge.",
                                                   field,
                                                   " comes to 0 tokens; must be at least 1"));
  };
  PromptNode prompt;
  prompt.content = judge.prompt;
  absl::StatusOr<std::vector<int32_t>> ids =
      TokenizeNode(prompt, index, tokenizer, /*at_root=*/false, /*add_generation_prompt=*/true);
  if (!ids.ok()) return ids.status();
  if (ids->empty()) return empty("prompt");
  TokenizedJudge tokenized;
  if (HasMessages(prompt) && turn_is_open) tokenized.prompt = EncodeTurnEnd(tokenizer);
  tokenized.prompt.insert(tokenized.prompt.end(), ids->begin(), ids->end());
  for (size_t i = 0; i < judge.answers.size(); ++i) {
    tokenized.answers.push_back(tokenizer.Encode(judge.answers[i].text, /*at_root=*/false));
    if (tokenized.answers.back().empty()) return empty(absl::StrCat("answers[", i, "].text"));
  }
  return tokenized;
}

}  // namespace espalier
