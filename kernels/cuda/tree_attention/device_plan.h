// A tree plan as the CUDA kernels read it. No CUDA headers.
//
// One block of 32-bit words, copied once a step: the header, the records, then arrays whose place
// the header or a record gives, in words from the header on. So a captured graph holds one address
// and reads whatever plan lies there. A kernel on the device expands the entries into two lists
// with one word a token, in which every partition's tokens lie side by side: the attention kernel
// then streams tokens, and neither pages nor nodes nor kinds of queries concern it. First come the
// groups of tokens that lie side by side in the cache, too; then what entries have left over.
#pragma once

#include <cstdint>

namespace espalier {

// Packed rows of a partition at most; a row's query heads of one kv head's group are neighbours.
inline constexpr int kMostPackedRows = 128;
// Tokens that a kernel takes at a time: partitions are padded to multiples of it.
inline constexpr int kStageTokens = 64;
// Neighbours in a page that one instruction may copy. They start at multiples of it in the lists.
inline constexpr int kGroupTokens = 8;
inline constexpr int kStageGroups = kStageTokens / kGroupTokens;

// What a KV row of the token lists has besides its number.
inline constexpr int32_t kReadAgain = 1 << 30;   // other partitions read it, too: to be cached
inline constexpr int32_t kWholeGroup = 1 << 29;  // of a group's first: all eight are neighbours
inline constexpr int32_t kWrittenNow = 1 << 28;  // by this step, perhaps by the kernel before
inline constexpr int32_t kForBoth = 1 << 27;  // of a group's first: of a stage that a pair shares
inline constexpr int32_t kKvRowMask = kForBoth - 1;
// Padding. Has all bits: a group of padding is a whole group of a row that no cache reaches.
inline constexpr int32_t kAbsentToken = -1;

// As TreePlan::kDirect and kUntouched, for device code.
inline constexpr int32_t kTargetDirect = -1;
inline constexpr int32_t kTargetUntouched = -2;

// A partition, in run order. Each kv head is a unit of work of its own. The first partitions are
// pairs, of which the two blocks of a cluster take both units of a head at once: these have equally
// many stages, and where one of these is kForBoth it is so in both units, with the same tokens,
// half of which each block brings to both.
struct alignas(32) PlanUnit {
  int32_t token_begin;  // into the token lists
  int32_t num_stages;   // > 0, each of kStageTokens
  int32_t num_rows;     // queries
  int32_t queries_at;   // word of the first row's query index
  int32_t targets_at;   // word of the first row's target, as TreePlan::row_targets
  int32_t stages_at;    // word of the first stage's PlanStage
};

// With what a block asks for as soon as it starts: the KV rows of the first groups, as far as the
// first stages are of whole groups.
inline constexpr int kStartStages = 3;
struct alignas(32) PlanRecord {
  PlanUnit unit;
  int32_t num_start_stages;
  int32_t unused[7];
  int32_t group_kv_rows[kStartStages * kStageTokens / kGroupTokens];
};

inline constexpr int kWarpRows = 16;  // packed rows of a warp

// What a kernel need not find out from each of a stage's tokens.
inline constexpr uint32_t kSomeSee = 1 << 0;  // << w: of warp w's rows one sees some of the tokens
inline constexpr uint32_t kAllSee = 1 << 8;   // << w: each sees all
inline constexpr uint32_t kGathered = 1 << 16;  // some of the tokens are of no whole group
inline constexpr uint32_t kCausal = 1 << 17;  // a group's tokens are not all seen by the same rows
struct alignas(16) PlanStage {
  uint32_t seen;  // of the above
};
static_assert(kMostPackedRows / kWarpRows == 8);

// A run of slots of one page and the packed rows that see them; or padding.
struct PlanEntryRecord {
  int32_t kv_row;        // of the first slot, for kv head 0: an offset in head_dim elements; and
                         // kReadAgain. Or kAbsentToken.
  int32_t groups_begin;  // into the token lists: of the slots that make whole groups
  int32_t rest_begin;    // and of those behind
  int32_t count;
  uint32_t rows;      // packed rows [low half, high half) of the partition
  int32_t slot_rows;  // -1, or the index of `count` row intervals of the plan, one a slot
  int32_t row_begin;  // the partition's first row
};

// A row whose partial states are to be merged.
struct PlanMergeRow {
  int32_t query;
  int32_t count;
  int32_t partials_at;  // word of its first partial state's index
};

struct alignas(8) PartialWeight {
  float lse;    // log2 of the denominator
  float scale;  // a power of two close to the row's largest output
};

struct alignas(64) PlanHeader {
  int32_t num_partitions;
  int32_t num_pairs;
  int32_t num_merge_rows;
  int32_t merge_rows_at;  // word of the first PlanMergeRow
};

// Pointers are to device memory and stay what they are until PlanBuffers::generation changes.
struct DevicePlan {
  const PlanHeader* header = nullptr;      // followed by [num_partitions] PlanRecord
  const int32_t* token_kv_rows = nullptr;  // [tokens] as PlanEntryRecord::kv_row, kWholeGroup
  const uint32_t* token_rows = nullptr;    // [tokens] as PlanEntryRecord::rows
  // Partial states: outputs, normalised, in units of their row's scale, and what belongs to a row.
  uint16_t* partial_out = nullptr;           // [partial_rows, num_heads, head_dim] fp16
  PartialWeight* partial_weights = nullptr;  // [partial_rows, num_heads]
  int32_t* claims = nullptr;  // [2] units claimed, workers done; zero between launches

  // What the plan in place is, and was made for.
  bool runs_on_hopper = false;  // by the kernel that needs sm_90a
  bool has_partials = false;
  bool has_pairs = false;
  int num_heads = 0;
  int num_kv_heads = 0;
  int group_size = 0;     // query heads a kv head
  int group_inverse = 0;  // row * group_inverse >> 16 is row / group_size, for a partition's rows
  uint64_t kv_heads_inverse = 0;  // unit * kv_heads_inverse >> 32 is unit / num_kv_heads
  int head_dim = 0;
  int page_size = 0;
  int num_pages = 0;
};

}  // namespace espalier
