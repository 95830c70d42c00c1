// Where ops run, and the memory they work in. One context a worker; used by one thread at a time.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "kernels/core/dtype.h"
#include "kernels/runtime/cpu_isa.h"
#include "kernels/runtime/scratch.h"
#include "kernels/runtime/thread_pool.h"

namespace espalier {

enum class Device { kCpu, kCuda };

// kF32: fp32 activations against exactly dequantised weights, fp32 KV; every 1e-4 proof uses it.
// kAuto: activations are quantised to int8 for quantised weights; fp16 KV. (Unless KV is E4M3.)
enum class CpuPrecision { kAuto, kF32 };

class DeviceEvent;  // kernels/runtime/device_memory.h
struct CudaState;   // kernels/cuda/cuda_state.h

class Context {
 public:
  // `isa` must be one that this machine has (checked); tests lower it.
  static Context Cpu(int num_threads, CpuPrecision precision, CpuIsa isa = BestCpuIsa());
  // A stream and its libraries on the CUDA device with that index. `activations` is kBF16 or kF16;
  // the threads are the host's share of loading. Null when there is no such device, or no CUDA in
  // this build: `error` says which.
  static std::unique_ptr<Context> Cuda(int index, DType activations, int num_threads,
                                       std::string* error);
  ~Context();
  Context(Context&&) noexcept;

  Device device() const { return device_; }
  // What activations are made of: kF32 on the CPU.
  DType activation_dtype() const { return activation_dtype_; }
  CpuPrecision cpu_precision() const { return cpu_precision_; }
  CpuIsa cpu_isa() const { return cpu_isa_; }
  ThreadPool& pool() const { return *pool_; }
  CudaState& cuda() const { return *cuda_; }

  // Memory of one pool worker, for the task that it runs.
  Scratch& worker_scratch(int worker) const { return scratch_[worker]; }
  // Memory of the op, written and read by all workers.
  Scratch& shared_scratch() const { return scratch_[pool_->num_threads()]; }

  // The first error since the last TakeError is kept; `op` is who met it.
  void RecordError(const char* op, const std::string& message) const;
  // Waits for what was enqueued, then gives the error that an op met meanwhile, and forgets it.
  std::optional<std::string> TakeError() const;
  // The same, but waits no longer than until the event.
  std::optional<std::string> TakeError(const DeviceEvent& event) const;

 private:
  Context();

  Device device_ = Device::kCpu;
  DType activation_dtype_ = DType::kF32;
  CpuPrecision cpu_precision_ = CpuPrecision::kAuto;
  CpuIsa cpu_isa_ = CpuIsa::kPortable;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Scratch[]> scratch_;  // one a worker, then the shared one
  std::unique_ptr<std::optional<std::string>> error_;
  struct CloseCuda {
    void operator()(CudaState* state) const;
  };
  std::unique_ptr<CudaState, CloseCuda> cuda_;
};

}  // namespace espalier
