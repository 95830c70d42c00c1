#include "tests/support/workload_trace.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <ostream>
#include <stdexcept>

namespace espalier::testing {
namespace {

using Json = nlohmann::json;

TraceEvent ParseEvent(const Json& json) {
  TraceEvent event;
  event.step = json.at(0);
  if (json.at(1) == "F") {
    event.parent = json.at(2);
    event.first_child = json.at(3);
    event.num_children = json.at(4);
  } else {
    event.pruned = json.at(2).get<std::vector<int>>();
  }
  return event;
}

WorkloadTrace ParseTrace(const Json& json) {
  WorkloadTrace trace;
  trace.id = json.at("id");
  trace.prompt_tokens = json.at("prompt_tokens");
  trace.last_step = json.at("last_step");
  trace.num_nodes = static_cast<int>(json.at("parent").size());
  for (const Json& event : json.at("events")) trace.events.push_back(ParseEvent(event));
  const Json& expect = json.at("expect");
  trace.expect = {.steps = expect.at("steps"),
                  .sum_queries = expect.at("sum_queries"),
                  .sum_tree_tokens = expect.at("sum_tree_tokens"),
                  .sum_path_tokens = expect.at("sum_path_tokens"),
                  .max_leaves = expect.at("max_leaves")};
  return trace;
}

}  // namespace

void PrintTo(const TraceTotals& totals, std::ostream* out) {
  *out << "{steps " << totals.steps << ", queries " << totals.sum_queries << ", unique "
       << totals.sum_tree_tokens << ", logical " << totals.sum_path_tokens << ", most leaves "
       << totals.max_leaves << "}";
}

std::vector<WorkloadTrace> LoadWorkloadTraces(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot open " + path);
  std::vector<WorkloadTrace> traces;
  try {
    const Json json = Json::parse(file);
    if (json.at("schema") != "tree-workloads/1") throw std::runtime_error("unknown schema");
    for (const Json& trace : json.at("traces")) traces.push_back(ParseTrace(trace));
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
  return traces;
}

TraceReplay::TraceReplay(const WorkloadTrace& trace)
    : trace_(trace),
      parent_(trace.num_nodes, -1),
      num_tokens_(trace.num_nodes, 0),
      num_children_(trace.num_nodes, 0),
      live_nodes_({0}),
      leaves_({0}) {
  num_tokens_[0] = trace.prompt_tokens;
}

bool TraceReplay::NextStep() {
  applied_.clear();
  for (; next_event_ < trace_.events.size() && trace_.events[next_event_].step == step_;
       ++next_event_) {
    const TraceEvent& event = trace_.events[next_event_];
    event.is_fork() ? Fork(event) : Prune(event);
    applied_.push_back(&event);
  }
  if (step_ == trace_.last_step) return false;
  ++step_;
  for (const int leaf : leaves_) ++num_tokens_[leaf];
  return true;
}

void TraceReplay::Fork(const TraceEvent& event) {
  std::erase(leaves_, event.parent);
  num_children_[event.parent] = event.num_children;
  for (int child = event.first_child; child < event.first_child + event.num_children; ++child) {
    parent_[child] = event.parent;
    leaves_.push_back(child);
    live_nodes_.push_back(child);
  }
}

void TraceReplay::Prune(const TraceEvent& event) {
  for (const int leaf : event.pruned) {
    std::erase(leaves_, leaf);
    int node = leaf;
    do {
      std::erase(live_nodes_, node);
      node = parent_[node];
    } while (node >= 0 && --num_children_[node] == 0);
  }
}

const TreeShape& TraceShapes::ShapeOf(const TraceReplay& replay) {
  shape_.Clear();
  shape_.page_size = page_size_;
  for (const int node : replay.live_nodes()) {
    if (node >= static_cast<int>(index_.size())) {
      index_.resize(node + 1, -1);
      pages_.resize(node + 1);
    }
    const size_t want = (replay.num_tokens(node) + page_size_ - 1) / page_size_;
    while (pages_[node].size() < want) pages_[node].push_back(next_page_++);
    const int parent = replay.parent(node);
    index_[node] =
        shape_.AddNode(parent < 0 ? -1 : index_[parent], replay.num_tokens(node), 0, pages_[node]);
  }
  for (const int leaf : replay.leaves()) {
    shape_.AddQuery(index_[leaf], replay.num_tokens(leaf) - 1);
  }
  return shape_;
}

}  // namespace espalier::testing
