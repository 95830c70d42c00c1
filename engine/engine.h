// The engine's facade: validates and tokenises on the caller's thread, hands trees to the one
// engine thread, which schedules, runs the model and emits. All methods are thread-safe.
//
// Owns the checkpoint, the model, the KV cache and the engine thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/limits.h"
#include "engine/outbox.h"
#include "engine/request.h"
#include "engine/sharing.h"
#include "kernels/runtime/context.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"

namespace espalier {

struct EngineConfig {
  std::string model_path;
  Device device = Device::kCpu;
  CpuPrecision cpu_precision = CpuPrecision::kAuto;
  int num_threads = 0;  // 0: every core
  Sharing sharing = Sharing::kCache;
  size_t kv_memory_bytes = 0;  // 0: a quarter of the free memory, at most 4 GiB
  int page_size = 16;
  int max_batch_tokens = 512;  // rows a step: decode rows and prefill chunks together
  int max_live_branches = 1024;
  int max_context = 0;           // 0: the model's
  size_t outbox_capacity = 256;  // events a request
  absl::Duration stall_timeout = absl::Seconds(60);
  Limits limits;
};

struct ModelInfo {
  std::string name;
  ModelConfig config;
  std::string weight_type;  // dtype of most weight bytes
  int64_t parameters = 0;
  int64_t weight_bytes = 0;
  int max_context = 0;
  ChatFormat chat_format = ChatFormat::kNone;
};

struct EngineStats {
  int64_t pages_total = 0, pages_free = 0, pages_cached = 0, pages_locked = 0, pages_retiring = 0;
  int page_size = 0;
  int64_t kv_bytes = 0;
  int trees_waiting = 0, trees_running = 0, branches_live = 0;
  int64_t trees_finished = 0, steps = 0, preemptions = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, computed_tokens = 0, completion_tokens = 0;
  int64_t kv_tokens_read_unique = 0, kv_tokens_read_logical = 0;
  double schedule_ms = 0, plan_ms = 0, forward_ms = 0, sample_ms = 0, emit_ms = 0;  // sums
  double uptime_s = 0;
};

struct TreeNodeInfo {
  int parent = -1;
  int num_tokens = 0;
  int filled = 0;
  int locks = 0;
  int num_pages = 0;
  bool indexed = false;
  std::string head_text;  // the first few tokens
};

// What a tree's owner holds. The owner pops events until TreeFinished.
struct TreeHandle {
  std::string tree_id;
  std::shared_ptr<Outbox> outbox;
};

class Engine {
 public:
  // Opens config.model_path. Errors name the file, the field or the bytes that are missing.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config);
  // With a checkpoint and a tokenizer that the caller brings.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config,
                                                        std::unique_ptr<Checkpoint> checkpoint,
                                                        std::unique_ptr<Tokenizer> tokenizer);
  ~Engine();

  // INVALID_ARGUMENT names field, value and limit; RESOURCE_EXHAUSTED when the queue is full;
  // UNAVAILABLE when draining.
  absl::StatusOr<TreeHandle> Submit(TreeRequest request, std::shared_ptr<OutputSink> sink);
  // Takes effect at the next step. NOT_FOUND when no such tree is waiting or running.
  absl::Status Cancel(std::string_view tree_id);

  // Refuses new trees and waits until the running ones are done or `timeout` is over; whatever is
  // left then is cancelled.
  void Drain(absl::Duration timeout);

  const Tokenizer& tokenizer() const;
  const EngineConfig& config() const;
  const ModelInfo& model_info() const;
  EngineStats Stats() const;
  // What the cache holds for this salt, parents before children. FAILED_PRECONDITION unless
  // requests share a cache. Waits for the step that runs.
  absl::StatusOr<std::vector<TreeNodeInfo>> DescribeTree(std::string_view salt, int max_nodes);

  // Text or messages to ids, with the same limits as a prompt node. `at_root` as for the first
  // node.
  absl::StatusOr<std::vector<int32_t>> Tokenize(const PromptNode& node, bool at_root) const;

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
