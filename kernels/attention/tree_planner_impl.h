// The planner from inside, for the files that implement it: query-guided variants in
// tree_planner_tiles.cc, KV-guided ones in tree_planner_spans.cc, the rest in tree_planner.cc.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/attention/kv_runs.h"
#include "kernels/attention/row_order.h"
#include "kernels/attention/shape_growth.h"
#include "kernels/attention/tree_plan.h"

namespace espalier {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
  void EvenOutTiles(size_t num_tiles);
  void AddRows(RowInterval rows, bool may_join);
  void ListTiles();
  void ListTile(RowInterval tile);
  void ChoosePieces();
  bool SplitCostliest();
  int64_t CostOfTiles();
  static bool IsCut(const Tile& tile) { return tile.pieces > 1; }
  void TakeMoreTiles();
  int64_t CostOfWidestNodes() const;
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
  // Of the tiling to beat, while another is tried.
  std::vector<Tile> other_tiles;
  std::vector<KvRun> other_runs;
  std::vector<RowInterval> other_slot_rows;
  std::vector<std::pair<int64_t, int32_t>> costliest;    // heap of (cost of a piece, tile)
  std::vector<int64_t> best_pieces;                      // [num_tiles]
  std::vector<std::pair<int64_t, int64_t>> equal_units;  // (cost of a unit, how many)
  std::vector<std::pair<int64_t, int64_t>> loads;        // heap: see CostOfTiles
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

}  // namespace espalier
