#include <algorithm>
#include <limits>

#include "kernels/attention/tree_planner_impl.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

// A plan is extended until leaves have made all of it this part costlier than it was when it was
// balanced, or a piece of it that much costlier than the costliest was.
constexpr int kGrowthPart = 8;
// With more tiles than this, one that differs from the others no longer counts.
constexpr size_t kFewTiles = 16;

}  // namespace

const TreePlan& TreePlanner::Impl::Plan(const TreeShape& shape, const PlanOptions& options) {
  shape.CheckWellFormed();
  plan.extended = options == plan.options && growth.Follow(shape) && Extend(shape);
  if (plan.extended) return plan;
  Build(shape, options);
  growth.Forget();
  if (options.variant == AttentionVariant::kDefault) PrepareToExtend();
  return plan;
}

void TreePlanner::Impl::Build(const TreeShape& shape, const PlanOptions& options) {
  Reset(shape, options);
  switch (options.variant) {
    case AttentionVariant::kSequence:
      TileByBranch();
      ListTiles();
      ChoosePieces();
      CutTiles();
      break;
    case AttentionVariant::kDefault:
      TileBySubtree();
      if (row_tiles.size() > 1 && row_tiles.size() <= kFewTiles) EvenOutTiles(row_tiles.size());
      ListTiles();
      ChoosePieces();
      if (options.cost.merge > 0) TakeMoreTiles();
      CutTiles();
      break;
    case AttentionVariant::kNode:
      PlanNodes(/*chunked=*/false);
      break;
    case AttentionVariant::kNodeChunk:
      PlanNodes(/*chunked=*/true);
      break;
    case AttentionVariant::kFlatten:
      PlanFlat();
      break;
  }
  WriteEntries(shape);
  AssignTargets();
  OrderByCost();
}

void TreePlanner::Impl::Reset(const TreeShape& shape, const PlanOptions& options) {
  ESPALIER_CHECK(options.group_size >= 1);
  ESPALIER_CHECK(options.num_kv_heads >= 1);
  ESPALIER_CHECK(options.num_workers >= 1);
  ESPALIER_CHECK(options.tile_rows >= 1);
  ESPALIER_CHECK(options.block_tokens >= 0);
  order.Build(shape);
  rows_per_tile = std::max(1, options.tile_rows / options.group_size);

  plan.options = options;
  plan.page_size = shape.page_size;
  plan.query_of_row = order.query_of_row();
  plan.slot_rows.clear();
  plan.partitions.clear();
  plan.row_targets.clear();
  plan.stats = order.CountTokens();
  row_tiles.clear();
  tiles.clear();
  runs.clear();
  pieces.clear();
}

// ---- partitions

void TreePlanner::Impl::AddPartition(int32_t run_end) {
  Piece piece = {
      .run_begin = pieces.empty() ? 0 : pieces.back().run_end, .run_end = run_end, .cost = 0};
  RowInterval rows{std::numeric_limits<int32_t>::max(), 0};
  for (int32_t r = piece.run_begin; r < piece.run_end; ++r) {
    const KvRun& run = runs[r];
    rows.begin = std::min(rows.begin, run.rows.begin);
    rows.end = std::max(rows.end, run.rows.end);
    piece.cost += Cost(run);
    plan.stats.read_kv_tokens += run.num_tokens();
  }
  pieces.push_back(piece);
  plan.partitions.push_back({.rows = rows, .entry_begin = 0, .entry_end = 0, .target_begin = 0});
}

void TreePlanner::Impl::WriteEntries(const TreeShape& shape) {
  EntryWriter writer(shape, &plan.entries);
  for (size_t p = 0; p < pieces.size(); ++p) {
    plan.partitions[p].entry_begin = static_cast<int32_t>(writer.num_entries());
    for (int32_t r = pieces[p].run_begin; r < pieces[p].run_end; ++r) writer.Write(runs[r]);
    plan.partitions[p].entry_end = static_cast<int32_t>(writer.num_entries());
  }
  writer.Finish();
  plan.num_pages = writer.num_pages();
  ESPALIER_CHECK(plan.entries.size() < std::numeric_limits<int32_t>::max());
}

void TreePlanner::Impl::AssignTargets() {
  touches.assign(order.num_rows(), 0);
  for (size_t p = 0; p < pieces.size(); ++p) MarkTouchedRows(pieces[p], &plan.partitions[p]);
  ESPALIER_CHECK(plan.row_targets.size() < std::numeric_limits<int32_t>::max());
  ListPartials();
}

// Marks the rows that a partition has KV for, and counts them. The rows of its runs' tokens leave
// no hole in a run's interval, so intervals of runs are all that counts.
void TreePlanner::Impl::MarkTouchedRows(const Piece& piece, PlanPartition* partition) {
  const RowInterval all = partition->rows;
  partition->target_begin = static_cast<int32_t>(plan.row_targets.size());
  plan.row_targets.resize(plan.row_targets.size() + all.end - all.begin, TreePlan::kUntouched);
  int32_t* targets = plan.row_targets.data() + partition->target_begin;
  RowInterval last;
  for (int32_t r = piece.run_begin; r < piece.run_end; ++r) {
    const RowInterval rows = runs[r].rows;
    if (rows == last) continue;  // a chain of nodes
    last = rows;
    for (int32_t row = rows.begin; row < rows.end; ++row) {
      int32_t& target = targets[row - all.begin];
      touches[row] += target == TreePlan::kUntouched;
      target = TreePlan::kDirect;
    }
  }
}

// Numbers the partial states in plan order, and lists them by row.
void TreePlanner::Impl::ListPartials() {
  plan.merge_rows.clear();
  plan.merge_begin.assign(1, 0);
  merge_cursor.resize(order.num_rows());
  int64_t total = 0;
  for (int32_t row = 0; row < order.num_rows(); ++row) {
    ESPALIER_CHECK(touches[row] > 0);
    if (touches[row] == 1) continue;
    merge_cursor[row] = static_cast<int32_t>(total);
    total += touches[row];
    plan.merge_rows.push_back(row);
    plan.merge_begin.push_back(static_cast<int32_t>(total));
  }
  plan.stats.partial_rows = total;
  plan.merge_partials.resize(total);
  if (total == 0) return;
  int32_t next = 0;
  for (const PlanPartition& partition : plan.partitions) {
    int32_t* target = plan.row_targets.data() + partition.target_begin;
    for (int32_t row = partition.rows.begin; row < partition.rows.end; ++row, ++target) {
      if (*target == TreePlan::kUntouched || touches[row] == 1) continue;
      *target = next;
      plan.merge_partials[merge_cursor[row]++] = next++;
    }
  }
}

void TreePlanner::Impl::OrderByCost() {
  plan.run_order.resize(plan.partitions.size());
  for (size_t i = 0; i < plan.run_order.size(); ++i) plan.run_order[i] = static_cast<int32_t>(i);
  std::sort(plan.run_order.begin(), plan.run_order.end(), [&](int32_t a, int32_t b) {
    return pieces[a].cost != pieces[b].cost ? pieces[a].cost > pieces[b].cost : a < b;
  });
}

// ---- growth

void TreePlanner::Impl::PrepareToExtend() {
  growth.Remember(order);
  last_runs.resize(order.shape().num_nodes());
  total_cost = 0;
  int64_t largest = 0;
  for (size_t p = 0; p < pieces.size(); ++p) {
    const Piece& piece = pieces[p];
    total_cost += piece.cost;
    largest = std::max(largest, piece.cost);
    for (int32_t r = piece.run_begin; r < piece.run_end; ++r) {
      last_runs[runs[r].tokens.node] = {.run = r, .piece = static_cast<int32_t>(p)};
    }
  }
  most_total_cost = total_cost + total_cost / kGrowthPart;
  most_piece_cost = largest + largest / kGrowthPart;
}

// Cuts, targets and run order stay. False, and the plan is of no use, if it would not be balanced.
bool TreePlanner::Impl::Extend(const TreeShape& shape) {
  for (const ShapeGrowth::Leaf& leaf : growth.grown()) {
    const LastRun& last = last_runs[leaf.node];
    KvRun& run = runs[last.run];
    run.tokens.end += leaf.tokens;
    run.now_begin += leaf.tokens;
    plan.stats.unique_kv_tokens += leaf.tokens;
    plan.stats.logical_kv_tokens += leaf.tokens;
    plan.stats.read_kv_tokens += leaf.tokens;
    const int64_t cost = leaf.tokens * TokenCost(run);
    total_cost += cost;
    pieces[last.piece].cost += cost;
    if (pieces[last.piece].cost > most_piece_cost) return false;
  }
  if (total_cost > most_total_cost) return false;
  WriteEntries(shape);
  return true;
}

TreePlanner::TreePlanner() : impl_(std::make_unique<Impl>()) {}
TreePlanner::~TreePlanner() = default;

const TreePlan& TreePlanner::Plan(const TreeShape& shape, const PlanOptions& options) {
  return impl_->Plan(shape, options);
}

}  // namespace espalier
