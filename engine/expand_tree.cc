// How large a tree can grow: the second half of validate.h.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/saturating.h"
#include "engine/validate.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

// A judged branch makes way for its answers.
int64_t Alive(const PromptNode& node) {
  if (!node.generation) return 1;
  const Judge* judge = JudgeOf(*node.generation);
  const int64_t answers = judge == nullptr ? 1 : static_cast<int64_t>(judge->answers.size());
  return BranchesAlive(*node.generation) * answers;
}

int64_t Kept(const PromptNode& node) {
  return node.generation ? BranchesKept(*node.generation) : 1;
}

// Copies of each node: one for every branch that it continues.
std::vector<int64_t> Instances(const std::vector<PromptNode>& nodes) {
  std::vector<int64_t> instances(nodes.size(), 1);
  for (size_t i = 1; i < nodes.size(); ++i) {
    const PromptNode& parent = nodes[nodes[i].parent];
    instances[i] = parent.generation && IsAcrossPaths(*parent.generation)
                       ? Kept(parent)
                       : SaturatingMultiply(instances[nodes[i].parent], Kept(parent));
  }
  return instances;
}

// The longest path that runs through a node: to the end of its prompt and of its generation.
struct Path {
  int64_t prompt_end = 0;  // tokens
  int64_t end = 0;
  int64_t pages = 0;
};

// The generation's max_tokens, given how much of the context the path before it takes, and a judge
// after it.
absl::StatusOr<int> EffectiveMaxTokens(int index, const Generation& g, int64_t prompt_end,
                                       int judge_tokens, const ModelFacts& model) {
  const int64_t room = model.max_context - prompt_end - judge_tokens;
  const int64_t wanted = g.max_tokens ? *g.max_tokens : std::min<int64_t>(kDefaultMaxTokens, room);
  if (wanted > room || wanted < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nodes[", index, "].generation.max_tokens is ", std::max<int64_t>(wanted, 1),
        " after up to ", prompt_end, " tokens on the path",
        judge_tokens > 0 ? absl::StrCat(" and before ", judge_tokens, " of its judge") : "",
        "; the context has ", model.max_context));
  }
  if (g.min_tokens > wanted) {
    return absl::InvalidArgumentError(absl::StrCat("nodes[", index, "].generation.min_tokens is ",
                                                   g.min_tokens, "; must be at most ", wanted,
                                                   ", what the context leaves"));
  }
  return static_cast<int>(wanted);
}

}  // namespace

int64_t BranchesAlive(const Generation& generation) {
  if (const auto* beam = std::get_if<BeamSearch>(&generation.search)) return beam->width;
  if (const auto* choices = std::get_if<Choices>(&generation.search)) {
    return static_cast<int64_t>(choices->texts.size());
  }
  return generation.n;
}

int64_t BranchesKept(const Generation& generation) {
  if (const auto* best = std::get_if<BestOfN>(&generation.search)) return best->keep;
  if (const auto* beam = std::get_if<BeamSearch>(&generation.search)) return beam->num_return;
  if (std::holds_alternative<MajorityVote>(generation.search)) return 1;
  if (std::holds_alternative<Choices>(generation.search)) return 1;
  return generation.n;
}

// Every branch of a generation is alive until the node's children take its place.
int64_t MaxWidth(const TreeRequest& request) {
  const std::vector<PromptNode>& nodes = request.nodes;
  const std::vector<int64_t> instances = Instances(nodes);
  std::vector<int64_t> below(nodes.size(), 0);  // alive below all branches of the node
  int64_t width = 0;
  for (size_t i = nodes.size(); i-- > 0;) {
    width = std::max(SaturatingMultiply(instances[i], Alive(nodes[i])), below[i]);
    if (i > 0) below[nodes[i].parent] = SaturatingAdd(below[nodes[i].parent], width);
  }
  return width;
}

absl::StatusOr<TreeExpansion> ExpandTree(const TreeRequest& request,
                                         std::span<const int> node_tokens, const ModelFacts& model,
                                         const Limits& limits,
                                         std::span<const JudgeTokens> judge_tokens) {
  const std::vector<PromptNode>& nodes = request.nodes;
  ESPALIER_CHECK(node_tokens.size() == nodes.size());
  ESPALIER_CHECK(model.page_size > 0);
  // Each prompt and each generation starts on a fresh page, as the children of a fork do.
  const auto pages = [&](int64_t tokens) {
    return (tokens + model.page_size - 1) / model.page_size;
  };

  const std::vector<int64_t> instances = Instances(nodes);
  TreeExpansion expansion;
  expansion.nodes.resize(nodes.size());
  std::vector<Path> paths(nodes.size());
  for (int i = 0; i < static_cast<int>(nodes.size()); ++i) {
    const PromptNode& node = nodes[i];
    if (node_tokens[i] == 0 && (i == 0 || node.score)) {
      return absl::InvalidArgumentError(absl::StrCat("nodes[", i,
                                                     "] is 0 tokens; must be at least 1 for ",
                                                     i == 0 ? "the root" : "a node to score"));
    }
    TreeExpansion::Node& grown = expansion.nodes[i];
    grown.instances = instances[i];
    const JudgeTokens judge = judge_tokens.empty() ? JudgeTokens() : judge_tokens[i];
    const Path before = i == 0 ? Path{} : paths[node.parent];
    Path& path = paths[i];
    path.prompt_end = before.end + node_tokens[i];
    path.end = path.prompt_end;
    path.pages = before.pages + pages(node_tokens[i]);
    if (path.end > model.max_context) {
      return absl::InvalidArgumentError(
          absl::StrCat("nodes[", i, "] is ", node_tokens[i], " tokens after up to ", before.end,
                       " on the path; the context has ", model.max_context));
    }
    if (node.generation) {
      const absl::StatusOr<int> max_tokens =
          EffectiveMaxTokens(i, *node.generation, path.prompt_end, judge.longest, model);
      if (!max_tokens.ok()) return max_tokens.status();
      grown.max_tokens = *max_tokens;
      path.end += *max_tokens;
      path.pages += pages(*max_tokens);
    }
    const int64_t judged_pages = path.pages + pages(judge.longest);
    if (judged_pages > model.num_pages) {
      return absl::InvalidArgumentError(absl::StrCat(
          "nodes[", i, "] is up to ", path.end + judge.longest, " tokens deep and needs ",
          judged_pages, " KV pages alone; the pool has ", model.num_pages));
    }
    expansion.path_pages = std::max(expansion.path_pages, judged_pages);
    const int64_t branches = node.generation ? BranchesAlive(*node.generation) : 1;
    const int64_t tokens = node_tokens[i] + branches * (grown.max_tokens + int64_t{judge.total});
    expansion.tokens = SaturatingAdd(expansion.tokens, SaturatingMultiply(grown.instances, tokens));
  }
  if (expansion.tokens > limits.max_tree_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("nodes: up to ", expansion.tokens,
                     " tokens, prompt and max_tokens over all branches; must be at most ",
                     limits.max_tree_tokens));
  }
  expansion.width = MaxWidth(request);
  return expansion;
}

}  // namespace espalier
