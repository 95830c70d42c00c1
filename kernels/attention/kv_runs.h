// Runs of a node's tokens that the same rows of a tile see: what partitions are weighed and cut by,
// and what their entries, a page each, are written from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/attention/row_order.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/attention/tree_shape.h"

namespace espalier {

// Tokens [begin, end) of a node.
struct KvSpan {
  int32_t node;
  int32_t begin;
  int32_t end;
};

// The slot, within its page, of a node's token.
inline int SlotInPage(const TreeShape& shape, int node, int token) {
  return (shape.first_slot[node] + token) % shape.page_size;
}
// The end of what a span, which is not empty, has of its first page.
inline int32_t PageEnd(const TreeShape& shape, const KvSpan& span) {
  const int slots_left = shape.page_size - SlotInPage(shape, span.node, span.begin);
  return std::min(span.begin + slots_left, span.end);
}

struct KvRun {
  KvSpan tokens;
  RowInterval rows;   // each token is seen by at least one, and each sees at least one
  int32_t slot_rows;  // as a PlanEntry's; unless -1, the run lies in one page
  int32_t now_begin;  // the first token that this step may write
  bool read_again;    // as a PlanEntry's

  int32_t num_tokens() const { return tokens.end - tokens.begin; }
  int32_t num_rows() const { return rows.end - rows.begin; }
};

// Appends the runs of what rows of `tile` see of `span`.
void AppendRuns(const RowOrder& order, const KvSpan& span, RowInterval tile,
                std::vector<KvRun>* runs, std::vector<RowInterval>* slot_rows);

// Writes entries one after the other, over those of the plan before: arrays of about the same
// length are not cleared for every plan.
class EntryWriter {
 public:
  EntryWriter(const TreeShape& shape, std::vector<PlanEntry>* entries)
      : shape_(shape), entries_(*entries) {}

  void Write(const KvRun& run);
  void Finish() { entries_.resize(num_entries_); }

  int64_t num_entries() const { return num_entries_; }
  int32_t num_pages() const { return num_pages_; }  // one more than the highest id so far

 private:
  const TreeShape& shape_;
  std::vector<PlanEntry>& entries_;
  int64_t num_entries_ = 0;
  int32_t num_pages_ = 0;
};

}  // namespace espalier
