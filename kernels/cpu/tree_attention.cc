#include "kernels/cpu/tree_attention.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/attention/tree_plan.h"
#include "kernels/core/check.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/tree_attention_tile.h"

namespace espalier::kernels::cpu {
namespace {

using AttendTileFn = void (*)(const AttentionTile& tile);

AttendTileFn PickAttendTile(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return AttendTilePortable;
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return AttendTileAvx2;
    case CpuIsa::kAvx512:
      return AttendTileAvx512;
#else
    case CpuIsa::kAvx2:
    case CpuIsa::kAvx512:
      break;
#endif
  }
  internal::CheckFailed("instruction set not built", __FILE__, __LINE__);
}

// Partial states of a layer: for each the normalised output and the log2 of the softmax's
// denominator.
struct PartialStates {
  float* out;  // [partial_rows, num_heads, head_dim]
  float* lse;  // [partial_rows, num_heads]
};

struct TileMemory {
  float* q;
  float* acc;
  float* max;
  float* sum;
  float* key_block;
  int32_t* row_of;
};

TileMemory CarveTileMemory(Scratch& scratch, size_t packed_rows, size_t head_dim) {
  // The arrays whose rows are read as vectors come first and stay aligned.
  const size_t matrix = packed_rows * head_dim;
  const size_t block = 2 * kKeyBlock * head_dim;
  const size_t sums = packed_rows * kKeyBlock;
  float* at = scratch.Get<float>(2 * matrix + block + sums + 2 * packed_rows);
  TileMemory memory;
  memory.key_block = at;
  memory.sum = at += block;
  memory.q = at += sums;
  memory.acc = at += matrix;
  memory.max = at += matrix;
  memory.row_of = reinterpret_cast<int32_t*>(at + packed_rows);
  return memory;
}

// q of the partition's rows and the kv head's group, scaled so that products with what is stored
// are scores in log2 units.
void GatherQueries(const TreeAttentionParams& p, const PlanPartition& partition, int kv_head,
                   float* q) {
  const int head_dim = p.kv.head_dim;
  const int group = p.plan->options.group_size;
  const float scale = p.scale * std::numbers::log2e_v<float> * p.kv.KeyScale(kv_head);
  for (int32_t row = partition.rows.begin; row < partition.rows.end; ++row) {
    const int64_t query = p.plan->query_of_row[row];
    const float* from = Floats(p.q) + (query * p.num_heads + kv_head * group) * head_dim;
    for (int i = 0; i < group * head_dim; ++i) *q++ = from[i] * scale;
  }
}

// Writes what the tile found for each row to the output or to its partial state.
void StoreRows(const TreeAttentionParams& p, const PlanPartition& partition,
               const AttentionTile& tile, const PartialStates& partials) {
  const int32_t* targets = p.plan->row_targets.data() + partition.target_begin;
  for (int i = 0; i < tile.num_rows * tile.group; ++i) {
    const int32_t target = targets[i / tile.group];
    if (target == TreePlan::kUntouched) continue;
    const int head = tile.kv_head * tile.group + i % tile.group;
    float sum = 0;
    for (int s = 0; s < kKeyBlock; ++s) sum += tile.sum[i * kKeyBlock + s];
    float* out;
    if (target == TreePlan::kDirect) {
      const int64_t query = p.plan->query_of_row[tile.row_begin + i / tile.group];
      out = Floats(p.out) + (query * p.num_heads + head) * tile.head_dim;
    } else {
      const int64_t state = int64_t{target} * p.num_heads + head;
      out = partials.out + state * tile.head_dim;
      partials.lse[state] = tile.max[i] + std::log2(sum);
    }
    const float* acc = tile.acc + static_cast<ptrdiff_t>(i) * tile.head_dim;
    const float factor = p.kv.ValueScale(tile.kv_head) / sum;
    for (int d = 0; d < tile.head_dim; ++d) out[d] = acc[d] * factor;
  }
}

// Combines the partial states of merge row `index`, for all heads, in the plan's order.
void MergeRow(const TreeAttentionParams& p, const PartialStates& partials, int64_t index) {
  const TreePlan& plan = *p.plan;
  const int head_dim = p.kv.head_dim;
  const int32_t* begin = plan.merge_partials.data() + plan.merge_begin[index];
  const int32_t* end = plan.merge_partials.data() + plan.merge_begin[index + 1];
  const int64_t query = plan.query_of_row[plan.merge_rows[index]];
  for (int head = 0; head < p.num_heads; ++head) {
    const auto lse = [&](int32_t partial) {
      return partials.lse[int64_t{partial} * p.num_heads + head];
    };
    float highest = lse(*begin);
    for (const int32_t* partial = begin; partial < end; ++partial) {
      highest = std::max(highest, lse(*partial));
    }
    float sum = 0;
    for (const int32_t* partial = begin; partial < end; ++partial) {
      sum += std::exp2(lse(*partial) - highest);
    }
    float* out = Floats(p.out) + (query * p.num_heads + head) * head_dim;
    std::fill_n(out, head_dim, 0.0f);
    for (const int32_t* partial = begin; partial < end; ++partial) {
      const float weight = std::exp2(lse(*partial) - highest) / sum;
      const float* from = partials.out + (int64_t{*partial} * p.num_heads + head) * head_dim;
      for (int d = 0; d < head_dim; ++d) out[d] += weight * from[d];
    }
  }
}

void CheckParams(const TreeAttentionParams& p) {
  ESPALIER_CHECK(p.kv.head_dim > 0);
  ESPALIER_CHECK(p.kv.head_dim <= 256);
  ESPALIER_CHECK(p.kv.head_dim % 8 == 0);
  ESPALIER_CHECK(p.kv.dtype == DType::kF32 || p.kv.dtype == DType::kF16 ||
                 p.kv.dtype == DType::kBF16 || p.kv.dtype == DType::kE4M3);
  ESPALIER_CHECK(p.plan->page_size == p.kv.page_size);
  ESPALIER_CHECK(p.plan->num_pages <= p.kv.num_pages);
  ESPALIER_CHECK(p.num_heads == p.kv.num_kv_heads * p.plan->options.group_size);
}

}  // namespace

void TreeAttention(const Context& ctx, const TreeAttentionParams& p) {
  CheckParams(p);
  const TreePlan& plan = *p.plan;
  const AttendTileFn attend_tile = PickAttendTile(ctx.cpu_isa());
  const int head_dim = p.kv.head_dim;
  const int num_kv_heads = p.kv.num_kv_heads;
  const int group = plan.options.group_size;

  PartialStates partials{};
  const int64_t num_states = plan.stats.partial_rows * p.num_heads;
  if (num_states > 0) {
    partials.out = ctx.shared_scratch().Get<float>(num_states * (head_dim + 1));
    partials.lse = partials.out + num_states * head_dim;
  }

  ctx.pool().Run(plan.num_partitions() * num_kv_heads, [&](int task, int worker) {
    const PlanPartition& partition = plan.partitions[plan.run_order[task / num_kv_heads]];
    const int num_rows = partition.rows.end - partition.rows.begin;
    const TileMemory memory =
        CarveTileMemory(ctx.worker_scratch(worker), size_t(num_rows) * group, head_dim);
    const int kv_head = task % num_kv_heads;
    GatherQueries(p, partition, kv_head, memory.q);
    const AttentionTile tile{.entries = plan.entries.data() + partition.entry_begin,
                             .num_entries = partition.entry_end - partition.entry_begin,
                             .slot_rows = plan.slot_rows.data(),
                             .row_begin = partition.rows.begin,
                             .num_rows = num_rows,
                             .group = group,
                             .k = p.kv.k,
                             .v = p.kv.v,
                             .kv_dtype = p.kv.dtype,
                             .num_kv_heads = num_kv_heads,
                             .kv_head = kv_head,
                             .page_size = p.kv.page_size,
                             .head_dim = head_dim,
                             .q = memory.q,
                             .acc = memory.acc,
                             .max = memory.max,
                             .sum = memory.sum,
                             .row_of = memory.row_of,
                             .key_block = memory.key_block};
    attend_tile(tile);
    StoreRows(p, partition, tile, partials);
  });

  // A merge row costs little: keep a few of them together.
  constexpr int64_t kMergeGrain = 8;
  ctx.pool().ParallelFor(static_cast<int64_t>(plan.merge_rows.size()), kMergeGrain,
                         [&](int64_t begin, int64_t end, int) {
                           for (int64_t i = begin; i < end; ++i) MergeRow(p, partials, i);
                         });
}

}  // namespace espalier::kernels::cpu
