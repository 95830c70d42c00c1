// Turns a forest and its queries into partitions, once a step for all layers and kv heads.
//
// Words. A *row* is a query at its place in the plan's order: depth first, a node's own queries
// (by offset) before those of its children. So the queries that see a KV slot are one interval of
// rows, and two integers take the place of a bit mask. A *packed row* is one (row, query head of
// the kv head's group). An *entry* is a run of slots of one page and the rows that see it. A
// *partition* is a run of entries and a tile of rows: a backend computes it once a kv head, reading
// each entry once for all its packed rows. Rows that several partitions touch leave a *partial
// state* (out, lse) in each, and the merge list says in which order they are combined, so that the
// same plan always gives the same bits.
//
// Everything is plain arrays of 32-bit integers, ready to be copied to a device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/attention/tree_shape.h"

namespace espalier {

// How KV is grouped with queries. The first four are compared by DeFT (arXiv 2404.00242, ICLR
// 2025, section 3), whose names these are; the last is ours.
enum class AttentionVariant {
  kSequence,   // per branch: each branch reads its whole path, shared or not
  kNode,       // DeFT-Node: one partition a node
  kNodeChunk,  // DeFT-Node-Chunk: as kNode, long nodes cut in chunks of block_tokens
  kFlatten,    // DeFT-Flatten: the tree's KV in depth-first order, cut in equal blocks
  kDefault,    // tiles of neighbouring branches, each with all the KV that they see; a tile is cut
               // only to keep every worker busy
};

// What balances workers, in units of one packed row against one KV token.
struct PlanCost {
  int token = 8;  // to bring in one KV token, however many rows see it
  // A tile has no more pieces than of so much each, and half of it is what a unit takes by itself.
  int64_t min_piece = 4096;
  // To combine partial states at all. Not 0: kDefault takes tiles of fewer rows instead of cutting
  // where that is cheaper, though they read more.
  int64_t merge = 0;
  bool operator==(const PlanCost&) const = default;
};

struct PlanOptions {
  AttentionVariant variant = AttentionVariant::kDefault;
  int group_size = 1;    // query heads a kv head
  int num_kv_heads = 1;  // each partition runs once a kv head: that many units of work
  int num_workers = 1;   // threads or SMs over which the units are balanced
  int tile_rows = 128;   // most packed rows of a partition; a group larger than that still fits
  int block_tokens = 0;  // chunk of kNodeChunk, block of kFlatten; 0: 128, and for kFlatten larger
                         // where that still gives each worker a few blocks
  PlanCost cost = {};
  bool operator==(const PlanOptions&) const = default;
};

// Rows [begin, end).
struct RowInterval {
  int32_t begin = 0;
  int32_t end = 0;
  bool operator==(const RowInterval&) const = default;
};

// Slots [first_slot, first_slot + count) of a page. Each is seen by at least one of `rows`, and
// each of `rows` sees at least one of them.
struct PlanEntry {
  int32_t page;
  int32_t first_slot;
  int32_t count;
  RowInterval rows;   // within the partition's rows
  int32_t slot_rows;  // -1: `rows` see all the slots; else index into TreePlan::slot_rows of
                      // `count` intervals, one a slot
  bool read_again;    // rows of other tiles see the slots, too
  bool written_now;   // some of the slots may be those of the step's own tokens
};

struct PlanPartition {
  RowInterval rows;
  int32_t entry_begin;  // [entry_begin, entry_end) into TreePlan::entries
  int32_t entry_end;
  int32_t target_begin;  // into TreePlan::row_targets, one a row
};

// Per kv head and layer. A token is one K and one V vector.
struct PlanStats {
  int64_t unique_kv_tokens = 0;   // tokens that at least one query sees, each once
  int64_t logical_kv_tokens = 0;  // over queries, the tokens that each sees
  int64_t read_kv_tokens = 0;     // over partitions, the tokens that this plan reads
  int64_t partial_rows = 0;       // (row, partition) pairs that go through a partial state
};

struct TreePlan {
  // row_targets: where the state of a partition's row goes.
  static constexpr int32_t kDirect = -1;     // this partition alone sees the row: to the output
  static constexpr int32_t kUntouched = -2;  // the partition has nothing for this row
                                             // >= 0: index of the partial state

  PlanOptions options;
  int page_size = 0;
  int32_t num_pages = 0;  // one more than the highest page id in use

  std::vector<int32_t> query_of_row;  // [num_rows] index into the shape's queries
  std::vector<PlanEntry> entries;
  std::vector<RowInterval> slot_rows;
  std::vector<PlanPartition> partitions;
  std::vector<int32_t> row_targets;
  std::vector<int32_t> run_order;  // [num_partitions] costliest first

  // Row merge_rows[i] combines partial states merge_partials[merge_begin[i] .. merge_begin[i + 1]),
  // in this order.
  std::vector<int32_t> merge_rows;
  std::vector<int32_t> merge_begin;
  std::vector<int32_t> merge_partials;

  PlanStats stats;
  bool extended = false;  // the plan before with more tokens in leaves, not built anew

  int num_rows() const { return static_cast<int>(query_of_row.size()); }
  int num_partitions() const { return static_cast<int>(partitions.size()); }
  std::span<const PlanEntry> EntriesOf(const PlanPartition& partition) const {
    return std::span(entries).subspan(partition.entry_begin,
                                      partition.entry_end - partition.entry_begin);
  }
};

// Builds plans; keeps its scratch and the plan's arrays between steps. Not thread-safe.
class TreePlanner {
 public:
  TreePlanner();
  ~TreePlanner();
  // The plan lives until the next call. `shape` must be well formed (checked). Nothing is allocated
  // once the arrays have grown. Same input, same plan; but where the shape is that of the call
  // before and leaves have grown by a few tokens, kDefault extends that call's plan, cut as it is,
  // instead of balancing anew. Same calls, same plans.
  const TreePlan& Plan(const TreeShape& shape, const PlanOptions& options);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
