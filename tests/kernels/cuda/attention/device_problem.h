// A random attention problem in the memory of a CUDA device, with the answer by its definition.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/plan_buffers.h"
#include "kernels/runtime/device_memory.h"
#include "tests/support/naive_attention.h"
#include "tests/support/random_forest.h"

namespace espalier::testing {

// Of an output against the definition.
struct AttentionError {
  double relative = 0;  // ||out - expected|| / ||expected||; NaN where an element is
  double largest = 0;   // of |out - expected|

  void Include(const AttentionError& other);
};

struct DeviceProblemOptions {
  DType dtype = DType::kBF16;
  bool e4m3_kv = false;  // KV is of kE4M3, not of `dtype`
  int head_dim = 128;
  int group_size = 4;
  int num_kv_heads = 2;
  float unseen = 0;    // what slots that no query sees hold
  float q_spread = 1;  // standard deviations of q and v
  float v_spread = 1;

  DType kv_dtype() const { return e4m3_kv ? DType::kE4M3 : dtype; }
};

// The host's half is made by the constructor, on any thread; the device's by Upload.
class DeviceProblem {
 public:
  DeviceProblem(uint64_t seed, Forest forest, const DeviceProblemOptions& options,
                ThreadPool* pool = nullptr);

  const TreeShape& shape() const { return forest_.shape; }
  int num_heads() const { return options_.group_size * options_.num_kv_heads; }
  const DeviceProblemOptions& options() const { return options_; }
  size_t out_bytes() const { return expected_.size() * 2; }

  void Upload(const Context& ctx);
  // Enqueues the attention of the plan that `buffers` holds.
  void Attend(const Context& ctx, const PlanBuffers& buffers) const;
  // Fills the output and the plan's partial states with NaN.
  void Poison(const Context& ctx, const PlanBuffers& buffers, const TreePlan& plan) const;
  std::vector<std::byte> Download(const Context& ctx) const;

  AttentionError ErrorOf(const std::vector<std::byte>& out) const;
  // Of the plain kernel that benchmarks compare with.
  AttentionError ErrorOfReference(const Context& ctx) const;

 private:
  KvLayerView DeviceKv() const;

  Forest forest_;
  DeviceProblemOptions options_;
  std::unique_ptr<KvMemory> kv_;
  std::vector<std::byte> q_;
  std::vector<double> expected_;

  DeviceBuffer k_device_;
  DeviceBuffer v_device_;
  DeviceBuffer scales_device_;  // K's, then V's
  DeviceBuffer q_device_;
  DeviceBuffer out_device_;
};

}  // namespace espalier::testing
