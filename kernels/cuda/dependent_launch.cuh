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

struct LaunchShape {
  dim3 blocks;
  dim3 threads;
  int shared_bytes = 0;    // a block
  int cluster_blocks = 1;  // neighbours in a cluster, along x
};

// Launches blocks that may start while the kernel before still runs, and so await it, where
// `overlaps` says that the device can. Not recorded by a graph that is being captured: the
// attribute of the kernel.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchOverlapping(void (*kernel)(Parameters...), const LaunchShape& shape,
                              bool overlaps, cudaStream_t stream, const Arguments&... arguments) {
  if (shape.shared_bytes > 0) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.blocks;
  config.blockDim = shape.threads;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (overlaps) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster_blocks > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster_blocks), 1, 1};
  }
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace espalier::cuda
