// CPU kernels for AVX-512 with VNNI; see sources.cmake for the flags.
// Everything here and in the included files has internal linkage: a function shared with other
// source files could be the copy that the linker keeps, and older processors would not run it.

// Each uses those before it.
// clang-format off
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/dequantize.inl.h"
#include "kernels/cpu/matmul_f32.inl.h"
#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/row_dots_int8_x86.inl.h"
#include "kernels/cpu/gemm_int8_avx512.inl.h"
#include "kernels/cpu/pack_int8_x86.inl.h"
#include "kernels/cpu/kernel_table.inl.h"
// clang-format on

ESPALIER_CPU_KERNELS(kAvx512Kernels)
