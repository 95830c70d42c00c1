#include <algorithm>
#include <limits>

#include "kernels/attention/tree_planner_impl.h"

namespace espalier {
namespace {

constexpr int kDefaultBlockTokens = 128;
// A flat cut gives each worker this many blocks, so that the last round is short.
constexpr int kBlocksPerWorker = 4;

}  // namespace

void TreePlanner::Impl::PlanNodes(bool chunked) {
  const int64_t block =
      plan.options.block_tokens > 0 ? plan.options.block_tokens : kDefaultBlockTokens;
  for (const int32_t node : order.seen_nodes()) {
    const int64_t tokens = order.SeenTokens(node);
    const int64_t chunks = chunked ? CeilDiv(tokens, block) : 1;
    for (int64_t i = 0; i < chunks; ++i) {
      spans.assign(1, {.node = node,
                       .begin = static_cast<int32_t>(tokens * i / chunks),
                       .end = static_cast<int32_t>(tokens * (i + 1) / chunks)});
      PlanSpans();
    }
  }
}

void TreePlanner::Impl::PlanFlat() {
  int64_t total = 0;
  for (const int32_t node : order.seen_nodes()) total += order.SeenTokens(node);
  if (total == 0) return;
  const PlanOptions& options = plan.options;
  int64_t blocks = CeilDiv(
      total, options.block_tokens > 0 ? options.block_tokens : int64_t{kDefaultBlockTokens});
  if (options.block_tokens == 0) {
    blocks = std::min(
        blocks, CeilDiv(int64_t{kBlocksPerWorker} * options.num_workers, options.num_kv_heads));
  }

  spans.clear();
  int64_t block = 0;
  int64_t done = 0;
  for (const int32_t node : order.seen_nodes()) {
    const int tokens = order.SeenTokens(node);
    for (int token = 0; token < tokens;) {
      const int64_t left = total * (block + 1) / blocks - done;
      const int count = static_cast<int>(std::min<int64_t>(left, tokens - token));
      spans.push_back({.node = node, .begin = token, .end = token + count});
      token += count;
      done += count;
      if (count == left) {
        PlanSpans();
        spans.clear();
        ++block;
      }
    }
  }
}

// The spans' KV and all the rows that see it, a tile of rows at a time.
void TreePlanner::Impl::PlanSpans() {
  RowInterval rows{std::numeric_limits<int32_t>::max(), 0};
  for (const KvSpan& span : spans) {
    rows.begin = std::min(rows.begin, order.rows(span.node).begin);
    rows.end = std::max(rows.end, order.rows(span.node).end);
  }
  for (int32_t begin = rows.begin; begin < rows.end; begin += rows_per_tile) {
    const RowInterval tile{begin, std::min(rows.end, begin + rows_per_tile)};
    const size_t runs_before = runs.size();
    for (const KvSpan& span : spans) AppendRuns(order, span, tile, &runs, &plan.slot_rows);
    if (runs.size() > runs_before) AddPartition();
  }
}

}  // namespace espalier
