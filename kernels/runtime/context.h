// Where ops run, and the memory they work in. One context a worker; used by one thread at a time.
#pragma once

#include <memory>

#include "kernels/runtime/cpu_isa.h"
#include "kernels/runtime/scratch.h"
#include "kernels/runtime/thread_pool.h"

namespace espalier {

enum class Device { kCpu, kCuda };

// kF32: fp32 activations against exactly dequantised weights, fp32 KV; every 1e-4 proof uses it.
// kAuto: activations are quantised to int8 for quantised weights; KV is fp16.
enum class CpuPrecision { kAuto, kF32 };

class Context {
 public:
  // `isa` must be one that this machine has (checked); tests lower it.
  static Context Cpu(int num_threads, CpuPrecision precision, CpuIsa isa = BestCpuIsa());

  Device device() const { return device_; }
  CpuPrecision cpu_precision() const { return cpu_precision_; }
  CpuIsa cpu_isa() const { return cpu_isa_; }
  ThreadPool& pool() const { return *pool_; }

  // Memory of one pool worker, for the task that it runs.
  Scratch& worker_scratch(int worker) const { return scratch_[worker]; }
  // Memory of the op, written and read by all workers.
  Scratch& shared_scratch() const { return scratch_[pool_->num_threads()]; }

 private:
  Context() = default;

  Device device_ = Device::kCpu;
  CpuPrecision cpu_precision_ = CpuPrecision::kAuto;
  CpuIsa cpu_isa_ = CpuIsa::kPortable;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Scratch[]> scratch_;  // one a worker, then the shared one
};

}  // namespace espalier
