// CPU kernels for the build's baseline instruction set; see sources.cmake for the flags.

// Each uses those before it.
// clang-format off
#include "kernels/cpu/simd_portable.h"
#include "kernels/cpu/dequantize.inl.h"
#include "kernels/cpu/matmul_f32.inl.h"
#include "kernels/cpu/elementwise.inl.h"
#include "kernels/cpu/row_dots_int8_portable.inl.h"
#include "kernels/cpu/kernel_table.inl.h"
// clang-format on

ESPALIER_CPU_KERNELS(kPortableKernels)
