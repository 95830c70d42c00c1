#include "tests/bench/attention_cases.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <vector>

#include "tests/bench/parse_pair.h"
#include "tests/support/workload_trace.h"

namespace espalier::bench {
namespace {

using testing::TraceReplay;
using testing::TraceShapes;
using testing::WorkloadTrace;

class CaseBuilder {
 public:
  explicit CaseBuilder(int page_size) { case_.shape.page_size = page_size; }

  int AddNode(int parent, int tokens) {
    return case_.shape.AddNode(parent, tokens, 0, Pages(tokens));
  }
  int AddDraftNode(int parent, const std::vector<int32_t>& subtree_end) {
    return case_.shape.AddDraftNode(parent, 0, Pages(static_cast<int>(subtree_end.size())),
                                    subtree_end);
  }
  // The node's last `count` tokens are queries.
  void AddQueries(int node, int count) {
    const int tokens = case_.shape.num_tokens[node];
    for (int t = std::max(0, tokens - count); t < tokens; ++t) case_.shape.AddQuery(node, t);
  }
  AttentionCase Finish(std::string name) {
    case_.name = std::move(name);
    return std::move(case_);
  }

 private:
  std::vector<int32_t> Pages(int tokens) {
    const int page = case_.shape.page_size;
    std::vector<int32_t> ids((tokens + page - 1) / page);
    for (int32_t& id : ids) id = case_.num_pages++;
    return ids;
  }

  AttentionCase case_;
};

// Levels of evenly spread nodes.
AttentionCase MakeLevels(const AttentionCaseOptions& options) {
  const auto [widths, lengths] = ParsePair(options.tree);
  if (widths.size() != lengths.size()) {
    throw CLI::ValidationError("--tree needs as many node counts as lengths");
  }
  CaseBuilder builder(options.page_size);
  int above = 0;
  int num_nodes = 0;
  for (size_t level = 0; level < widths.size(); ++level) {
    for (int i = 0; i < widths[level]; ++i) {
      const int64_t offset = level == 0 ? 0 : int64_t{i} * widths[level - 1] / widths[level];
      builder.AddNode(level == 0 ? -1 : above + static_cast<int>(offset), lengths[level]);
    }
    above = num_nodes;
    num_nodes += widths[level];
  }
  for (int x = above; x < num_nodes; ++x) builder.AddQueries(x, options.run_tokens);
  return builder.Finish(options.tree);
}

// Each token continues a random earlier one, none deeper than a speculator looks ahead.
AttentionCase MakeDraft(const AttentionCaseOptions& options) {
  constexpr int kMostLevels = 8;
  std::mt19937 rng(1);
  const int tokens = options.draft_tokens;
  std::vector<std::vector<int>> children(tokens);
  std::vector<int> depth(tokens, 0);
  for (int t = 1; t < tokens; ++t) {
    int parent = 0;
    do {
      parent = std::uniform_int_distribution<int>(0, t - 1)(rng);
    } while (depth[parent] + 1 >= kMostLevels);
    depth[t] = depth[parent] + 1;
    children[parent].push_back(t);
  }
  std::vector<int32_t> subtree_end(tokens);
  int next = 0;
  const auto visit = [&](const auto& self, int token) -> void {
    const int place = next++;
    for (const int child : children[token]) self(self, child);
    subtree_end[place] = next;
  };
  visit(visit, 0);

  CaseBuilder builder(options.page_size);
  const int prompt = builder.AddNode(-1, options.prompt_tokens);
  builder.AddQueries(builder.AddDraftNode(prompt, subtree_end), tokens);
  return builder.Finish("draft tree of " + std::to_string(tokens) + " over " +
                        std::to_string(options.prompt_tokens));
}

AttentionCase MakeFromFile(const AttentionCaseOptions& options) {
  std::ifstream file(options.tree_file);
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  std::vector<int> parent;
  std::vector<int> tokens;
  try {
    parent = json.at("parent").get<std::vector<int>>();
    tokens = json.at("tokens").get<std::vector<int>>();
  } catch (const nlohmann::json::exception& error) {
    throw CLI::ValidationError("--tree-file " + options.tree_file + ": " + error.what());
  }
  if (parent.empty() || parent.size() != tokens.size()) {
    throw CLI::ValidationError("--tree-file: parent and tokens need the same length, not 0");
  }
  CaseBuilder builder(options.page_size);
  std::vector<bool> is_leaf(parent.size(), true);
  for (size_t x = 0; x < parent.size(); ++x) {
    if (parent[x] < -1 || parent[x] >= static_cast<int>(x) || tokens[x] < 1) {
      throw CLI::ValidationError("--tree-file: node " + std::to_string(x) +
                                 " needs a parent before it, or -1, and at least 1 token");
    }
    if (parent[x] >= 0) is_leaf[parent[x]] = false;
    builder.AddNode(parent[x], tokens[x]);
  }
  for (size_t x = 0; x < parent.size(); ++x) {
    if (is_leaf[x]) builder.AddQueries(static_cast<int>(x), options.run_tokens);
  }
  return builder.Finish(options.tree_file);
}

WorkloadTrace FindTrace(const std::string& folder, const std::string& id) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    // A file of a family has it in its name; the others are large.
    const std::string family = id.substr(0, std::min(id.find('/'), size_t{3}));
    if (entry.path().filename().string().find(family) == std::string::npos) continue;
    for (WorkloadTrace& trace : testing::LoadWorkloadTraces(entry.path())) {
      if (trace.id == id) return std::move(trace);
    }
  }
  throw CLI::ValidationError("no trace '" + id + "' in " + folder);
}

AttentionCase MakeWorkloadStep(const AttentionCaseOptions& options) {
  const size_t at = options.workload.find('@');
  int step = 0;
  if (at == std::string::npos ||
      !CLI::detail::lexical_cast(options.workload.substr(at + 1), step) || step < 1) {
    throw CLI::ValidationError("--workload '" + options.workload + "' is not TRACE@STEP");
  }
  const WorkloadTrace trace = FindTrace(options.workload_folder, options.workload.substr(0, at));
  TraceReplay replay(trace);
  while (replay.step() < step) {
    if (!replay.NextStep()) {
      throw CLI::ValidationError("--workload: the trace has " + std::to_string(trace.last_step) +
                                 " steps");
    }
  }
  TraceShapes shapes(options.page_size);
  AttentionCase result;
  result.name = options.workload;
  result.shape = shapes.ShapeOf(replay);
  for (const int32_t page : result.shape.page_ids) {
    result.num_pages = std::max(result.num_pages, page + 1);
  }
  return result;
}

AttentionCase MakeInOrder(const AttentionCaseOptions& options) {
  if (!options.tree_file.empty()) return MakeFromFile(options);
  if (!options.workload.empty()) return MakeWorkloadStep(options);
  if (options.draft_tokens > 0) return MakeDraft(options);
  return MakeLevels(options);
}

}  // namespace

AttentionCase MakeAttentionCase(const AttentionCaseOptions& options) {
  AttentionCase result = MakeInOrder(options);
  std::mt19937 rng(1);
  std::vector<int32_t> ids(result.num_pages);
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), rng);
  for (int32_t& page : result.shape.page_ids) page = ids[page];
  return result;
}

}  // namespace espalier::bench
