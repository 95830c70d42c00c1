// Memory of a context's device, and host memory that the device copies from and to at full speed.
// Released with the object, which must not outlive its context's device.
#pragma once

#include <cstddef>
#include <utility>

#include "kernels/runtime/context.h"

namespace espalier {

namespace internal {

template <void* (*kAllocate)(const Context&, size_t), void (*kFree)(Device, void*)>
class Buffer {
 public:
  Buffer() = default;
  // Uninitialised; aligned to 256 bytes at least. Empty when the memory is not there.
  Buffer(const Context& ctx, size_t bytes)
      : device_(ctx.device()), data_(kAllocate(ctx, bytes)), bytes_(data_ ? bytes : 0) {}
  ~Buffer() {
    if (data_ != nullptr) kFree(device_, data_);
  }
  Buffer(Buffer&& other) noexcept
      : device_(other.device_),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  bool empty() const { return data_ == nullptr; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  Device device_ = Device::kCpu;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

void* AllocateDevice(const Context& ctx, size_t bytes);
void FreeDevice(Device device, void* data);
void* AllocateStaging(const Context& ctx, size_t bytes);
void FreeStaging(Device device, void* data);

}  // namespace internal

using DeviceBuffer = internal::Buffer<internal::AllocateDevice, internal::FreeDevice>;
// Host memory, pinned where the device is not the CPU.
using StagingBuffer = internal::Buffer<internal::AllocateStaging, internal::FreeStaging>;

// Enqueued on the context's stream; on the CPU done at once. Host memory that is not a
// StagingBuffer has been read when the call returns, but is written only after Synchronize.
void CopyToDevice(const Context& ctx, void* device, const void* host, size_t bytes);
void CopyToHost(const Context& ctx, void* host, const void* device, size_t bytes);
// Sets every byte.
void FillDevice(const Context& ctx, void* device, int byte, size_t bytes);
// Waits for all that was enqueued.
void Synchronize(const Context& ctx);

// A point in the order of what is enqueued. On the CPU it has always passed.
class DeviceEvent {
 public:
  explicit DeviceEvent(const Context& ctx);
  ~DeviceEvent();
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;

  void Record();
  // Until what was enqueued before the last Record is done; at once when there was none.
  void Wait() const;

 private:
  const Context& ctx_;
  void* event_ = nullptr;
};

struct DeviceMemory {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
};
DeviceMemory QueryDeviceMemory(const Context& ctx);  // of a CUDA device

}  // namespace espalier
