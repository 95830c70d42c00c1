// Where ops run. One context a worker; used by one thread at a time.
#pragma once

#include <memory>

namespace espalier {

enum class Device { kCpu, kCuda };

// kF32: fp32 activations against exactly dequantised weights, fp32 KV; every 1e-4 proof uses it.
// kAuto: activations are quantised to int8 for quantised weights; KV is fp16.
enum class CpuPrecision { kAuto, kF32 };

class ThreadPool;

class Context {
 public:
  static Context Cpu(int num_threads, CpuPrecision precision);
  ~Context();
  Context(Context&&) noexcept;
  Context& operator=(Context&&) noexcept;

  Device device() const { return device_; }
  CpuPrecision cpu_precision() const { return cpu_precision_; }
  ThreadPool& pool() const { return *pool_; }

 private:
  Context();

  Device device_ = Device::kCpu;
  CpuPrecision cpu_precision_ = CpuPrecision::kAuto;
  std::unique_ptr<ThreadPool> pool_;
};

}  // namespace espalier
