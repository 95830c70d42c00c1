#include "engine/executor/plan_ahead.h"

#include <algorithm>

namespace espalier {
namespace {

// Stand-ins for pages are ids from here on. No pool has so many pages.
constexpr int32_t kStandIn = 1 << 30;

}  // namespace

const TreePlan& PlanAhead::Plan(const TreeShape& shape) {
  if (guessed_ && CameTrue(shape)) {
    PutPages();
    guessed_ = false;
    ++hits_;
    return plan_;
  }
  guessed_ = false;
  return planner_.Plan(shape, options_);
}

void PlanAhead::Prepare(const TreeShape& shape) {
  guessed_ = Guess(shape);
  if (guessed_) plan_ = planner_.Plan(guess_, options_);
}

bool PlanAhead::Guess(const TreeShape& shape) {
  grows_.assign(shape.num_nodes(), 0);
  for (int i = 0; i < shape.num_queries(); ++i) {
    const int node = shape.query_node[i];
    if (grows_[node] || shape.draft_begin[node] >= 0) return false;
    if (shape.query_offset[i] != shape.num_tokens[node] - 1) return false;
    grows_[node] = 1;
  }
  guess_.Clear();
  guess_.page_size = shape.page_size;
  int32_t next_stand_in = kStandIn;
  for (int node = 0; node < shape.num_nodes(); ++node) {
    if (shape.draft_begin[node] >= 0) return false;
    pages_.assign(shape.page_ids.begin() + shape.page_begin[node],
                  shape.page_ids.begin() + shape.page_begin[node + 1]);
    const int tokens = shape.num_tokens[node] + grows_[node];
    const int slots = static_cast<int>(pages_.size()) * shape.page_size;
    if (shape.first_slot[node] + tokens > slots) pages_.push_back(next_stand_in++);
    guess_.AddNode(shape.parent[node], tokens, shape.first_slot[node], pages_);
  }
  for (int i = 0; i < shape.num_queries(); ++i) {
    guess_.AddQuery(shape.query_node[i], shape.query_offset[i] + 1);
  }
  return true;
}

bool PlanAhead::CameTrue(const TreeShape& shape) {
  if (shape.page_size != guess_.page_size || shape.parent != guess_.parent ||
      shape.num_tokens != guess_.num_tokens || shape.first_slot != guess_.first_slot ||
      shape.page_begin != guess_.page_begin || shape.draft_begin != guess_.draft_begin ||
      shape.query_node != guess_.query_node || shape.query_offset != guess_.query_offset) {
    return false;
  }
  stand_ins_.clear();
  for (size_t i = 0; i < shape.page_ids.size(); ++i) {
    if (guess_.page_ids[i] >= kStandIn) {
      stand_ins_.push_back(shape.page_ids[i]);
    } else if (guess_.page_ids[i] != shape.page_ids[i]) {
      return false;
    }
  }
  return true;
}

void PlanAhead::PutPages() {
  plan_.num_pages = 0;
  for (PlanEntry& entry : plan_.entries) {
    if (entry.page >= kStandIn) entry.page = stand_ins_[entry.page - kStandIn];
    plan_.num_pages = std::max(plan_.num_pages, entry.page + 1);
  }
}

}  // namespace espalier
