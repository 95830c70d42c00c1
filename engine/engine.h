// The engine's facade: validates and tokenises on the caller's thread, hands trees to the one
// engine thread, which schedules, runs the model and emits. All methods are thread-safe.
//
// Owns the checkpoint, the model, the KV cache and the engine thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/kvcache/pinned_paths.h"
#include "engine/limits.h"
#include "engine/outbox.h"
#include "engine/request.h"
#include "engine/sharing.h"
#include "engine/speculative.h"
#include "kernels/attention/tree_plan.h"
#include "kernels/runtime/context.h"
#include "model/checkpoint/checkpoint.h"
#include "model/config.h"
#include "model/weight_store.h"

namespace espalier {

// Weights and activations on CUDA. kAuto: fp16 where the checkpoint is fp16, else bf16.
enum class DeviceDType { kAuto, kBF16, kF16 };

// What KV is stored as. kAuto: as activations on CUDA; on the CPU fp16, or fp32 with
// CpuPrecision::kF32. kFp8: E4M3 with a scale for each layer and kv head, found at start-up.
enum class KvCacheDType { kAuto, kFp8 };

struct EngineConfig {
  std::string model_path;
  // Not 0: weights are made up from this seed, and only config.json is read.
  uint64_t random_weights = 0;
  // Empty: CUDA where there is such a device and it runs the model, else the CPU. Engine::config()
  // has the choice.
  std::optional<Device> device;
  int gpu = 0;  // index of the CUDA device
  DeviceDType dtype = DeviceDType::kAuto;
  KvCacheDType kv_dtype = KvCacheDType::kAuto;  // of the draft model's cache too
  double gpu_memory_fraction = 0.9;             // of the device's memory that this process may take
  bool cuda_graphs = true;
  AttentionVariant attention = AttentionVariant::kDefault;
  CpuPrecision cpu_precision = CpuPrecision::kAuto;
  int num_threads = 0;  // 0: every core
  Sharing sharing = Sharing::kCache;
  Speculative speculative = Speculative::kOff;
  std::string draft_model_path;  // with kDraft; it must share the model's tokenizer
  DraftShape draft_shape;
  int speculative_rows = 0;    // to which drafts fill a step; 0: 16 on the CPU, 64 on CUDA
  size_t kv_memory_bytes = 0;  // 0: on the CPU a quarter of the free memory, at most 4 GiB; on CUDA
                               // what gpu_memory_fraction leaves
  int page_size = 16;
  // Rows a step: decode rows and prefill chunks together. 0: 512 on the CPU, 2048 on CUDA.
  int max_batch_tokens = 0;
  int max_live_branches = 1024;
  int max_context = 0;           // 0: the model's
  size_t outbox_capacity = 256;  // events a request
  absl::Duration stall_timeout = absl::Seconds(60);
  Limits limits;
  LoadProgressCallback on_load_progress;
  // The device has failed, on the engine thread: running trees have ended with INTERNAL, and this
  // process can run no other.
  std::function<void(const absl::Status&)> on_failure;
};

// Of the device, in bytes.
struct MemorySummary {
  int64_t total = 0;  // CUDA only
  int64_t weights = 0;
  int64_t activations = 0;
  int64_t kv = 0;
  int64_t free = 0;  // CUDA only
};

struct ModelInfo {
  std::string name;
  ModelConfig config;
  std::string weight_type;  // dtype of most weight bytes
  std::string kv_type;      // dtype of the KV cache
  int64_t parameters = 0;
  int64_t weight_bytes = 0;
  int max_context = 0;
  ChatFormat chat_format = ChatFormat::kNone;
  std::string draft_name = {};  // of the draft model; empty: there is none
  int64_t draft_weight_bytes = 0;
  Device device = Device::kCpu;
  std::string device_name;  // "cpu avx2", "NVIDIA H100 80GB HBM3"
  MemorySummary memory;
};

struct EngineStats {
  int64_t pages_total = 0, pages_free = 0, pages_cached = 0, pages_locked = 0, pages_retiring = 0;
  int page_size = 0;
  int64_t kv_bytes = 0;
  int trees_waiting = 0, trees_running = 0, branches_live = 0;
  int64_t trees_finished = 0, steps = 0, preemptions = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, computed_tokens = 0, completion_tokens = 0;
  int64_t kv_tokens_read_unique = 0, kv_tokens_read_logical = 0;
  int64_t drafted_tokens = 0, accepted_tokens = 0, verify_steps = 0;
  double schedule_ms = 0, plan_ms = 0, forward_ms = 0, sample_ms = 0, emit_ms = 0;  // sums
  double draft_ms = 0;                                                              // sum
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
  // With a checkpoint, a tokenizer and, where the model is to have one, a draft model's checkpoint
  // that the caller brings.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      const EngineConfig& config, std::unique_ptr<Checkpoint> checkpoint,
      std::unique_ptr<Tokenizer> tokenizer, std::unique_ptr<Checkpoint> draft_checkpoint = nullptr);
  ~Engine();

  // INVALID_ARGUMENT names field, value and limit; RESOURCE_EXHAUSTED when the queue is full;
  // UNAVAILABLE when draining.
  absl::StatusOr<TreeHandle> Submit(TreeRequest request, std::shared_ptr<OutputSink> sink);
  // Takes effect at the next step. NOT_FOUND when no such tree is waiting or running.
  absl::Status Cancel(std::string_view tree_id);

  // Keeps in the cache what it holds of a session's paths, between the session's commands; see
  // PinnedPaths. `name_space` is the cache salt here. Without effect unless requests share a cache.
  void UpdatePins(PinUpdate update);
  void UnpinAll(std::string_view owner);

  // Refuses new trees and waits until the running ones are done or `timeout` is over; whatever is
  // left then is cancelled.
  void Drain(absl::Duration timeout);

  // 128 random bits in hexadecimal.
  static std::string NewId();

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
