// Programmatic dependent launch (PTX ISA: griddepcontrol; sm_90 and later, elsewhere nothing): the
// second of two kernels starts while the first still runs, and waits inside.
#pragma once

#include <cuda_runtime.h>

namespace espalier::cuda {

// The next kernel may start, as soon as all blocks have said so and there is room for it.
__device__ inline void LetDependentsStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Returns when the kernel before has ended and what it wrote can be read.
__device__ inline void AwaitKernelBefore() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A load that is asked for at its place: others the compiler may put behind the wait.
template <typename T>
__device__ T LoadAhead(const T* from) {
  return *const_cast<const volatile T*>(from);
}

// Launches blocks that may start while the kernel before still runs, and so await it, where
// `overlaps` says that the device can. Not recorded by a graph that is being captured: the
// attribute of the kernel.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapping(void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
                              int shared_bytes, bool overlaps, cudaStream_t stream,
                              const Arguments&... arguments) {
  if (shared_bytes > 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = overlaps ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace espalier::cuda
