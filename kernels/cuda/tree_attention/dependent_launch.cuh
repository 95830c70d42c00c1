// Programmatic dependent launch (PTX ISA: griddepcontrol; sm_90 and later, elsewhere nothing): the
// second of two kernels starts while the first still runs, and waits inside.
#pragma once

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

}  // namespace espalier::cuda
