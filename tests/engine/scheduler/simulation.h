// Drives a Scheduler from a seed: random trees, clients that read slowly or vanish, a pool that is
// too small. The model is a hash: the KV of a token is the hash of its whole path, so that a wrong
// slot, a lost page or a mixed-up branch shows at the first query that sees it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "tests/support/fake_tokenizer.h"

namespace espalier {

struct SimulationOptions {
  uint64_t seed = 0;
  Sharing sharing = Sharing::kCache;
  int num_pages = 64;
  int page_size = 4;
  int max_batch_tokens = 24;
  int max_logits_rows = 12;
  int max_live_branches = 16;
  int max_trees = 6;
  int max_path_tokens = 96;  // of a generated request, which fits the pool alone
  double cancel_rate = 0.002;
  double slow_client_rate = 0.1;  // trees whose client reads now and then
  Speculative speculative = Speculative::kOff;
  DraftShape draft_shape = {};
  int check_every = 1;  // steps between full checks of the invariants
};

class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options);

  // One turn of the engine's loop: perhaps a request, a cancel, a client's read; then a step.
  void Step();
  // No more requests; steps until every tree has ended, then checks that nothing leaked.
  void Drain();

  int64_t steps() const { return steps_; }
  int64_t trees_finished() const { return finished_; }
  int64_t preemptions() const { return scheduler_.Stats().preemptions; }
  int64_t kv_moves() const { return kv_moves_; }
  const Usage& total() const { return total_; }

 private:
  struct Client {
    std::shared_ptr<Outbox> outbox;
    bool slow = false;
    bool started = false;
    DecodeTree* tree = nullptr;  // lives while the scheduler has it
    int64_t arrival = 0;
    std::map<int, std::vector<int32_t>> branches;  // tokens by branch id
    std::map<int, bool> ended;
  };

  void Submit();
  std::vector<TreeNode> RandomNodes();
  Generation RandomGeneration();
  void AddJudge(TreeNode& node);
  void AllowAcrossPaths(const std::vector<TreeNode>& nodes, TreeNode& node);
  void Read(const std::string& id, Client& client);
  const StepBatch* Draft(const StepBatch* batch);
  void RunModel(const StepBatch& batch);
  void StoreKv(const StepBatch& batch, std::vector<uint64_t>& kv);
  void FindTop();
  void CheckTopProgressed();
  void CheckRow(const StepBatch& batch, const std::vector<uint64_t>& kv, int row);
  void MoveKv(const Scheduler::KvMoves& moves, std::vector<uint64_t>& kv);
  int Random(int low, int high) { return std::uniform_int_distribution(low, high)(rng_); }
  bool Chance(double p) { return std::bernoulli_distribution(p)(rng_); }

  const SimulationOptions options_;
  std::mt19937_64 rng_;
  PagePool pool_;
  RadixTree radix_;
  FakeTokenizer tokenizer_;
  Scheduler scheduler_;
  std::vector<uint64_t> kv_;        // [slots] hash of the path that ends in the slot
  std::vector<uint64_t> draft_kv_;  // [slots] the draft model's
  std::vector<uint64_t> row_hash_;  // of the last batch
  std::map<std::string, Client> clients_;
  std::vector<std::vector<int32_t>> prompts_;  // few, so that requests share prefixes
  std::vector<Sample> samples_;
  std::vector<uint8_t> row_bad_;
  absl::Time now_ = absl::UnixEpoch();
  int64_t steps_ = 0;
  std::string top_;              // the tree of highest rank whose client reads
  int64_t top_computed_ = 0;     // its rows so far
  int64_t top_waits_ = 0;        // steps since it had a row
  int64_t top_waits_alone_ = 0;  // of those, the latest without a tree of equal priority
  int64_t submitted_ = 0;
  int64_t finished_ = 0;
  int64_t kv_moves_ = 0;
  Usage total_;
};

}  // namespace espalier
