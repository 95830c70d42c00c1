#include <algorithm>
#include <numeric>

#include "kernels/attention/tree_planner_impl.h"

namespace espalier {
namespace {

// Units of work that would fill this many more rounds of the workers are tried.
constexpr int kMostRounds = 4;
// What more pieces must save. Workers that share a memory keep it busy if some of them idle, and
// what it costs them to change units is in no cost.
constexpr int kLeastGainPart = 6;
// What more tiles must save, which read more.
constexpr int kLeastGainPartOfTiles = 32;
// With more units than this a worker, claiming them one by one balances better than cutting: only
// what is more than an even share by itself is cut.
constexpr int kManyUnitsPerWorker = 8;

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

// At most so many tiles, with the fewest rows that the largest can have. Tiles below a node that is
// wider than a tile are then much alike: they are cut at the same places of it, pieces that read
// the same KV keep in step, and as many of each make a round of the workers.
void TreePlanner::Impl::EvenOutTiles(size_t num_tiles) {
  const int32_t most_rows = rows_per_tile;
  const auto tile_of = [&](int32_t rows) {
    rows_per_tile = rows;
    row_tiles.clear();
    TileBySubtree();
    return row_tiles.size() <= num_tiles;
  };
  auto enough = static_cast<int32_t>(CeilDiv(order.num_rows(), static_cast<int64_t>(num_tiles)));
  if (!tile_of(enough)) {
    int32_t too_few = enough;
    for (enough = most_rows; enough - too_few > 1;) {
      const int32_t middle = too_few + (enough - too_few) / 2;
      (tile_of(middle) ? enough : too_few) = middle;
    }
    tile_of(enough);
  }
  rows_per_tile = most_rows;
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

// Splits the costliest tile first, again and again, and keeps the number of pieces with which the
// workers are done soonest: of those that just fill one round of them, two, and so on.
void TreePlanner::Impl::ChoosePieces() {
  const PlanOptions& options = plan.options;
  const int64_t workers = options.num_workers;
  if (workers == 1) return;
  costliest.clear();
  for (size_t i = 0; i < tiles.size(); ++i) {
    costliest.emplace_back(tiles[i].cost, static_cast<int32_t>(i));
  }
  std::make_heap(costliest.begin(), costliest.end());
  const auto least = static_cast<int64_t>(tiles.size());
  if (least * options.num_kv_heads >= kManyUnitsPerWorker * workers) {
    int64_t total = 0;
    for (const Tile& tile : tiles) total += tile.cost;
    const int64_t even_share = total * options.num_kv_heads / workers;
    while (!costliest.empty() && costliest.front().first > even_share) SplitCostliest();
    return;
  }
  best_pieces.assign(tiles.size(), 1);
  int64_t best = CostOfTiles();
  int64_t num_pieces = least;
  const int64_t rounds = least * options.num_kv_heads / workers;  // that are full already
  for (int64_t more = 1; more <= kMostRounds && !costliest.empty(); ++more) {
    const int64_t target = (rounds + more) * workers / options.num_kv_heads;
    while (num_pieces < target && SplitCostliest()) ++num_pieces;
    const int64_t cost = CostOfTiles();
    if (cost >= best - best / kLeastGainPart) continue;
    best = cost;
    for (size_t i = 0; i < tiles.size(); ++i) best_pieces[i] = tiles[i].pieces;
  }
  for (size_t i = 0; i < tiles.size(); ++i) tiles[i].pieces = best_pieces[i];
}

// False: no tile may have one more.
bool TreePlanner::Impl::SplitCostliest() {
  while (!costliest.empty()) {
    std::pop_heap(costliest.begin(), costliest.end());
    Tile& tile = tiles[costliest.back().second];
    const int64_t piece_cost = tile.cost / (tile.pieces + 1);
    if (piece_cost < plan.options.cost.min_piece) {
      costliest.pop_back();
      continue;
    }
    ++tile.pieces;
    costliest.back().first = piece_cost;
    std::push_heap(costliest.begin(), costliest.end());
    return true;
  }
  return false;
}

// Until the last worker is done with its units, which are claimed costliest first; and the merge.
int64_t TreePlanner::Impl::CostOfTiles() {
  const PlanOptions& options = plan.options;
  // A unit costs something by itself: half of the least that is worth one.
  const int64_t start = options.cost.min_piece / 2;
  equal_units.clear();
  bool cut = false;
  for (const Tile& tile : tiles) {
    equal_units.emplace_back(CeilDiv(tile.cost, tile.pieces) + start,
                             tile.pieces * options.num_kv_heads);
    cut |= IsCut(tile);
  }
  std::sort(equal_units.rbegin(), equal_units.rend());
  // Heap of (- cost so far, workers that have as much).
  loads.assign(1, {0, options.num_workers});
  int64_t last = 0;
  for (auto [cost, left] : equal_units) {
    while (left > 0) {
      std::pop_heap(loads.begin(), loads.end());
      auto& [load, idle] = loads.back();
      const int64_t taken = std::min(left, idle);
      const int64_t done = cost - load;
      last = std::max(last, done);
      left -= taken;
      idle -= taken;
      if (idle == 0) {
        loads.pop_back();
      } else {
        std::push_heap(loads.begin(), loads.end());
      }
      loads.emplace_back(-done, taken);
      std::push_heap(loads.begin(), loads.end());
    }
  }
  return last + (cut ? options.cost.merge : 0);
}

// More tiles, where they are done sooner: as many as make full rounds of the workers, whole or in
// equal pieces. Fewer workers idle then, and rows of whole tiles have no partial states; but what
// tiles share is read by more of them.
void TreePlanner::Impl::TakeMoreTiles() {
  const PlanOptions& options = plan.options;
  const int64_t workers = options.num_workers / options.num_kv_heads;  // of a kv head
  const auto least = static_cast<int64_t>(tiles.size());
  if (workers <= 1 || least == 0 || least >= kManyUnitsPerWorker * workers) return;
  const int64_t most = CeilDiv(least, workers) * workers;
  const int64_t read_by_each = CostOfWidestNodes();
  const int64_t read_now =
      std::accumulate(tiles.begin(), tiles.end(), int64_t{0},
                      [](int64_t sum, const Tile& tile) { return sum + tile.cost; });
  int64_t best = CostOfTiles();
  for (int64_t num_tiles = most, parts = 1; num_tiles > least; num_tiles = most / ++parts) {
    if (read_now + (num_tiles - least) * read_by_each >= best * workers) continue;
    std::swap(tiles, other_tiles);
    std::swap(tile_runs, other_runs);
    std::swap(plan.slot_rows, other_slot_rows);
    EvenOutTiles(num_tiles);
    ListTiles();
    ChoosePieces();
    const int64_t cost = CostOfTiles();
    if (cost < best - best / kLeastGainPartOfTiles) {
      best = cost;
      continue;
    }
    std::swap(tiles, other_tiles);
    std::swap(tile_runs, other_runs);
    std::swap(plan.slot_rows, other_slot_rows);
  }
}

// Of the nodes that all rows see, and so every tile reads.
int64_t TreePlanner::Impl::CostOfWidestNodes() const {
  int64_t cost = 0;
  const Tile& tile = tiles.front();
  for (int32_t r = tile.run_begin; r < tile.run_end; ++r) {
    const NodeRows& rows = order.rows(tile_runs[r].tokens.node);
    if (rows.end - rows.begin == order.num_rows()) cost += Cost(tile_runs[r]);
  }
  return cost;
}

// kDefault cuts all tiles at the same cost from their roots on: pieces that read the same KV then
// begin together and keep in step, and caches serve the second. Not where workers have more than a
// piece each and that would make fewer of them.
void TreePlanner::Impl::CutTiles() {
  if (std::ranges::none_of(tiles, IsCut)) {
    std::swap(runs, tile_runs);
    for (const Tile& tile : tiles) AddPartition(tile.run_end);
    return;
  }
  int64_t largest = 0;
  int64_t num_pieces = 0;
  for (const Tile& tile : tiles) {
    largest = std::max(largest, CeilDiv(tile.cost, tile.pieces));
    num_pieces += tile.pieces;
  }
  int64_t pieces_in_step = 0;
  for (const Tile& tile : tiles) pieces_in_step += CeilDiv(tile.cost, largest);
  const PlanOptions& options = plan.options;
  const bool in_step =
      options.variant == AttentionVariant::kDefault &&
      (num_pieces * options.num_kv_heads <= options.num_workers || pieces_in_step >= num_pieces);
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

}  // namespace espalier
