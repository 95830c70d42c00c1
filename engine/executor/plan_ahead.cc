#include "engine/executor/plan_ahead.h"

#include <utility>

namespace espalier {
namespace {

// In place of a new page: the node does not grow, or its last page has room.
constexpr int32_t kStays = -2;
constexpr int32_t kHasRoom = -1;

bool IsFull(const TreeShape& shape, int node) {
  const int pages = shape.page_begin[node + 1] - shape.page_begin[node];
  return shape.first_slot[node] + shape.num_tokens[node] == pages * shape.page_size;
}

}  // namespace

const TreePlan& PlanAhead::Plan(const TreeShape& shape) {
  const TreePlan* const plan = std::exchange(plan_, nullptr);
  came_true_ = plan != nullptr && shape == guess_;
  return came_true_ ? *plan : planner_.Plan(shape, options_);
}

const TreePlan* PlanAhead::Prepare(const TreeShape& shape, std::span<const int32_t> next_pages) {
  plan_ = Guess(shape, next_pages) ? &planner_.Plan(guess_, options_) : nullptr;
  return plan_;
}

bool PlanAhead::Guess(const TreeShape& shape, std::span<const int32_t> next_pages) {
  new_page_.assign(shape.num_nodes(), kStays);
  size_t pages_begun = 0;
  // Branches take their pages in the order of their queries.
  for (int i = 0; i < shape.num_queries(); ++i) {
    const int node = shape.query_node[i];
    if (new_page_[node] != kStays || shape.draft_begin[node] >= 0) return false;
    if (shape.query_offset[i] != shape.num_tokens[node] - 1) return false;
    new_page_[node] = kHasRoom;
    if (!IsFull(shape, node)) continue;
    if (pages_begun == next_pages.size()) return false;
    new_page_[node] = next_pages[pages_begun++];
  }
  guess_.Clear();
  guess_.page_size = shape.page_size;
  for (int node = 0; node < shape.num_nodes(); ++node) {
    if (shape.draft_begin[node] >= 0) return false;
    pages_.assign(shape.page_ids.begin() + shape.page_begin[node],
                  shape.page_ids.begin() + shape.page_begin[node + 1]);
    if (new_page_[node] >= 0) pages_.push_back(new_page_[node]);
    guess_.AddNode(shape.parent[node], shape.num_tokens[node] + (new_page_[node] != kStays),
                   shape.first_slot[node], pages_);
  }
  for (int i = 0; i < shape.num_queries(); ++i) {
    guess_.AddQuery(shape.query_node[i], shape.query_offset[i] + 1);
  }
  return true;
}

}  // namespace espalier
