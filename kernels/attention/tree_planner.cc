#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/attention/kv_runs.h"
#include "kernels/attention/row_order.h"
#include "kernels/attention/shape_growth.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

constexpr int kDefaultBlockTokens = 128;
// A flat cut gives each worker this many blocks, so that the last round is short.
constexpr int kBlocksPerWorker = 4;
// Units of work that fill this part of the workers' rounds are even enough.
constexpr double kGoodBalance = 0.95;
// A piece this part above an even share is left whole: pieces of few tiles are never all alike, and
// one more piece begins another round.
constexpr int kSlackPart = 8;
// With more units than this a worker, claiming them one by one balances better than cutting.
constexpr int kManyUnitsPerWorker = 8;
// A plan is extended until leaves have made all of it this part costlier than it was when it was
// balanced, or a piece of it that much costlier than the costliest was.
constexpr int kGrowthPart = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The pieces, at least `least`, that keep workers busy when each piece runs once a kv head.
int64_t EvenPieces(int64_t least, int num_kv_heads, int num_workers) {
  if (least * num_kv_heads >= int64_t{kManyUnitsPerWorker} * num_workers) return least;
  const int64_t first = std::max<int64_t>(least, num_workers / num_kv_heads);
  int64_t best = first;
  double best_balance = 0;
  for (int64_t pieces = first; pieces <= 2 * first + 1; ++pieces) {
    const int64_t units = pieces * num_kv_heads;
    const double balance =
        static_cast<double>(units) / static_cast<double>(CeilDiv(units, num_workers) * num_workers);
    if (balance > best_balance) {
      best = pieces;
      best_balance = balance;
    }
    if (balance >= kGoodBalance) break;
  }
  return best;
}

// The first page of the span, `from` or after, whose middle lies more than `cost` from the span's
// begin; the span's end if there is none.
int32_t FirstPageBeyond(const TreeShape& shape, KvSpan span, int32_t from, int64_t token_cost,
                        int64_t cost) {
  const int32_t begin = span.begin;
  // No page that begins here or before has its middle there: those are skipped, not walked.
  const int64_t too_early = begin + cost / token_cost - shape.page_size / 2 - 1;
  if (too_early >= span.end) return span.end;
  span.begin = from;
  if (too_early > from) {
    const int32_t token = static_cast<int32_t>(too_early);
    span.begin = std::max(from, token - SlotInPage(shape, span.node, token));
  }
  while (span.begin < span.end) {
    const int32_t page_end = PageEnd(shape, span);
    if ((span.begin - begin + page_end - begin) * token_cost > 2 * cost) break;
    span.begin = page_end;
  }
  return span.begin;
}

}  // namespace

struct TreePlanner::Impl {
  // A tile of rows with everything that it sees, and in how many pieces that is cut.
  struct Tile {
    int32_t run_begin;  // [run_begin, run_end) into tile_runs
    int32_t run_end;
    int64_t cost;
    int64_t pieces;
  };

  // What a partition is written from.
  struct Piece {
    int32_t run_begin;  // [run_begin, run_end) into runs
    int32_t run_end;
    int64_t cost;
  };

  // The last run of a node that may grow.
  struct LastRun {
    int32_t run;
    int32_t piece;
  };

  const TreePlan& Plan(const TreeShape& shape, const PlanOptions& options);
  void Build(const TreeShape& shape, const PlanOptions& options);
  void Reset(const TreeShape& shape, const PlanOptions& options);

  // Query-guided variants: tiles of rows first, then the KV that each sees.
  void TileByBranch();
  void TileBySubtree();
  void AddRows(RowInterval rows, bool may_join);
  void ListTiles();
  void ListTile(RowInterval tile);
  void ChoosePieces();
  int64_t CostOfTiles() const;
  static bool IsCut(const Tile& tile) { return tile.pieces > 1; }
  void TakeFinerTilesInsteadOfCutting();
  void CutTiles();
  void CutTile(const Tile& tile, int64_t share);

  // KV-guided variants: spans of KV first, then the rows that see each.
  void PlanNodes(bool chunked);
  void PlanFlat();
  void PlanSpans();

  int64_t TokenCost(const KvRun& run) const {
    return plan.options.cost.token + int64_t{run.num_rows()} * plan.options.group_size;
  }
  int64_t Cost(const KvRun& run) const { return run.num_tokens() * TokenCost(run); }
  // The runs between the piece before and run_end become a partition.
  void AddPartition(int32_t run_end);
  void AddPartition() { AddPartition(static_cast<int32_t>(runs.size())); }
  void WriteEntries(const TreeShape& shape);
  void AssignTargets();
  void MarkTouchedRows(const Piece& piece, PlanPartition* partition);
  void ListPartials();
  void OrderByCost();

  // A plan for a shape whose leaves have grown is the one before with longer last runs.
  void PrepareToExtend();
  bool Extend(const TreeShape& shape);

  TreePlan plan;
  RowOrder order;
  int32_t rows_per_tile = 0;

  std::vector<RowInterval> row_tiles;
  std::vector<Tile> tiles;
  std::vector<KvRun> tile_runs;
  // Of the tiling to beat, while a finer one is tried.
  std::vector<Tile> other_tiles;
  std::vector<KvRun> other_runs;
  std::vector<RowInterval> other_slot_rows;
  std::vector<std::pair<int64_t, int32_t>> costliest;  // heap of (cost of a piece, tile)
  std::vector<int32_t> path;
  std::vector<KvSpan> spans;
  std::vector<KvRun> runs;            // of all pieces, in order
  std::vector<Piece> pieces;          // one a partition
  std::vector<int32_t> touches;       // [num_rows] partitions that touch each row
  std::vector<int32_t> merge_cursor;  // [num_rows] where the row's next partial is listed

  ShapeGrowth growth;
  std::vector<LastRun> last_runs;  // [num_nodes]
  int64_t total_cost = 0;          // of all pieces
  int64_t most_total_cost = 0;     // beyond these the plan is built anew
  int64_t most_piece_cost = 0;
};

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
      ListTiles();
      ChoosePieces();
      if (options.cost.merge > 0) TakeFinerTilesInsteadOfCutting();
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

// ---- tiles of rows

void TreePlanner::Impl::AddRows(RowInterval rows, bool may_join) {
  for (int32_t begin = rows.begin; begin < rows.end;) {
    if (may_join && !row_tiles.empty() && rows.end - row_tiles.back().begin <= rows_per_tile) {
      row_tiles.back().end = rows.end;
      return;
    }
    const int32_t end = std::min(rows.end, begin + rows_per_tile);
    row_tiles.push_back({begin, end});
    begin = end;
  }
}

void TreePlanner::Impl::TileByBranch() {
  for (const int32_t node : order.seen_nodes()) {
    const NodeRows& rows = order.rows(node);
    AddRows({rows.begin, rows.own_end}, /*may_join=*/false);
  }
}

// The largest subtrees that fit in a tile, neighbours joined while they fit together. Only nodes
// that are wider than a tile are read by more than one.
void TreePlanner::Impl::TileBySubtree() {
  const std::vector<int32_t>& nodes = order.seen_nodes();
  for (int i = 0; i < static_cast<int>(nodes.size());) {
    const NodeRows& rows = order.rows(nodes[i]);
    if (rows.end - rows.begin <= rows_per_tile) {
      AddRows({rows.begin, rows.end}, /*may_join=*/true);
      i = order.AfterSubtree(i);
    } else {
      AddRows({rows.begin, rows.own_end}, /*may_join=*/true);
      ++i;
    }
  }
}

void TreePlanner::Impl::ListTiles() {
  tile_runs.clear();
  plan.slot_rows.clear();
  tiles.clear();
  for (const RowInterval& rows : row_tiles) {
    const int32_t run_begin = static_cast<int32_t>(tile_runs.size());
    ListTile(rows);
    const int32_t run_end = static_cast<int32_t>(tile_runs.size());
    int64_t cost = 0;
    for (int32_t r = run_begin; r < run_end; ++r) cost += Cost(tile_runs[r]);
    tiles.push_back({.run_begin = run_begin, .run_end = run_end, .cost = cost, .pieces = 1});
  }
}

// The tile's KV from the roots down: first the ancestors that it shares with the tile before, then
// the nodes whose first row is in the tile.
void TreePlanner::Impl::ListTile(RowInterval tile) {
  const TreeShape& shape = order.shape();
  const auto append = [&](int32_t node) {
    AppendRuns(order, {.node = node, .begin = 0, .end = shape.num_tokens[node]}, tile, &tile_runs,
               &plan.slot_rows);
  };
  path.clear();
  for (int x = order.node_of_row(tile.begin); x >= 0; x = shape.parent[x]) {
    if (order.rows(x).begin < tile.begin) path.push_back(x);
  }
  for (auto x = path.rbegin(); x != path.rend(); ++x) append(*x);
  const std::vector<int32_t>& nodes = order.seen_nodes();
  const auto starts_before = [&](int32_t x, int32_t row) { return order.rows(x).begin < row; };
  for (auto x = std::lower_bound(nodes.begin(), nodes.end(), tile.begin, starts_before);
       x != nodes.end() && order.rows(*x).begin < tile.end; ++x) {
    append(*x);
  }
}

// Splits the costliest tiles first, until the pieces fill the workers and none of them alone would
// take longer than an even share of everything.
void TreePlanner::Impl::ChoosePieces() {
  const PlanOptions& options = plan.options;
  if (options.num_workers == 1) return;
  int64_t total = 0;
  costliest.clear();
  for (size_t i = 0; i < tiles.size(); ++i) {
    total += tiles[i].cost;
    costliest.emplace_back(tiles[i].cost, static_cast<int32_t>(i));
  }
  std::make_heap(costliest.begin(), costliest.end());
  const int64_t even_share = total * options.num_kv_heads / options.num_workers;
  const int64_t fair_share = even_share + even_share / kSlackPart;
  int64_t num_pieces = static_cast<int64_t>(tiles.size());
  const int64_t wanted = EvenPieces(num_pieces, options.num_kv_heads, options.num_workers);
  while (!costliest.empty() && (num_pieces < wanted || costliest.front().first > fair_share)) {
    std::pop_heap(costliest.begin(), costliest.end());
    Tile& tile = tiles[costliest.back().second];
    const int64_t piece_cost = tile.cost / (tile.pieces + 1);
    if (piece_cost < options.cost.min_piece) {
      costliest.pop_back();
      continue;
    }
    ++tile.pieces;
    ++num_pieces;
    costliest.back().first = piece_cost;
    std::push_heap(costliest.begin(), costliest.end());
  }
}

// What the busiest worker does, and the merge.
int64_t TreePlanner::Impl::CostOfTiles() const {
  int64_t total = 0;
  int64_t largest = 0;
  bool cut = false;
  for (const Tile& tile : tiles) {
    total += tile.cost;
    largest = std::max(largest, tile.cost / tile.pieces);
    cut |= tile.pieces > 1;
  }
  const PlanOptions& options = plan.options;
  return std::max(largest, total * options.num_kv_heads / options.num_workers) +
         (cut ? options.cost.merge : 0);
}

// Where as many tiles of fewer rows as there are workers cost less than pieces and their merge: no
// row has a partial state then. Shared KV is read by more tiles, so this pays where it is short.
void TreePlanner::Impl::TakeFinerTilesInsteadOfCutting() {
  if (std::ranges::none_of(tiles, IsCut)) return;
  const int64_t cost = CostOfTiles();
  size_t num_tiles = tiles.size();
  for (rows_per_tile /= 2; rows_per_tile >= 1; rows_per_tile /= 2) {
    row_tiles.clear();
    TileBySubtree();
    if (row_tiles.size() == num_tiles) continue;
    num_tiles = row_tiles.size();
    if (static_cast<int64_t>(num_tiles) * plan.options.num_kv_heads > plan.options.num_workers) {
      return;
    }
    std::swap(tiles, other_tiles);
    std::swap(tile_runs, other_runs);
    std::swap(plan.slot_rows, other_slot_rows);
    ListTiles();
    if (CostOfTiles() < cost) return;
    std::swap(tiles, other_tiles);
    std::swap(tile_runs, other_runs);
    std::swap(plan.slot_rows, other_slot_rows);
  }
}

// kDefault cuts all tiles at the same cost from their roots on: pieces that read the same KV then
// begin together and keep in step, and caches serve the second.
void TreePlanner::Impl::CutTiles() {
  if (std::ranges::none_of(tiles, IsCut)) {
    std::swap(runs, tile_runs);
    for (const Tile& tile : tiles) AddPartition(tile.run_end);
    return;
  }
  int64_t largest = 0;
  for (const Tile& tile : tiles) largest = std::max(largest, CeilDiv(tile.cost, tile.pieces));
  const bool in_step = plan.options.variant == AttentionVariant::kDefault;
  for (const Tile& tile : tiles) {
    CutTile(tile, in_step ? largest : CeilDiv(tile.cost, tile.pieces));
  }
}

// In pieces of a cost of about `share`: a piece ends before the page whose middle lies beyond that.
void TreePlanner::Impl::CutTile(const Tile& tile, int64_t share) {
  int64_t cost = 0;  // before `rest`
  int64_t cut = share;
  bool begun = false;  // the piece has a page, and so may end
  for (int32_t r = tile.run_begin; r < tile.run_end; ++r) {
    KvRun rest = tile_runs[r];
    const int64_t token_cost = TokenCost(rest);
    while (cut < tile.cost) {
      const int32_t from = begun ? rest.tokens.begin : PageEnd(order.shape(), rest.tokens);
      const int32_t at = FirstPageBeyond(order.shape(), rest.tokens, from, token_cost, cut - cost);
      if (at == rest.tokens.end) break;
      if (at > rest.tokens.begin) {
        runs.push_back(rest);
        runs.back().tokens.end = at;
      }
      AddPartition();
      cost += (at - rest.tokens.begin) * token_cost;
      rest.tokens.begin = at;
      begun = false;
      cut += share;
    }
    runs.push_back(rest);
    cost += Cost(rest);
    begun = true;
  }
  AddPartition();
}

// ---- spans of KV

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
