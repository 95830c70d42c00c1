#include "engine/validate.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <variant>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/tree/answer_pattern.h"
#include "engine/utf8.h"

namespace espalier {
namespace {

// "nodes[3].generation.n is 300; must be from 1 to 256". Built only for what is refused.
template <typename Value, typename... Rule>
absl::Status Refuse(int node, absl::string_view field, const Value& value, const Rule&... rule) {
  return absl::InvalidArgumentError(
      absl::StrCat("nodes[", node, "].", field, " is ", value, "; must be ", rule...));
}

absl::Status CheckLabel(absl::string_view field, absl::string_view label, const Limits& limits) {
  if (label.size() > static_cast<size_t>(limits.max_label_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " is ", label.size(), " bytes; must be at most ", limits.max_label_bytes));
  }
  return absl::OkStatus();
}

// What goes back to the client as text must be text.
absl::Status CheckEchoed(absl::string_view field, const std::string& text) {
  if (IsValidUtf8(text)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is not valid UTF-8"));
}

absl::Status CheckToken(int node, absl::string_view field, size_t index, int32_t token,
                        const ModelFacts& model) {
  if (token >= 0 && token < model.vocab_size) return absl::OkStatus();
  return Refuse(node, absl::StrCat(field, "[", index, "]"), token, "from 0 to ",
                model.vocab_size - 1, ", the vocabulary's last");
}

absl::Status CheckCount(int node, absl::string_view field, size_t count, int limit) {
  if (count <= static_cast<size_t>(limit)) return absl::OkStatus();
  return Refuse(node, field, absl::StrCat(count, " entries"), "at most ", limit);
}

absl::Status CheckRange(int node, absl::string_view field, float value, float low, float high) {
  // Negated so that a NaN fails.
  if (!(value >= low && value <= high)) {
    return Refuse(node, field, value, "from ", low, " to ", high);
  }
  return absl::OkStatus();
}

absl::Status CheckAboveZero(int node, absl::string_view field, float value, float high) {
  if (!(value > 0 && value <= high)) {
    return Refuse(node, field, value, "greater than 0 and at most ", high);
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(int node, const SamplingParams& s, const ModelFacts& model,
                           const Limits& limits) {
  absl::Status status = CheckRange(node, "generation.temperature", s.temperature, 0, 100);
  status.Update(CheckAboveZero(node, "generation.top_p", s.top_p, 1));
  status.Update(CheckRange(node, "generation.min_p", s.min_p, 0, 1));
  status.Update(CheckAboveZero(node, "generation.repetition_penalty", s.repetition_penalty, 10));
  status.Update(CheckRange(node, "generation.frequency_penalty", s.frequency_penalty, -2, 2));
  status.Update(CheckRange(node, "generation.presence_penalty", s.presence_penalty, -2, 2));
  status.Update(
      CheckCount(node, "generation.logit_bias", s.logit_bias.size(), limits.max_logit_bias));
  if (!status.ok()) return status;
  if (s.top_k < -1) return Refuse(node, "generation.top_k", s.top_k, "at least 0, or -1 for off");
  for (const auto& [token, bias] : s.logit_bias) {
    if (token < 0 || token >= model.vocab_size) {
      return Refuse(node, "generation.logit_bias key", token, "from 0 to ", model.vocab_size - 1,
                    ", the vocabulary's last");
    }
    status = CheckRange(node, absl::StrCat("generation.logit_bias[", token, "]"), bias, -100, 100);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckStops(int node, const Generation& g, const ModelFacts& model,
                        const Limits& limits) {
  absl::Status status = CheckCount(node, "generation.stop", g.stop.size(), limits.max_stop_strings);
  status.Update(CheckCount(node, "generation.stop_token_ids", g.stop_token_ids.size(),
                           limits.max_stop_token_ids));
  if (!status.ok()) return status;
  for (size_t i = 0; i < g.stop.size(); ++i) {
    const std::string& stop = g.stop[i];
    if (stop.empty() || stop.size() > static_cast<size_t>(limits.max_stop_bytes)) {
      return Refuse(node, absl::StrCat("generation.stop[", i, "]"),
                    absl::StrCat(stop.size(), " bytes"), "from 1 to ", limits.max_stop_bytes);
    }
    if (!IsValidUtf8(stop)) {
      return CheckEchoed(absl::StrCat("nodes[", node, "].generation.stop[", i, "]"), stop);
    }
  }
  for (size_t i = 0; i < g.stop_token_ids.size(); ++i) {
    status = CheckToken(node, "generation.stop_token_ids", i, g.stop_token_ids[i], model);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckJudge(int node, const Judge& judge, const ModelFacts& model,
                        const Limits& limits) {
  constexpr absl::string_view kField = "generation.best_of_n.judge";
  PromptNode prompt;
  prompt.content = judge.prompt;
  if (absl::Status status = ValidateContent(node, prompt, model, limits); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("nodes[", node, "].", kField, ".prompt: ", status.message()));
  }
  const size_t count = judge.answers.size();
  if (count < 2 || count > static_cast<size_t>(limits.max_judge_answers)) {
    return Refuse(node, absl::StrCat(kField, ".answers"), absl::StrCat(count, " entries"),
                  "from 2 to ", limits.max_judge_answers);
  }
  for (size_t i = 0; i < count; ++i) {
    const Judge::Answer& answer = judge.answers[i];
    const std::string field = absl::StrCat(kField, ".answers[", i, "]");
    if (answer.text.empty() || answer.text.size() > static_cast<size_t>(limits.max_stop_bytes)) {
      return Refuse(node, field + ".text", absl::StrCat(answer.text.size(), " bytes"), "from 1 to ",
                    limits.max_stop_bytes);
    }
    for (size_t j = 0; j < count; ++j) {
      if (i == j || !absl::StartsWith(judge.answers[j].text, answer.text)) continue;
      return Refuse(node, field + ".text", "the beginning of another answer", "a text of its own");
    }
    absl::Status status = CheckRange(node, field + ".value", answer.value, -1e6f, 1e6f);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckBestOfN(int node, const Generation& g, const BestOfN& best,
                          const ModelFacts& model, const Limits& limits) {
  if (best.judge) {
    absl::Status status = CheckJudge(node, *best.judge, model, limits);
    if (!status.ok()) return status;
  }
  if (best.across_paths) return absl::OkStatus();  // CheckAcrossPaths knows how many paths
  if (best.keep < 1 || best.keep > g.n) {
    return Refuse(node, "generation.best_of_n.keep", best.keep, "from 1 to ", g.n,
                  ", the node's n");
  }
  return absl::OkStatus();
}

// What draws, or changes the logits, or cuts the text, and is set. Empty: nothing.
absl::string_view ChangedSampling(const Generation& g) {
  const SamplingParams& s = g.sampling;
  const SamplingParams unset;
  if (s.temperature != unset.temperature) return "temperature";
  if (s.top_k > 0) return "top_k";
  if (s.top_p != unset.top_p) return "top_p";
  if (s.min_p != unset.min_p) return "min_p";
  if (s.repetition_penalty != unset.repetition_penalty) return "repetition_penalty";
  if (s.frequency_penalty != unset.frequency_penalty) return "frequency_penalty";
  if (s.presence_penalty != unset.presence_penalty) return "presence_penalty";
  if (!s.logit_bias.empty()) return "logit_bias";
  if (!g.stop.empty()) return "stop";
  if (g.n != 1) return "n";
  return "";
}

// Beam search chooses by raw log-probabilities: what would change them, or draw, is refused.
absl::Status CheckBeamSearch(int node, const Generation& g, const BeamSearch& beam,
                             const ModelFacts& model, const Limits& limits) {
  if (beam.width < 1 || beam.width > limits.max_beam_width) {
    return Refuse(node, "generation.beam_search.width", beam.width, "from 1 to ",
                  limits.max_beam_width);
  }
  if (beam.num_return < 1 || beam.num_return > beam.width) {
    return Refuse(node, "generation.beam_search.num_return", beam.num_return, "from 1 to ",
                  beam.width, ", the search's width");
  }
  absl::Status status =
      CheckRange(node, "generation.beam_search.length_penalty", beam.length_penalty, -10, 10);
  status.Update(
      CheckRange(node, "generation.beam_search.diversity_penalty", beam.diversity_penalty, 0, 100));
  if (!status.ok()) return status;
  if (beam.groups < 1 || beam.width % beam.groups != 0) {
    return Refuse(node, "generation.beam_search.groups", beam.groups, "a divisor of ", beam.width,
                  ", the search's width");
  }
  if (beam.groups == 1 && beam.diversity_penalty != 0) {
    return Refuse(node, "generation.beam_search.diversity_penalty", beam.diversity_penalty,
                  "0 with 1 group");
  }
  const int stops = static_cast<int>(g.stop_token_ids.size()) + (g.ignore_eos ? 0 : model.num_eos);
  if (beam.width + stops > limits.max_beam_candidates) {
    return Refuse(node, "generation.beam_search.width", beam.width, "at most ",
                  std::max(limits.max_beam_candidates - stops, 0), " with ", stops,
                  " tokens that end a branch");
  }
  const absl::string_view changed = ChangedSampling(g);
  if (changed.empty()) return absl::OkStatus();
  return Refuse(node, absl::StrCat("generation.", changed), "set", "unset with beam_search");
}

absl::Status CheckMajorityVote(int node, const MajorityVote& vote, const Limits& limits) {
  constexpr absl::string_view kField = "generation.majority_vote.answer_pattern";
  const std::string& pattern = vote.answer_pattern;
  if (pattern.empty() || pattern.size() > static_cast<size_t>(limits.max_pattern_bytes)) {
    return Refuse(node, kField, absl::StrCat(pattern.size(), " bytes"), "from 1 to ",
                  limits.max_pattern_bytes);
  }
  if (!IsValidUtf8(pattern)) {
    return CheckEchoed(absl::StrCat("nodes[", node, "].", kField), pattern);
  }
  const absl::StatusOr<AnswerPattern> compiled = AnswerPattern::Compile(pattern);
  if (compiled.ok()) return absl::OkStatus();
  return Refuse(node, kField, absl::StrCat("\"", pattern, "\""),
                "a regular expression of RE2: ", compiled.status().message());
}

// A choice's tokens are given: what would choose, bend or end them is refused.
absl::Status CheckChoices(int node, const Generation& g, const Choices& choices,
                          const Limits& limits) {
  absl::string_view changed = ChangedSampling(g);
  if (g.max_tokens) changed = "max_tokens";
  if (g.min_tokens != 0) changed = "min_tokens";
  if (!g.stop_token_ids.empty()) changed = "stop_token_ids";
  if (!g.regex.empty()) changed = "regex";
  if (!changed.empty()) {
    return Refuse(node, absl::StrCat("generation.", changed), "set", "unset with choices");
  }
  constexpr absl::string_view kField = "generation.choices.texts";
  if (choices.texts.empty()) {
    return Refuse(node, kField, "0 entries", "at least 1");
  }
  absl::Status status = CheckCount(node, kField, choices.texts.size(), limits.max_choices);
  if (!status.ok()) return status;
  size_t bytes = 0;
  for (size_t i = 0; i < choices.texts.size(); ++i) {
    if (!IsValidUtf8(choices.texts[i])) {
      return CheckEchoed(absl::StrCat("nodes[", node, "].", kField, "[", i, "]"), choices.texts[i]);
    }
    bytes += choices.texts[i].size();
  }
  if (bytes <= limits.max_text_bytes) return absl::OkStatus();
  return Refuse(node, kField, absl::StrCat(bytes, " bytes together"), "at most ",
                limits.max_text_bytes);
}

// That it can be compiled is found out by doing so.
absl::Status CheckRegex(int node, const Generation& g, const Limits& limits) {
  if (g.regex.empty()) return absl::OkStatus();
  constexpr absl::string_view kField = "generation.regex";
  if (g.regex.size() > static_cast<size_t>(limits.max_regex_bytes)) {
    return Refuse(node, kField, absl::StrCat(g.regex.size(), " bytes"), "at most ",
                  limits.max_regex_bytes);
  }
  if (!IsValidUtf8(g.regex)) {
    return CheckEchoed(absl::StrCat("nodes[", node, "].", kField), g.regex);
  }
  if (std::holds_alternative<BeamSearch>(g.search)) {
    return Refuse(node, kField, "set", "unset with beam_search");
  }
  if (g.ignore_eos) return Refuse(node, "generation.ignore_eos", "set", "unset with regex");
  return absl::OkStatus();
}

absl::Status CheckSearch(int node, const Generation& g, const ModelFacts& model,
                         const Limits& limits) {
  if (const auto* best = std::get_if<BestOfN>(&g.search)) {
    return CheckBestOfN(node, g, *best, model, limits);
  }
  if (const auto* beam = std::get_if<BeamSearch>(&g.search)) {
    return CheckBeamSearch(node, g, *beam, model, limits);
  }
  if (const auto* vote = std::get_if<MajorityVote>(&g.search)) {
    return CheckMajorityVote(node, *vote, limits);
  }
  if (const auto* choices = std::get_if<Choices>(&g.search)) {
    return CheckChoices(node, g, *choices, limits);
  }
  return absl::OkStatus();
}

absl::Status CheckGeneration(int node, const Generation& g, const ModelFacts& model,
                             const Limits& limits) {
  if (g.n < 1 || g.n > limits.max_n) {
    return Refuse(node, "generation.n", g.n, "from 1 to ", limits.max_n);
  }
  if (g.max_tokens && (*g.max_tokens < 1 || *g.max_tokens > model.max_context)) {
    return Refuse(node, "generation.max_tokens", *g.max_tokens, "from 1 to ", model.max_context,
                  ", the context");
  }
  const int max_tokens = g.max_tokens.value_or(kDefaultMaxTokens);
  if (g.min_tokens < 0 || g.min_tokens > max_tokens) {
    return Refuse(node, "generation.min_tokens", g.min_tokens, "from 0 to ", max_tokens,
                  ", the node's max_tokens");
  }
  if (g.logprobs && (*g.logprobs < 0 || *g.logprobs > limits.max_logprobs)) {
    return Refuse(node, "generation.logprobs", *g.logprobs, "from 0 to ", limits.max_logprobs);
  }
  absl::Status status = CheckSampling(node, g.sampling, model, limits);
  status.Update(CheckStops(node, g, model, limits));
  status.Update(CheckSearch(node, g, model, limits));
  status.Update(CheckRegex(node, g, limits));
  return status;
}

absl::Status CheckMessages(int node, const std::vector<ChatMessage>& messages,
                           const ModelFacts& model, const Limits& limits) {
  if (model.chat_format == ChatFormat::kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("nodes[", node, "].messages is set; the model has no chat format"));
  }
  if (messages.empty() || messages.size() > static_cast<size_t>(limits.max_messages)) {
    return Refuse(node, "messages", absl::StrCat(messages.size(), " entries"), "from 1 to ",
                  limits.max_messages);
  }
  size_t bytes = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      // Not echoed: it may be long, and no text.
      return absl::InvalidArgumentError(absl::StrCat("nodes[", node, "].messages[", i,
                                                     "].role is unknown, ", message.role.size(),
                                                     " bytes; must be system, user or assistant"));
    }
    bytes += message.content.size();
  }
  if (bytes > limits.max_text_bytes) {
    return Refuse(node, "messages", absl::StrCat(bytes, " bytes together"), "at most ",
                  limits.max_text_bytes);
  }
  return absl::OkStatus();
}

// Parents, depth, width, and what each node is for.
absl::Status CheckStructure(const std::vector<PromptNode>& nodes, const Limits& limits) {
  const int count = static_cast<int>(nodes.size());
  std::vector<int> depth(count, 1);
  std::vector<bool> has_children(count, false);
  for (int i = 0; i < count; ++i) {
    const int parent = nodes[i].parent;
    if (i == 0 ? parent != -1 : parent < 0 || parent >= i) {
      return Refuse(i, "parent", parent,
                    i == 0 ? "-1, the root's" : "the index of an earlier node");
    }
    if (i > 0) {
      depth[i] = depth[parent] + 1;
      has_children[parent] = true;
    }
    if (depth[i] > limits.max_depth) {
      return Refuse(i, "depth", depth[i], "at most ", limits.max_depth);
    }
  }
  for (int i = 0; i < count; ++i) {
    if (nodes[i].score && (i == 0 || nodes[i].generation || has_children[i])) {
      return Refuse(i, "score", "set",
                    "unset on a node without a parent, with a generation or with children");
    }
    if (!nodes[i].score && !nodes[i].generation && !has_children[i]) {
      return absl::InvalidArgumentError(absl::StrCat(
          "nodes[", i, "] has no generation, no score and no children; must have one"));
    }
  }
  return absl::OkStatus();
}

// A search across paths knows how many there are: as many as the one above keeps.
absl::Status CheckAcrossPaths(const std::vector<PromptNode>& nodes) {
  for (int i = 0; i < static_cast<int>(nodes.size()); ++i) {
    if (!nodes[i].generation || !IsAcrossPaths(*nodes[i].generation)) continue;
    int above = nodes[i].parent;
    while (above >= 0 && !nodes[above].generation) above = nodes[above].parent;
    if (above >= 0 && !IsAcrossPaths(*nodes[above].generation)) {
      return Refuse(i, "generation.best_of_n.across_paths", "set",
                    absl::StrCat("unset below nodes[", above, "], which generates without it"));
    }
    const int64_t paths = above < 0 ? 1 : BranchesKept(*nodes[above].generation);
    const int64_t most = paths * nodes[i].generation->n;
    const int64_t keep = BranchesKept(*nodes[i].generation);
    if (keep < 1 || keep > most) {
      return Refuse(i, "generation.best_of_n.keep", keep, "from 1 to ", most, ", n on each of ",
                    paths, " paths");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckIds(const std::vector<PromptNode>& nodes, const Limits& limits) {
  std::vector<std::string> ids;
  ids.reserve(nodes.size());
  absl::flat_hash_set<absl::string_view> seen;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const std::string& id = nodes[i].id;
    if (!id.empty()) {
      const std::string field = absl::StrCat("nodes[", i, "].id");
      absl::Status status = CheckLabel(field, id, limits);
      status.Update(CheckEchoed(field, id));
      if (!status.ok()) return status;
    }
    if (!seen.insert(ids.emplace_back(id.empty() ? absl::StrCat(i) : id)).second) {
      return Refuse(static_cast<int>(i), "id", absl::StrCat("\"", ids.back(), "\""),
                    "unique in the tree; an unset id is the node's index");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateContent(int index, const PromptNode& node, const ModelFacts& model,
                             const Limits& limits) {
  if (const auto* text = std::get_if<std::string>(&node.content)) {
    if (text->size() <= limits.max_text_bytes) return absl::OkStatus();
    return Refuse(index, "text", absl::StrCat(text->size(), " bytes"), "at most ",
                  limits.max_text_bytes);
  }
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&node.content)) {
    if (ids->size() > static_cast<size_t>(model.max_context)) {
      return Refuse(index, "token_ids", absl::StrCat(ids->size(), " entries"), "at most ",
                    model.max_context, ", the context");
    }
    for (size_t i = 0; i < ids->size(); ++i) {
      const absl::Status status = CheckToken(index, "token_ids", i, (*ids)[i], model);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  return CheckMessages(index, std::get<std::vector<ChatMessage>>(node.content), model, limits);
}

absl::Status ValidateTree(const TreeRequest& request, const ModelFacts& model,
                          const Limits& limits) {
  const std::vector<PromptNode>& nodes = request.nodes;
  if (nodes.empty() || nodes.size() > static_cast<size_t>(limits.max_nodes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("nodes is ", nodes.size(), " entries; must be from 1 to ", limits.max_nodes));
  }
  absl::Status status = CheckLabel("request_id", request.request_id, limits);
  status.Update(CheckEchoed("request_id", request.request_id));
  status.Update(CheckLabel("cache_salt", request.cache_salt, limits));
  status.Update(CheckStructure(nodes, limits));
  if (!status.ok()) return status;
  status = CheckIds(nodes, limits);
  if (!status.ok()) return status;
  for (int i = 0; i < static_cast<int>(nodes.size()); ++i) {
    status = ValidateContent(i, nodes[i], model, limits);
    if (status.ok() && nodes[i].generation) {
      status = CheckGeneration(i, *nodes[i].generation, model, limits);
    }
    if (!status.ok()) return status;
  }
  status = CheckAcrossPaths(nodes);
  if (!status.ok()) return status;
  const int64_t width = MaxWidth(request);
  if (width > limits.max_width) {
    return absl::InvalidArgumentError(
        absl::StrCat("nodes: ", width,
                     " branches can be alive at once, as the samples of "
                     "generations below one another multiply; must be at most ",
                     limits.max_width));
  }
  return absl::OkStatus();
}

}  // namespace espalier
