#include "kernels/runtime/device_memory.h"

#include <cstring>
#include <new>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_device.h"

namespace espalier {
namespace {

constexpr std::align_val_t kAlignment{256};

}  // namespace

namespace internal {

void* AllocateDevice(const Context& ctx, size_t bytes) {
  if (ctx.device() == Device::kCuda) return cuda::AllocateDevice(ctx, bytes);
  return ::operator new(bytes, kAlignment, std::nothrow);
}

void FreeDevice(Device device, void* data) {
  if (device == Device::kCuda) return cuda::FreeDevice(data);
  ::operator delete(data, kAlignment);
}

void* AllocateStaging(const Context& ctx, size_t bytes) {
  if (ctx.device() == Device::kCuda) return cuda::AllocatePinned(ctx, bytes);
  return ::operator new(bytes, kAlignment, std::nothrow);
}

void FreeStaging(Device device, void* data) {
  if (device == Device::kCuda) return cuda::FreePinned(data);
  ::operator delete(data, kAlignment);
}

}  // namespace internal

void CopyToDevice(const Context& ctx, void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  if (ctx.device() == Device::kCuda) return cuda::Copy(ctx, device, host, bytes);
  std::memcpy(device, host, bytes);
}

void CopyToHost(const Context& ctx, void* host, const void* device, size_t bytes) {
  if (bytes == 0) return;
  if (ctx.device() == Device::kCuda) return cuda::Copy(ctx, host, device, bytes);
  std::memcpy(host, device, bytes);
}

void FillDevice(const Context& ctx, void* device, int byte, size_t bytes) {
  if (bytes == 0) return;
  if (ctx.device() == Device::kCuda) return cuda::Fill(ctx, device, byte, bytes);
  std::memset(device, byte, bytes);
}

void Synchronize(const Context& ctx) {
  if (ctx.device() == Device::kCuda) cuda::Synchronize(ctx);
}

DeviceEvent::DeviceEvent(const Context& ctx) : ctx_(ctx) {
  if (ctx.device() == Device::kCuda) event_ = cuda::CreateEvent(ctx);
}
DeviceEvent::~DeviceEvent() {
  if (event_ != nullptr) cuda::DestroyEvent(event_);
}
void DeviceEvent::Record() {
  if (event_ != nullptr) cuda::RecordEvent(ctx_, event_);
}
void DeviceEvent::Wait() const {
  if (event_ != nullptr) cuda::WaitEvent(ctx_, event_);
}

DeviceMemory QueryDeviceMemory(const Context& ctx) {
  ESPALIER_CHECK(ctx.device() == Device::kCuda);
  return cuda::QueryMemory(ctx);
}

}  // namespace espalier
