#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/attention/row_order.h"
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

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

RowInterval Clip(RowInterval rows, RowInterval tile) {
  return {std::max(rows.begin, tile.begin), std::min(rows.end, tile.end)};
}

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

}  // namespace

struct TreePlanner::Impl {
  // Tokens [begin, end) of a node.
  struct Span {
    int32_t node;
    int32_t begin;
    int32_t end;
  };
  // A place in a node's pages.
  struct PageCursor {
    PageCursor(const TreeShape& shape, int node, int token) : page_size(shape.page_size) {
      const int node_slot = shape.first_slot[node] + token;
      page = shape.page_ids.data() + shape.page_begin[node] + node_slot / page_size;
      slot = node_slot % page_size;
    }
    int SlotsLeft() const { return page_size - slot; }
    // Within the page or to the start of the next.
    void Advance(int slots) {
      slot += slots;
      if (slot == page_size) {
        slot = 0;
        ++page;
      }
    }

    int page_size;
    const int32_t* page;
    int slot;
  };
  // A tile of rows with everything that it sees, and in how many pieces its entries are cut.
  struct Tile {
    int32_t entry_begin;
    int32_t entry_end;
    int64_t cost;
    int64_t pieces;
  };

  const TreePlan& Build(const TreeShape& shape, const PlanOptions& options);
  void Reset(const TreeShape& shape, const PlanOptions& options);

  // Query-guided variants: tiles of rows first, then the KV that each sees.
  void TileByBranch();
  void TileBySubtree();
  void AddRows(RowInterval rows, bool may_join);
  void EmitTiles();
  void EmitTile(RowInterval tile);
  void ChoosePieces();
  int64_t CostOfTiles() const;
  void TakeFinerTilesInsteadOfCutting();
  void CutTiles();
  void CutTile(const Tile& tile, int64_t share);

  // KV-guided variants: runs of KV first, then the rows that see each.
  void PlanNodes(bool chunked);
  void PlanFlat();
  void PlanSpans();

  // Appends the entries of tokens [begin, end) of a node that rows of `tile` see.
  void EmitTokens(int node, int begin, int end, RowInterval tile);
  void EmitPlain(int node, int begin, int end, RowInterval tile);
  void EmitDraft(int node, int begin, int end, RowInterval tile);
  void AddEntry(const PageCursor& at, int count, RowInterval rows, int32_t slot_rows,
                bool read_again, bool written_now);
  bool SeenBeyond(int node, RowInterval tile) const {
    return order.rows(node).begin < tile.begin || order.rows(node).end > tile.end;
  }

  int64_t Cost(const PlanEntry& entry) const;
  // The entries [entry_begin, entry_end) become a partition.
  void AddPartition(int32_t entry_begin, int32_t entry_end);
  void AssignTargets();
  void MarkTouchedRows(PlanPartition& partition);
  void ListPartials();
  void OrderByCost();

  TreePlan plan;
  RowOrder order;
  int32_t rows_per_tile = 0;

  std::vector<RowInterval> row_tiles;
  std::vector<Tile> tiles;
  // Of the tiling to beat, while a finer one is tried.
  std::vector<Tile> other_tiles;
  std::vector<PlanEntry> other_entries;
  std::vector<RowInterval> other_slot_rows;
  std::vector<std::pair<int64_t, int32_t>> costliest;  // heap of (cost of a piece, tile)
  std::vector<int32_t> path;
  std::vector<Span> spans;
  std::vector<int64_t> partition_cost;
  std::vector<int32_t> touches;       // [num_rows] partitions that touch each row
  std::vector<int32_t> merge_cursor;  // [num_rows] where the row's next partial is listed
};

const TreePlan& TreePlanner::Impl::Build(const TreeShape& shape, const PlanOptions& options) {
  Reset(shape, options);
  switch (options.variant) {
    case AttentionVariant::kSequence:
      TileByBranch();
      EmitTiles();
      ChoosePieces();
      CutTiles();
      break;
    case AttentionVariant::kDefault:
      TileBySubtree();
      EmitTiles();
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
  AssignTargets();
  OrderByCost();
  return plan;
}

void TreePlanner::Impl::Reset(const TreeShape& shape, const PlanOptions& options) {
  shape.CheckWellFormed();
  ESPALIER_CHECK(options.group_size >= 1);
  ESPALIER_CHECK(options.num_kv_heads >= 1);
  ESPALIER_CHECK(options.num_workers >= 1);
  ESPALIER_CHECK(options.tile_rows >= 1);
  ESPALIER_CHECK(options.block_tokens >= 0);
  order.Build(shape);
  rows_per_tile = std::max(1, options.tile_rows / options.group_size);

  plan.options = options;
  plan.page_size = shape.page_size;
  plan.num_pages = 0;
  plan.query_of_row = order.query_of_row();
  plan.entries.clear();
  plan.slot_rows.clear();
  plan.partitions.clear();
  plan.row_targets.clear();
  plan.stats = order.CountTokens();
  row_tiles.clear();
  tiles.clear();
  partition_cost.clear();
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

void TreePlanner::Impl::EmitTiles() {
  plan.entries.clear();
  plan.slot_rows.clear();
  tiles.clear();
  for (const RowInterval& rows : row_tiles) {
    const int32_t entry_begin = static_cast<int32_t>(plan.entries.size());
    EmitTile(rows);
    int64_t cost = 0;
    for (size_t e = entry_begin; e < plan.entries.size(); ++e) cost += Cost(plan.entries[e]);
    tiles.push_back({.entry_begin = entry_begin,
                     .entry_end = static_cast<int32_t>(plan.entries.size()),
                     .cost = cost,
                     .pieces = 1});
  }
}

// The tile's KV from the roots down: first the ancestors that it shares with the tile before, then
// the nodes whose first row is in the tile.
void TreePlanner::Impl::EmitTile(RowInterval tile) {
  const TreeShape& shape = order.shape();
  path.clear();
  for (int x = order.node_of_row(tile.begin); x >= 0; x = shape.parent[x]) {
    if (order.rows(x).begin < tile.begin) path.push_back(x);
  }
  for (auto x = path.rbegin(); x != path.rend(); ++x) {
    EmitTokens(*x, 0, shape.num_tokens[*x], tile);
  }
  const std::vector<int32_t>& nodes = order.seen_nodes();
  const auto starts_before = [&](int32_t x, int32_t row) { return order.rows(x).begin < row; };
  for (auto x = std::lower_bound(nodes.begin(), nodes.end(), tile.begin, starts_before);
       x != nodes.end() && order.rows(*x).begin < tile.end; ++x) {
    EmitTokens(*x, 0, shape.num_tokens[*x], tile);
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
  const auto is_cut = [](const Tile& tile) { return tile.pieces > 1; };
  if (std::ranges::none_of(tiles, is_cut)) return;
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
    std::swap(plan.entries, other_entries);
    std::swap(plan.slot_rows, other_slot_rows);
    EmitTiles();
    if (CostOfTiles() < cost) return;
    std::swap(tiles, other_tiles);
    std::swap(plan.entries, other_entries);
    std::swap(plan.slot_rows, other_slot_rows);
  }
}

// kDefault cuts all tiles at the same cost from their roots on: pieces that read the same KV then
// begin together and keep in step, and caches serve the second.
void TreePlanner::Impl::CutTiles() {
  int64_t largest = 0;
  for (const Tile& tile : tiles) largest = std::max(largest, CeilDiv(tile.cost, tile.pieces));
  const bool in_step = plan.options.variant == AttentionVariant::kDefault;
  for (const Tile& tile : tiles) {
    CutTile(tile, in_step ? largest : CeilDiv(tile.cost, tile.pieces));
  }
}

// In pieces of a cost of about `share`.
void TreePlanner::Impl::CutTile(const Tile& tile, int64_t share) {
  int32_t begin = tile.entry_begin;
  int64_t cost = 0;
  int64_t cut = share;
  for (int32_t e = tile.entry_begin; e < tile.entry_end; ++e) {
    const int64_t entry_cost = Cost(plan.entries[e]);
    // Cut before the entry whose middle lies beyond the share.
    if (cut < tile.cost && e > begin && 2 * cost + entry_cost > 2 * cut) {
      AddPartition(begin, e);
      begin = e;
      cut += share;
    }
    cost += entry_cost;
  }
  AddPartition(begin, tile.entry_end);
}

// ---- runs of KV

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
  for (const Span& span : spans) {
    rows.begin = std::min(rows.begin, order.rows(span.node).begin);
    rows.end = std::max(rows.end, order.rows(span.node).end);
  }
  for (int32_t begin = rows.begin; begin < rows.end; begin += rows_per_tile) {
    const RowInterval tile{begin, std::min(rows.end, begin + rows_per_tile)};
    const int32_t entry_begin = static_cast<int32_t>(plan.entries.size());
    for (const Span& span : spans) EmitTokens(span.node, span.begin, span.end, tile);
    const int32_t entry_end = static_cast<int32_t>(plan.entries.size());
    if (entry_end > entry_begin) AddPartition(entry_begin, entry_end);
  }
}

// ---- entries

void TreePlanner::Impl::EmitTokens(int node, int begin, int end, RowInterval tile) {
  if (order.shape().draft_begin[node] < 0) {
    EmitPlain(node, begin, end, tile);
  } else {
    EmitDraft(node, begin, end, tile);
  }
}

void TreePlanner::Impl::EmitPlain(int node, int begin, int end, RowInterval tile) {
  const NodeRows& node_rows = order.rows(node);
  const RowInterval rows = Clip({node_rows.begin, node_rows.end}, tile);
  if (rows.begin >= rows.end) return;

  // Every row sees tokens before full_end. From causal_end on, only rows of descendants do.
  const RowInterval own = Clip({node_rows.begin, node_rows.own_end}, tile);
  int full_end = end;
  int causal_end = end;
  if (own.begin < own.end) {
    full_end = order.offset_of_row(own.begin) + 1;
    causal_end = order.offset_of_row(own.end - 1) + 1;
    if (rows.end == own.end) end = std::min(end, causal_end);
  }

  const bool read_again = SeenBeyond(node, tile);
  const int now_begin = node_rows.begin < node_rows.own_end ? order.offset_of_row(node_rows.begin)
                                                            : std::numeric_limits<int>::max();
  PageCursor at(order.shape(), node, begin);
  for (int token = begin; token < end;) {
    const int count = std::min(at.SlotsLeft(), end - token);
    const bool now = token + count > now_begin;
    if (token + count <= full_end) {
      AddEntry(at, count, rows, -1, read_again, now);
    } else if (token >= causal_end) {
      AddEntry(at, count, {own.end, rows.end}, -1, read_again, now);
    } else {
      const int32_t slot_rows = static_cast<int32_t>(plan.slot_rows.size());
      const int32_t first_row = std::max(own.begin, order.FirstOwnRowFrom(node, token));
      int32_t row = first_row;
      for (int t = token; t < token + count; ++t) {
        while (row < own.end && order.offset_of_row(row) < t) ++row;
        plan.slot_rows.push_back({row, rows.end});
      }
      AddEntry(at, count, {first_row, rows.end}, slot_rows, read_again, now);
    }
    token += count;
    at.Advance(count);
  }
}

// A token that no row of the tile sees ends an entry: whatever is in an entry is seen.
void TreePlanner::Impl::EmitDraft(int node, int begin, int end, RowInterval tile) {
  PageCursor at(order.shape(), node, begin);
  for (int token = begin; token < end;) {
    const int page_end = std::min(token + at.SlotsLeft(), end);
    const int32_t slot_rows = static_cast<int32_t>(plan.slot_rows.size());
    RowInterval all{tile.end, tile.begin};
    bool uniform = true;
    int t = token;
    for (; t < page_end; ++t) {
      const RowInterval rows = Clip(order.DraftRows(node, t), tile);
      if (rows.begin >= rows.end) break;
      all = {std::min(all.begin, rows.begin), std::max(all.end, rows.end)};
      uniform &= t == token || rows == plan.slot_rows.back();
      plan.slot_rows.push_back(rows);
    }
    if (t > token) {
      if (uniform) plan.slot_rows.resize(slot_rows);
      AddEntry(at, t - token, all, uniform ? -1 : slot_rows, SeenBeyond(node, tile),
               /*written_now=*/true);
    }
    const int next = t < page_end ? t + 1 : t;
    at.Advance(next - token);
    token = next;
  }
}

void TreePlanner::Impl::AddEntry(const PageCursor& at, int count, RowInterval rows,
                                 int32_t slot_rows, bool read_again, bool written_now) {
  plan.num_pages = std::max(plan.num_pages, *at.page + 1);
  plan.entries.push_back({.page = *at.page,
                          .first_slot = at.slot,
                          .count = count,
                          .rows = rows,
                          .slot_rows = slot_rows,
                          .read_again = read_again,
                          .written_now = written_now});
}

// ---- partitions

int64_t TreePlanner::Impl::Cost(const PlanEntry& entry) const {
  const int64_t packed_rows = int64_t{entry.rows.end - entry.rows.begin} * plan.options.group_size;
  return entry.count * (plan.options.cost.token + packed_rows);
}

void TreePlanner::Impl::AddPartition(int32_t entry_begin, int32_t entry_end) {
  RowInterval rows{std::numeric_limits<int32_t>::max(), 0};
  int64_t cost = 0;
  for (int32_t e = entry_begin; e < entry_end; ++e) {
    const PlanEntry& entry = plan.entries[e];
    rows.begin = std::min(rows.begin, entry.rows.begin);
    rows.end = std::max(rows.end, entry.rows.end);
    cost += Cost(entry);
    plan.stats.read_kv_tokens += entry.count;
  }
  plan.partitions.push_back(
      {.rows = rows, .entry_begin = entry_begin, .entry_end = entry_end, .target_begin = 0});
  partition_cost.push_back(cost);
}

void TreePlanner::Impl::AssignTargets() {
  ESPALIER_CHECK(plan.entries.size() < std::numeric_limits<int32_t>::max());
  touches.assign(order.num_rows(), 0);
  for (PlanPartition& partition : plan.partitions) MarkTouchedRows(partition);
  ESPALIER_CHECK(plan.row_targets.size() < std::numeric_limits<int32_t>::max());
  ListPartials();
}

// Marks the rows that a partition has KV for, and counts them. The rows of its entries' slots leave
// no hole in an entry's interval, so intervals of entries are all that counts.
void TreePlanner::Impl::MarkTouchedRows(PlanPartition& partition) {
  partition.target_begin = static_cast<int32_t>(plan.row_targets.size());
  const int32_t num_rows = partition.rows.end - partition.rows.begin;
  plan.row_targets.resize(plan.row_targets.size() + num_rows, TreePlan::kUntouched);
  int32_t* targets = plan.row_targets.data() + partition.target_begin;
  RowInterval last;
  for (int32_t e = partition.entry_begin; e < partition.entry_end; ++e) {
    const RowInterval rows = plan.entries[e].rows;
    if (rows == last) continue;  // pages of one node
    last = rows;
    for (int32_t row = rows.begin; row < rows.end; ++row) {
      int32_t& target = targets[row - partition.rows.begin];
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
    return partition_cost[a] != partition_cost[b] ? partition_cost[a] > partition_cost[b] : a < b;
  });
}

TreePlanner::TreePlanner() : impl_(std::make_unique<Impl>()) {}
TreePlanner::~TreePlanner() = default;

const TreePlan& TreePlanner::Plan(const TreeShape& shape, const PlanOptions& options) {
  return impl_->Build(shape, options);
}

}  // namespace espalier
