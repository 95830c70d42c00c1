// Recorded tree-decoding workloads ("tree-workloads/1" files) and their replay. Shapes only: which
// nodes are alive, how long each is and which leaves issue a query, at every decode step.
//
// Time. Step 0 is the prefill of node 0, the prompt. At a decode step every live leaf first stores
// the KV of its current token and attends; then the step's events happen: forks, then prunes. A
// forked child has no token yet and stores its first one at the next step.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "kernels/attention/tree_shape.h"

namespace espalier::testing {

struct TraceEvent {
  int step = 0;
  // A fork turns leaf `parent` into an inner node with children first_child .. + num_children - 1.
  // A prune (parent < 0) drops the leaves `pruned`, then every ancestor left without live leaves.
  int parent = -1;
  int first_child = 0;
  int num_children = 0;
  std::vector<int> pruned;

  bool is_fork() const { return parent >= 0; }
};

// Sums over decode steps 1 .. last_step.
struct TraceTotals {
  int64_t steps = 0;
  int64_t sum_queries = 0;      // live leaves
  int64_t sum_tree_tokens = 0;  // tokens of live nodes: unique KV
  int64_t sum_path_tokens = 0;  // over leaves, tokens from the root: logical KV
  int64_t max_leaves = 0;
  bool operator==(const TraceTotals&) const = default;
};
void PrintTo(const TraceTotals& totals, std::ostream* out);  // for failed expectations

struct WorkloadTrace {
  std::string id;
  int prompt_tokens = 0;
  int last_step = 0;
  int num_nodes = 0;
  std::vector<TraceEvent> events;  // by step; within a step forks before prunes
  TraceTotals expect;
};

// Reads a trace file. Throws std::runtime_error, with the path, on a file that cannot be read.
std::vector<WorkloadTrace> LoadWorkloadTraces(const std::string& path);

// The trace's state, advanced by its events alone. Node ids are the trace's.
class TraceReplay {
 public:
  explicit TraceReplay(const WorkloadTrace& trace);

  // Applies the events of the current step (0 at first), then grows every live leaf by one token.
  // False when the trace is over.
  bool NextStep();

  int step() const { return step_; }
  const std::vector<int>& live_nodes() const { return live_nodes_; }  // parents before children
  const std::vector<int>& leaves() const { return leaves_; }          // each issues one query
  int parent(int node) const { return parent_[node]; }
  int num_tokens(int node) const { return num_tokens_[node]; }
  // The events that the last NextStep() applied.
  const std::vector<const TraceEvent*>& applied() const { return applied_; }

 private:
  void Fork(const TraceEvent& event);
  void Prune(const TraceEvent& event);

  const WorkloadTrace& trace_;
  int step_ = 0;
  size_t next_event_ = 0;
  std::vector<int> parent_;
  std::vector<int> num_tokens_;
  std::vector<int> num_children_;  // live ones
  std::vector<int> live_nodes_;
  std::vector<int> leaves_;
  std::vector<const TraceEvent*> applied_;
};

// Gives the nodes of a replay pages of their own and writes each step as a shape.
class TraceShapes {
 public:
  explicit TraceShapes(int page_size) : page_size_(page_size) {}
  // The replay's current step: its live nodes, one query at the end of each leaf.
  const TreeShape& ShapeOf(const TraceReplay& replay);

 private:
  int page_size_;
  int next_page_ = 0;
  std::vector<std::vector<int32_t>> pages_;  // by trace node
  std::vector<int> index_;                   // trace node -> shape node
  TreeShape shape_;
};

}  // namespace espalier::testing
