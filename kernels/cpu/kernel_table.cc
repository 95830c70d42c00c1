#include "kernels/cpu/kernel_table.h"

#include "kernels/core/check.h"

namespace espalier::kernels::cpu {

// Each defined by the source file of its instruction set.
extern const CpuKernels kPortableKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;
#endif

const CpuKernels& KernelsFor(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return kPortableKernels;
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return kAvx2Kernels;
    case CpuIsa::kAvx512:
      return kAvx512Kernels;
#else
    case CpuIsa::kAvx2:
    case CpuIsa::kAvx512:
      break;
#endif
  }
  internal::CheckFailed("instruction set not built", __FILE__, __LINE__);
}

}  // namespace espalier::kernels::cpu
