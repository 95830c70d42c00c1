#include "kernels/runtime/cpu_isa.h"

#include "kernels/core/check.h"

namespace espalier {

CpuIsa BestCpuIsa() {
#if defined(__x86_64__)
  static const CpuIsa best = [] {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c")) {
      return CpuIsa::kPortable;
    }
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    return avx512 ? CpuIsa::kAvx512 : CpuIsa::kAvx2;
  }();
  return best;
#else
  return CpuIsa::kPortable;
#endif
}

const char* CpuIsaName(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return "portable";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
  }
  internal::CheckFailed("unknown CpuIsa", __FILE__, __LINE__);
}

}  // namespace espalier
