// In which order a partition's KV goes into stages. No CUDA headers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "kernels/cuda/tree_attention/partition_pairs.h"

namespace espalier {

// Slots [offset, offset + count) of an entry: whole groups, and in an entry's last part what it has
// beyond these.
struct EntryPart {
  int32_t entry;
  int32_t offset;
  int32_t count;
  bool is_shared;  // its whole groups are of stages that both partitions of a pair have
};

// Parts of a partition's entries, each slot once, so that the whole groups, one part's behind the
// other's, make stages of one kind as far as they can: KV that packed rows of both halves of a tile
// see, of the lower 64 alone, or of the upper; in tiles of at most 64 rows, KV that other tiles
// read, too, or that none does. Kinds take turns, each spread over all of the order. What the lower
// half alone sees is then worked on while the upper half is busy with its own, and KV comes from
// memory while the block is busy with what is in the cache. What both partitions of a pair have is
// a kind of its own, whose stages come at the same places of both.
class StageOrder {
 public:
  // Empty where the order of the entries will do. `rows` are the partition's. Valid until the next
  // call.
  std::span<const EntryPart> Of(std::span<const PlanEntry> entries, RowInterval rows,
                                int group_size, const SharedStages& shared);

 private:
  struct Kind {
    void Clear();
    void Add(const EntryPart& part);

    std::vector<EntryPart> parts;  // of these, what is still to be taken
    int64_t num_groups;
    size_t at;      // the part that comes next
    int64_t taken;  // stages
  };
  void SortByKind(std::span<const PlanEntry> entries, RowInterval rows, int group_size,
                  int64_t shared_groups);
  bool TakeStageOfOneKind();
  void TakeStage();
  int64_t Take(Kind* kind, int64_t groups);

  Kind kinds_[3];
  Kind shared_;
  std::vector<EntryPart> parts_;
};

}  // namespace espalier
