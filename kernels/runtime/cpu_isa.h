// The instruction sets that the CPU kernels are compiled for, each a superset of the one before.
#pragma once

namespace espalier {

enum class CpuIsa {
  kPortable,  // the build's baseline
  kAvx2,      // AVX2, FMA, F16C
  kAvx512,    // AVX-512 F, BW, DQ, VL, VNNI
};

// The best one that this machine's processor and kernel support.
CpuIsa BestCpuIsa();

const char* CpuIsaName(CpuIsa isa);

}  // namespace espalier
