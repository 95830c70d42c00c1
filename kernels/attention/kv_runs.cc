#include "kernels/attention/kv_runs.h"

#include <algorithm>
#include <limits>

namespace espalier {
namespace {

RowInterval Clip(RowInterval rows, RowInterval tile) {
  return {std::max(rows.begin, tile.begin), std::min(rows.end, tile.end)};
}

bool SeenBeyond(const NodeRows& rows, RowInterval tile) {
  return rows.begin < tile.begin || rows.end > tile.end;
}

// What the runs of a node's tokens have in common, within a tile.
struct TileNode {
  int32_t node;
  int32_t now_begin;
  bool read_again;

  // Field by field: a whole run would be put together in memory first.
  void Append(int32_t begin, int32_t end, RowInterval rows, int32_t slot_rows,
              std::vector<KvRun>* runs) const {
    KvRun& run = runs->emplace_back();
    run.tokens.node = node;
    run.tokens.begin = begin;
    run.tokens.end = end;
    run.rows.begin = rows.begin;
    run.rows.end = rows.end;
    run.slot_rows = slot_rows;
    run.now_begin = now_begin;
    run.read_again = read_again;
  }
};

// Of a node with queries `own` in the tile: a page with some tokens before and some behind the
// first of them is a run of its own, as are all pages from there up to the last of them.
void AppendCausalRuns(const RowOrder& order, const TileNode& of, const KvSpan& span,
                      RowInterval rows, RowInterval own, std::vector<KvRun>* runs,
                      std::vector<RowInterval>* slot_rows) {
  const TreeShape& shape = order.shape();
  // Every row sees the tokens before full_end. From causal_end on, only rows of descendants do.
  const int full_end = order.offset_of_row(own.begin) + 1;
  const int causal_end = order.offset_of_row(own.end - 1) + 1;
  const int end = rows.end == own.end ? std::min(span.end, causal_end) : span.end;
  if (end <= span.begin) return;

  int token = end;
  if (full_end < end) {
    token = std::max(span.begin, full_end - SlotInPage(shape, span.node, full_end));
  }
  if (token > span.begin) of.Append(span.begin, token, rows, -1, runs);
  while (token < std::min(causal_end, end)) {
    const int page_end = PageEnd(shape, {.node = span.node, .begin = token, .end = end});
    int32_t row = std::max(own.begin, order.FirstOwnRowFrom(span.node, token));
    of.Append(token, page_end, {row, rows.end}, static_cast<int32_t>(slot_rows->size()), runs);
    for (; token < page_end; ++token) {
      while (row < own.end && order.offset_of_row(row) < token) ++row;
      slot_rows->push_back({row, rows.end});
    }
  }
  if (token < end) of.Append(token, end, {own.end, rows.end}, -1, runs);
}

void AppendPlainRuns(const RowOrder& order, const KvSpan& span, RowInterval tile,
                     std::vector<KvRun>* runs, std::vector<RowInterval>* slot_rows) {
  const NodeRows& node_rows = order.rows(span.node);
  const RowInterval rows = Clip({node_rows.begin, node_rows.end}, tile);
  if (rows.begin >= rows.end) return;
  const bool has_queries = node_rows.begin < node_rows.own_end;
  const TileNode of = {.node = span.node,
                       .now_begin = has_queries ? order.offset_of_row(node_rows.begin)
                                                : std::numeric_limits<int32_t>::max(),
                       .read_again = SeenBeyond(node_rows, tile)};
  const RowInterval own = Clip({node_rows.begin, node_rows.own_end}, tile);
  if (own.begin < own.end) {
    AppendCausalRuns(order, of, span, rows, own, runs, slot_rows);
  } else if (span.begin < span.end) {
    of.Append(span.begin, span.end, rows, -1, runs);
  }
}

// A token that no row of the tile sees ends a run: whatever is in a run is seen.
void AppendDraftRuns(const RowOrder& order, const KvSpan& span, RowInterval tile,
                     std::vector<KvRun>* runs, std::vector<RowInterval>* slot_rows) {
  const TreeShape& shape = order.shape();
  const bool read_again = SeenBeyond(order.rows(span.node), tile);
  for (int token = span.begin; token < span.end;) {
    const int page_end = PageEnd(shape, {.node = span.node, .begin = token, .end = span.end});
    const int32_t first_slot_rows = static_cast<int32_t>(slot_rows->size());
    RowInterval all{tile.end, tile.begin};
    bool uniform = true;
    int t = token;
    for (; t < page_end; ++t) {
      const RowInterval rows = Clip(order.DraftRows(span.node, t), tile);
      if (rows.begin >= rows.end) break;
      all = {std::min(all.begin, rows.begin), std::max(all.end, rows.end)};
      uniform &= t == token || rows == slot_rows->back();
      slot_rows->push_back(rows);
    }
    if (t > token) {
      if (uniform) slot_rows->resize(first_slot_rows);
      const TileNode of = {.node = span.node, .now_begin = token, .read_again = read_again};
      of.Append(token, t, all, uniform ? -1 : first_slot_rows, runs);
    }
    token = t < page_end ? t + 1 : t;
  }
}

}  // namespace

void AppendRuns(const RowOrder& order, const KvSpan& span, RowInterval tile,
                std::vector<KvRun>* runs, std::vector<RowInterval>* slot_rows) {
  if (order.shape().draft_begin[span.node] < 0) {
    AppendPlainRuns(order, span, tile, runs, slot_rows);
  } else {
    AppendDraftRuns(order, span, tile, runs, slot_rows);
  }
}

void EntryWriter::Write(const KvRun& run) {
  const int page_size = shape_.page_size;
  const int node = run.tokens.node;
  const int32_t* page = shape_.page_ids.data() + shape_.page_begin[node];
  int slot = shape_.first_slot[node] + run.tokens.begin;
  if (slot >= page_size) {  // most runs are short and begin in their node's first page
    page += slot / page_size;
    slot %= page_size;
  }
  int left = run.num_tokens();
  const int64_t num_pages = slot + left <= page_size ? 1 : (slot + left - 1) / page_size + 1;
  const int64_t size = num_entries_ + num_pages;
  if (size > static_cast<int64_t>(entries_.size())) entries_.resize(size + size / 8);

  // Field by field: a whole entry would be put together in memory first.
  PlanEntry* entry = entries_.data() + num_entries_;
  num_entries_ = size;
  const KvRun of = run;
  int32_t highest_page = num_pages_ - 1;
  int until_now = of.now_begin - of.tokens.begin;
  for (; left > 0; ++page, ++entry) {
    const int count = std::min(page_size - slot, left);
    highest_page = std::max(highest_page, *page);
    entry->page = *page;
    entry->first_slot = slot;
    entry->count = count;
    entry->rows = of.rows;
    entry->slot_rows = of.slot_rows;
    entry->read_again = of.read_again;
    entry->written_now = count > until_now;
    left -= count;
    until_now -= count;
    slot = 0;
  }
  num_pages_ = highest_page + 1;
}

}  // namespace espalier
