#include "kernels/cuda/cuda_device.h"

#include "kernels/cuda/cuda_state.h"

namespace espalier::cuda {
namespace {

// What NVIDIA advises for Hopper.
constexpr size_t kBlasWorkspaceBytes = 32 << 20;
// Older devices lack cp.async and bf16 matrix instructions.
constexpr int kLeastComputeCapability = 80;

// Empty: opened.
std::string Open(int index, CudaState* state) {
  const auto failed = [](const char* what, cudaError_t error) {
    return std::string(what) + ": " + cudaGetErrorString(error);
  };
  if (const cudaError_t error = cudaSetDevice(index); error != cudaSuccess) {
    return failed("cudaSetDevice", error);
  }
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess) {
    return failed("cudaGetDeviceProperties", error);
  }
  state->index = index;
  state->name = properties.name;
  state->num_sms = properties.multiProcessorCount;
  state->compute_capability = properties.major * 10 + properties.minor;
  state->max_shared_bytes = static_cast<int>(properties.sharedMemPerBlockOptin);
  state->l2_bytes = properties.l2CacheSize;
  if (state->compute_capability < kLeastComputeCapability) {
    return state->name + " has compute capability " + std::to_string(properties.major) + "." +
           std::to_string(properties.minor) + "; 8.0 is the least that is supported";
  }
  if (const cudaError_t error = cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking);
      error != cudaSuccess) {
    return failed("cudaStreamCreate", error);
  }
  if (cublasLtCreate(&state->blas) != CUBLAS_STATUS_SUCCESS) return "cublasLtCreate failed";
  if (const cudaError_t error = cudaMalloc(&state->blas_workspace, kBlasWorkspaceBytes);
      error != cudaSuccess) {
    return failed("cudaMalloc of the cuBLASLt workspace", error);
  }
  state->matmul_plans = std::make_unique<MatMulPlans>(state->blas, kBlasWorkspaceBytes);
  return "";
}

}  // namespace

int NumDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver is no error of ours
    return 0;
  }
  return count;
}

CudaState* OpenDevice(int index, std::string* error) {
  const int count = NumDevices();
  if (index < 0 || index >= count) {
    *error = "there is no CUDA device " + std::to_string(index) + ": this machine has " +
             std::to_string(count);
    return nullptr;
  }
  auto* state = new CudaState;
  *error = Open(index, state);
  if (error->empty()) return state;
  CloseDevice(state);
  return nullptr;
}

void CloseDevice(CudaState* state) {
  if (state == nullptr) return;
  state->matmul_plans.reset();
  if (state->blas_workspace != nullptr) cudaFree(state->blas_workspace);
  if (state->blas != nullptr) cublasLtDestroy(state->blas);
  if (state->stream != nullptr) cudaStreamDestroy(state->stream);
  delete state;
}

void UseDevice(const Context& ctx) {
  Check(ctx, "select the device", cudaSetDevice(ctx.cuda().index));
}

void Synchronize(const Context& ctx) {
  Check(ctx, "synchronize", cudaStreamSynchronize(StreamOf(ctx)));
}

void* AllocateDevice(const Context& ctx, size_t bytes) {
  UseDevice(ctx);
  void* data = nullptr;
  if (cudaMalloc(&data, bytes) == cudaSuccess) return data;
  cudaGetLastError();  // the caller says what could not be had
  return nullptr;
}

void FreeDevice(void* data) { cudaFree(data); }

void* AllocatePinned(const Context& ctx, size_t bytes) {
  UseDevice(ctx);
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes) == cudaSuccess) return data;
  cudaGetLastError();
  return nullptr;
}

void FreePinned(void* data) { cudaFreeHost(data); }

void Copy(const Context& ctx, void* to, const void* from, size_t bytes) {
  Check(ctx, "copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, StreamOf(ctx)));
}

void Fill(const Context& ctx, void* data, int byte, size_t bytes) {
  Check(ctx, "fill", cudaMemsetAsync(data, byte, bytes, StreamOf(ctx)));
}

void* CreateEvent(const Context& ctx) {
  UseDevice(ctx);
  cudaEvent_t event = nullptr;
  Check(ctx, "create an event", cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return event;
}

void DestroyEvent(void* event) { cudaEventDestroy(static_cast<cudaEvent_t>(event)); }

void RecordEvent(const Context& ctx, void* event) {
  Check(ctx, "record an event", cudaEventRecord(static_cast<cudaEvent_t>(event), StreamOf(ctx)));
}

void WaitEvent(const Context& ctx, void* event) {
  Check(ctx, "wait for an event", cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
}

DeviceMemory QueryMemory(const Context& ctx) {
  DeviceMemory memory;
  Check(ctx, "query memory", cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes));
  return memory;
}

std::string DeviceName(const Context& ctx) { return ctx.cuda().name; }

}  // namespace espalier::cuda
