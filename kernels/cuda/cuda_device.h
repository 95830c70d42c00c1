// The CUDA device and its memory, without CUDA's headers. A CPU-only build links unavailable.cc.
#pragma once

#include <cstddef>
#include <string>

#include "kernels/runtime/context.h"
#include "kernels/runtime/device_memory.h"

namespace espalier::cuda {

// Null, and a reason, when there is no such device, no driver, or no CUDA in this build. An absent
// device is no failure of the process: nothing of CUDA is touched before.
CudaState* OpenDevice(int index, std::string* error);
void CloseDevice(CudaState* state);
int NumDevices();  // 0 as well when there is no driver

// Makes the context's device the calling thread's; a thread begins with device 0.
void UseDevice(const Context& ctx);
// Waits for the stream. An error of what ran on it is recorded.
void Synchronize(const Context& ctx);

void* AllocateDevice(const Context& ctx, size_t bytes);  // null when memory lacks
void FreeDevice(void* data);
void* AllocatePinned(const Context& ctx, size_t bytes);  // null when memory lacks
void FreePinned(void* data);
void Copy(const Context& ctx, void* to, const void* from, size_t bytes);  // enqueued
void Fill(const Context& ctx, void* data, int byte, size_t bytes);        // enqueued
void* CreateEvent(const Context& ctx);                                    // null on failure
void DestroyEvent(void* event);
void RecordEvent(const Context& ctx, void* event);
void WaitEvent(const Context& ctx, void* event);
DeviceMemory QueryMemory(const Context& ctx);
std::string DeviceName(const Context& ctx);

}  // namespace espalier::cuda
