#include "kernels/cuda/plan_buffers.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/tree_attention/device_plan.h"
#include "kernels/cuda/tree_attention/expand_tokens.h"
#include "kernels/cuda/tree_attention/partition_pairs.h"
#include "kernels/cuda/tree_attention/stage_order.h"
#include "kernels/runtime/device_memory.h"

namespace espalier {
namespace {

constexpr size_t kLeastBytes = 64 << 10;
// Packed rows that a token weighs, measured on an H100 at head_dim 128. Portable kernel: a stage
// that all 128 rows see takes 1.43 times as long as one that few rows see, for which the memory
// alone counts. Hopper's: the rows hardly count; a little more with E4M3, half of whose bytes leave
// the memory idle sooner.
constexpr int kTokenCostPortable = 288;
constexpr int kTokenCostHopper = 4000;
constexpr int kTokenCostHopperE4M3 = 1000;
// Two stages seen by few rows. A smaller piece is not worth its start and its partial states.
constexpr int64_t kLeastPieceTokens = 128;
// Of few rows, in 6 us: what a layer takes longer in all for being cut and merged.
constexpr int64_t kMergeTokens = 278;
// Arrays of the block start at multiples of this many words: 32 bytes, a sector.
constexpr int64_t kAlignWords = 8;
constexpr int64_t kStageWords = sizeof(PlanStage) / sizeof(int32_t);
constexpr uint32_t kEachSeesAll = kAllSee * 0xff;

// Bits [begin, end).
uint32_t WarpBits(uint32_t begin, uint32_t end) {
  return begin < end ? (1u << end) - (1u << begin) : 0;
}

static_assert(kTargetDirect == TreePlan::kDirect);
static_assert(kTargetUntouched == TreePlan::kUntouched);

bool RunsOnHopper(const Context& ctx, AttentionKernel kernel) {
  return ctx.cuda().compute_capability == 90 && kernel != AttentionKernel::kPortable;
}

int64_t AlignUp(int64_t value, int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

// Where the arrays of a plan lie in its block, in words.
class BlockLayout {
 public:
  BlockLayout(const TreePlan& plan, const PartitionPairs& pairs)
      : header(Place<PlanHeader>(1)),
        records(Place<PlanRecord>(plan.partitions.size())),
        // Each partition's padding is one more, and a stage may end within an entry.
        entries(Place<PlanEntryRecord>(plan.entries.size() + plan.partitions.size() +
                                       plan.stats.read_kv_tokens / kStageTokens)),
        stages(Place<PlanStage>(plan.stats.read_kv_tokens / kStageTokens + plan.partitions.size() +
                                pairs.num_empty_stages())),
        slot_rows(Place<RowInterval>(plan.slot_rows.size())),
        queries(Place<int32_t>(plan.query_of_row.size())),
        targets(Place<int32_t>(plan.row_targets.size())),
        merge_rows(Place<PlanMergeRow>(plan.merge_rows.size())),
        merge_partials(Place<int32_t>(plan.merge_partials.size())) {
    ESPALIER_CHECK(end_ <= std::numeric_limits<int32_t>::max());
  }

  size_t bytes() const { return end_ * sizeof(int32_t); }

 private:
  template <typename T>
  int64_t Place(size_t count) {
    const int64_t at = end_;
    end_ = AlignUp(at + static_cast<int64_t>(count * sizeof(T) / sizeof(int32_t)), kAlignWords);
    return at;
  }

  int64_t end_ = 0;  // before the places, which are taken in this order

 public:
  const int64_t header;
  const int64_t records;
  const int64_t entries;
  const int64_t stages;
  const int64_t slot_rows;
  const int64_t queries;
  const int64_t targets;
  const int64_t merge_rows;
  const int64_t merge_partials;
};

// Writes the block, and with it where each token of the plan goes in the token lists.
class BlockWriter {
 public:
  BlockWriter(const TreePlan& plan, const PartitionPairs& pairs, const BlockLayout& layout,
              StageOrder& order, int32_t* words)
      : plan_(plan), pairs_(pairs), layout_(layout), order_(order), words_(words) {}

  void Write() {
    *At<PlanHeader>(layout_.header) = {
        .num_partitions = plan_.num_partitions(),
        .num_pairs = pairs_.num_pairs(),
        .num_merge_rows = static_cast<int32_t>(plan_.merge_rows.size()),
        .merge_rows_at = static_cast<int32_t>(layout_.merge_rows)};
    record_ = At<PlanRecord>(layout_.records);
    for (int place = 0; place < plan_.num_partitions(); ++place) {
      WritePartition(plan_.partitions[pairs_.run_order()[place]], place);
      ++record_;
    }
    Copy(plan_.slot_rows, layout_.slot_rows);
    Copy(plan_.query_of_row, layout_.queries);
    Copy(plan_.row_targets, layout_.targets);
    Copy(plan_.merge_partials, layout_.merge_partials);
    WriteMergeRows();
  }
  // Of the entries that were written.
  int num_entries() const {
    return static_cast<int>(entry_ - At<PlanEntryRecord>(layout_.entries));
  }

 private:
  template <typename T>
  T* At(int64_t word) const {
    return reinterpret_cast<T*>(words_ + word);
  }
  template <typename T>
  void Copy(const std::vector<T>& from, int64_t word) {
    if (!from.empty()) std::memcpy(words_ + word, from.data(), from.size() * sizeof(T));
  }

  void WritePartition(const PlanPartition& partition, int place) {
    ESPALIER_CHECK((partition.rows.end - partition.rows.begin) * plan_.options.group_size <=
                   kMostPackedRows);
    const std::span<const PlanEntry> entries = plan_.EntriesOf(partition);
    int64_t in_groups = 0;
    int64_t num_tokens = 0;
    for (const PlanEntry& entry : entries) {
      in_groups += entry.count / kGroupTokens * kGroupTokens;
      num_tokens += entry.count;
    }
    const int64_t num_stages = pairs_.NumStages(place, num_tokens);
    record_->unit = {.token_begin = static_cast<int32_t>(num_tokens_),
                     .num_stages = static_cast<int32_t>(num_stages),
                     .num_rows = partition.rows.end - partition.rows.begin,
                     .queries_at = static_cast<int32_t>(layout_.queries + partition.rows.begin),
                     .targets_at = static_cast<int32_t>(layout_.targets + partition.target_begin),
                     .stages_at = static_cast<int32_t>(layout_.stages +
                                                       num_tokens_ / kStageTokens * kStageWords)};
    std::fill_n(stages_ + num_tokens_ / kStageTokens, num_stages, PlanStage{.seen = kEachSeesAll});
    groups_begin_ = num_tokens_;
    rest_begin_ = num_tokens_ + in_groups;
    const SharedStages shared = pairs_.shared(place);
    const std::span<const EntryPart> parts =
        order_.Of(entries, partition.rows, plan_.options.group_size, shared);
    if (parts.empty()) {
      for (const PlanEntry& entry : entries) WriteEntry(entry, partition.rows.begin);
    }
    for (const EntryPart& part : parts) {
      PlanEntry entry = entries[part.entry];
      entry.first_slot += part.offset;
      entry.count = part.count;
      if (entry.slot_rows >= 0) entry.slot_rows += part.offset;
      if (part.is_shared) entry.read_again = shared.read_again;
      WriteEntry(entry, partition.rows.begin, part.is_shared ? kForBoth : 0);
    }
    record_->num_start_stages =
        static_cast<int32_t>(std::min<int64_t>(kStartStages, in_groups / kStageTokens));
    num_tokens_ += num_stages * kStageTokens;
    if (rest_begin_ < num_tokens_) WritePadding(num_tokens_ - rest_begin_);
  }

  void WriteEntry(const PlanEntry& entry, int32_t first_row, int32_t flags = 0) {
    const auto packed = [&](int32_t row) {
      return static_cast<uint32_t>((row - first_row) * plan_.options.group_size);
    };
    const int64_t kv_rows_of_page = int64_t{plan_.options.num_kv_heads} * plan_.page_size;
    const int32_t kv_row = static_cast<int32_t>(entry.page * kv_rows_of_page + entry.first_slot) |
                           (entry.read_again ? kReadAgain : 0) |
                           (entry.written_now ? kWrittenNow : 0) | flags;
    *entry_++ = {.kv_row = kv_row,
                 .groups_begin = static_cast<int32_t>(groups_begin_),
                 .rest_begin = static_cast<int32_t>(rest_begin_),
                 .count = entry.count,
                 .rows = packed(entry.rows.begin) | packed(entry.rows.end) << 16,
                 .slot_rows = entry.slot_rows,
                 .row_begin = first_row};
    const uint32_t bits = SeenBits(packed(entry.rows.begin), packed(entry.rows.end), entry);
    const auto see = [&](int64_t* begin, int count, bool gathered) {
      for (int64_t at = *begin / kStageTokens; at * kStageTokens < *begin + count; ++at) {
        uint32_t& seen = stages_[at].seen;
        seen = (seen & kEachSeesAll & bits) | ((seen | bits) & ~kEachSeesAll) |
               (gathered ? kGathered : 0);
      }
      *begin += count;
    };
    const int in_groups = entry.count / kGroupTokens * kGroupTokens;
    for (int i = 0; i < in_groups; i += kGroupTokens) {
      const int64_t group = (groups_begin_ + i - num_tokens_) / kGroupTokens;
      if (group >= std::ssize(record_->group_kv_rows)) break;
      record_->group_kv_rows[group] = (kv_row | kWholeGroup) + i;
    }
    if (in_groups > 0) see(&groups_begin_, in_groups, /*gathered=*/false);
    if (in_groups < entry.count) see(&rest_begin_, entry.count - in_groups, /*gathered=*/true);
  }

  // As PlanStage::seen, of an entry by itself, which packed rows [begin, end) see.
  uint32_t SeenBits(uint32_t begin, uint32_t end, const PlanEntry& entry) const {
    const auto up = [](uint32_t row) { return (row + kWarpRows - 1) / kWarpRows; };
    const uint32_t some = kSomeSee * WarpBits(begin / kWarpRows, up(end));
    if (entry.slot_rows >= 0) return some | kCausal;
    // A warp's rows may end with the partition's.
    const uint32_t num_rows = record_->unit.num_rows * plan_.options.group_size;
    return some | kAllSee * WarpBits(up(begin), end == num_rows ? up(end) : end / kWarpRows);
  }

  // Of a partition's last stages.
  void WritePadding(int64_t count) {
    *entry_++ = {
        .kv_row = kAbsentToken,
        .groups_begin = static_cast<int32_t>(rest_begin_),
        .rest_begin = static_cast<int32_t>(rest_begin_ + count / kGroupTokens * kGroupTokens),
        .count = static_cast<int32_t>(count),
        .rows = 0,
        .slot_rows = -1,
        .row_begin = 0};
    for (int64_t at = rest_begin_ / kStageTokens; at * kStageTokens < num_tokens_; ++at) {
      stages_[at].seen &= ~kEachSeesAll;
    }
  }

  void WriteMergeRows() {
    PlanMergeRow* row = At<PlanMergeRow>(layout_.merge_rows);
    for (size_t i = 0; i < plan_.merge_rows.size(); ++i) {
      const int32_t begin = plan_.merge_begin[i];
      *row++ = {.query = plan_.query_of_row[plan_.merge_rows[i]],
                .count = plan_.merge_begin[i + 1] - begin,
                .partials_at = static_cast<int32_t>(layout_.merge_partials + begin)};
    }
  }

  const TreePlan& plan_;
  const PartitionPairs& pairs_;
  const BlockLayout& layout_;
  StageOrder& order_;
  int32_t* words_;
  PlanStage* stages_ = At<PlanStage>(layout_.stages);
  PlanRecord* record_ = nullptr;  // of the partition
  PlanEntryRecord* entry_ = At<PlanEntryRecord>(layout_.entries);
  int64_t num_tokens_ = 0;
  int64_t groups_begin_ = 0;  // where the partition's next whole groups go,
  int64_t rest_begin_ = 0;    // and its other tokens
};

// What a plan takes, in bytes.
struct PlanBytes {
  size_t staging;
  size_t block;
  size_t tokens;
  size_t partial_out;
  size_t partial_weights;
};

}  // namespace

struct PlanBuffers::Impl {
  Impl(const Context& context, DType kv, AttentionKernel which)
      : ctx(context), kv_dtype(kv), kernel(which), stagings{Staging(ctx), Staging(ctx)} {}
  // What was uploaded last may still be on its way.
  ~Impl() { Synchronize(ctx); }

  struct Staging {
    explicit Staging(const Context& ctx) : copied(ctx) {}
    StagingBuffer memory;
    DeviceEvent copied;
  };

  const Context& ctx;
  const DType kv_dtype;
  const AttentionKernel kernel;
  DevicePlan plan;
  PartitionPairs pairs;  // of the plan that is being uploaded
  StageOrder order;
  int generation = 0;
  Staging stagings[2];  // taken in turns, for a step's may still wait behind the step before
  int next_staging = 0;
  DeviceBuffer block;
  DeviceBuffer token_kv_rows;
  DeviceBuffer token_rows;
  DeviceBuffer partial_out;
  DeviceBuffer partial_weights;
  DeviceBuffer claims;

  void FindPairs(const TreePlan& tree_plan);
  PlanBytes BytesOf(const TreePlan& tree_plan, const BlockLayout& layout) const;
  bool Holds(const PlanBytes& bytes) const;
  bool Grow(const PlanBytes& bytes);
  void Write(const TreePlan& tree_plan, const BlockLayout& layout);

  // Whether the buffer has at least `bytes`, if need be after it has moved.
  template <typename Buffer>
  bool Reserve(Buffer& buffer, size_t bytes) {
    if (bytes <= buffer.bytes()) return true;
    const size_t more = std::max({bytes, 2 * buffer.bytes(), kLeastBytes});
    buffer = Buffer();  // first, so that old and new are never held together
    buffer = Buffer(ctx, more);
    if (buffer.empty()) buffer = Buffer(ctx, bytes);
    ++generation;
    return !buffer.empty();
  }
};

PlanBuffers::PlanBuffers(const Context& ctx, int num_heads, int head_dim, DType kv_dtype,
                         AttentionKernel kernel)
    : impl_(std::make_unique<Impl>(ctx, kv_dtype, kernel)) {
  impl_->plan.num_heads = num_heads;
  impl_->plan.head_dim = head_dim;
  impl_->plan.runs_on_hopper = RunsOnHopper(ctx, kernel);
}
PlanBuffers::~PlanBuffers() = default;

int PlanBuffers::generation() const { return impl_->generation; }
const DevicePlan& PlanBuffers::device_plan() const { return impl_->plan; }

bool PlanBuffers::Upload(const TreePlan& tree_plan) {
  impl_->FindPairs(tree_plan);
  const BlockLayout layout(tree_plan, impl_->pairs);
  const PlanBytes bytes = impl_->BytesOf(tree_plan, layout);
  if (!impl_->Holds(bytes) && !impl_->Grow(bytes)) return false;
  impl_->Write(tree_plan, layout);
  return true;
}

bool PlanBuffers::UploadAhead(const TreePlan& tree_plan) {
  impl_->FindPairs(tree_plan);
  const BlockLayout layout(tree_plan, impl_->pairs);
  if (!impl_->Holds(impl_->BytesOf(tree_plan, layout))) return false;
  impl_->Write(tree_plan, layout);
  return true;
}

// Where the kernel takes them, and blocks are even in number. Not with E4M3: copies go to another
// ring than the one that consumers release, and are half as many bytes.
void PlanBuffers::Impl::FindPairs(const TreePlan& tree_plan) {
  if (!plan.runs_on_hopper || kv_dtype == DType::kE4M3 || ctx.cuda().num_sms % 2 != 0) {
    pairs.FindNone(tree_plan);
  } else if (kernel == AttentionKernel::kPairs) {
    pairs.Find(tree_plan);
  } else {
    pairs.FindIfTheyPay(tree_plan);
  }
}

PlanBytes PlanBuffers::Impl::BytesOf(const TreePlan& tree_plan, const BlockLayout& layout) const {
  const int64_t most_tokens = tree_plan.stats.read_kv_tokens +
                              int64_t{kStageTokens - 1} * tree_plan.num_partitions() +
                              kStageTokens * pairs.num_empty_stages();
  ESPALIER_CHECK(most_tokens <= std::numeric_limits<int32_t>::max());
  // Blocks read a record before they know whether there is one: from memory that is theirs, and was
  // written.
  const size_t readable =
      sizeof(PlanHeader) +
      (tree_plan.num_partitions() + ctx.cuda().num_sms + 1) * sizeof(PlanRecord);
  // Kernels count them in 31 bits: more, of 136 bytes at least, no device has memory for.
  const size_t states = tree_plan.stats.partial_rows * plan.num_heads;
  return {.staging = layout.bytes(),
          .block = std::max(layout.bytes(), readable),
          .tokens = most_tokens * sizeof(int32_t),
          .partial_out = states * plan.head_dim * sizeof(uint16_t),
          .partial_weights = states * sizeof(PartialWeight)};
}

bool PlanBuffers::Impl::Holds(const PlanBytes& bytes) const {
  return bytes.staging <= stagings[next_staging].memory.bytes() && bytes.block <= block.bytes() &&
         bytes.tokens <= token_kv_rows.bytes() && bytes.tokens <= token_rows.bytes() &&
         bytes.partial_out <= partial_out.bytes() &&
         bytes.partial_weights <= partial_weights.bytes() && !claims.empty();
}

bool PlanBuffers::Impl::Grow(const PlanBytes& bytes) {
  Synchronize(ctx);
  const size_t block_bytes = block.bytes();
  for (Staging& staging : stagings) {
    if (!Reserve(staging.memory, bytes.staging)) return false;
  }
  if (!Reserve(block, bytes.block) || !Reserve(token_kv_rows, bytes.tokens) ||
      !Reserve(token_rows, bytes.tokens) || !Reserve(partial_out, bytes.partial_out) ||
      !Reserve(partial_weights, bytes.partial_weights) || !Reserve(claims, 2 * sizeof(int32_t))) {
    return false;
  }
  if (block.bytes() != block_bytes) FillDevice(ctx, block.As<void>(), 0, block.bytes());
  return true;
}

void PlanBuffers::Impl::Write(const TreePlan& tree_plan, const BlockLayout& layout) {
  const PlanOptions& options = tree_plan.options;
  ESPALIER_CHECK(plan.num_heads == options.num_kv_heads * options.group_size);
  ESPALIER_CHECK(int64_t{tree_plan.num_pages} * options.num_kv_heads * tree_plan.page_size <=
                 kKvRowMask);
  plan.header = block.As<PlanHeader>();
  plan.token_kv_rows = token_kv_rows.As<int32_t>();
  plan.token_rows = token_rows.As<uint32_t>();
  plan.partial_out = partial_out.As<uint16_t>();
  plan.partial_weights = partial_weights.As<PartialWeight>();
  plan.claims = claims.As<int32_t>();
  plan.has_partials = tree_plan.stats.partial_rows > 0;
  plan.has_pairs = pairs.num_pairs() > 0;
  plan.num_kv_heads = options.num_kv_heads;
  plan.group_size = options.group_size;
  plan.group_inverse = 65536 / options.group_size + 1;
  plan.kv_heads_inverse = (uint64_t{1} << 32) / options.num_kv_heads + 1;
  ESPALIER_CHECK((tree_plan.num_partitions() + ctx.cuda().num_sms + int64_t{1}) *
                     options.num_kv_heads * options.num_kv_heads <
                 int64_t{1} << 32);
  plan.page_size = tree_plan.page_size;
  plan.num_pages = tree_plan.num_pages;

  Staging& staging = stagings[next_staging];
  next_staging ^= 1;
  staging.copied.Wait();
  BlockWriter writer(tree_plan, pairs, layout, order, staging.memory.As<int32_t>());
  writer.Write();
  CopyToDevice(ctx, block.As<void>(), staging.memory.As<void>(), layout.bytes());
  staging.copied.Record();
  const int32_t* words = block.As<int32_t>();
  cuda::Check(ctx, "ExpandTokens",
              cuda::ExpandTokens(
                  {.entries = reinterpret_cast<const PlanEntryRecord*>(words + layout.entries),
                   .num_entries = writer.num_entries(),
                   .slot_rows = reinterpret_cast<const RowInterval*>(words + layout.slot_rows),
                   .group_size = options.group_size,
                   .token_kv_rows = token_kv_rows.As<int32_t>(),
                   .token_rows = token_rows.As<uint32_t>()},
                  cuda::StreamOf(ctx)));
  // Also keeps a kernel that comes next from starting early, for it would read the token lists.
  FillDevice(ctx, claims.As<void>(), 0, claims.bytes());
}

PlanOptions CudaPlanOptions(const Context& ctx, AttentionVariant variant, int num_heads,
                            int num_kv_heads, DType kv_dtype, AttentionKernel kernel) {
  int token_cost = kTokenCostPortable;
  if (RunsOnHopper(ctx, kernel)) {
    token_cost = kv_dtype == DType::kE4M3 ? kTokenCostHopperE4M3 : kTokenCostHopper;
  }
  return {.variant = variant,
          .group_size = num_heads / num_kv_heads,
          .num_kv_heads = num_kv_heads,
          .num_workers = ctx.cuda().num_sms,
          .tile_rows = kMostPackedRows,
          .cost = {.token = token_cost,
                   .min_piece = kLeastPieceTokens * token_cost,
                   .merge = kMergeTokens * token_cost}};
}

}  // namespace espalier
