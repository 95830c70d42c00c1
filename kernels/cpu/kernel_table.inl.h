// The table's entries, after all of an instruction set's kernels.
#define ESPALIER_CPU_KERNELS(name)                          \
  namespace espalier::kernels::cpu {                        \
  extern const CpuKernels name;                             \
  const CpuKernels name = {.dequantize = Dequantize,        \
                           .quantize = Quantize,            \
                           .row_dots_f32 = RowDotsF32Kernel,   \
                           .row_dots_int8 = RowDotsInt8Kernel, \
                           .pack_f32 = PackF32,             \
                           .gemm_f32 = GemmF32,             \
                           .has_int8_panel = HasInt8Panel,  \
                           .pack_int8 = PackInt8,           \
                           .gemm_int8 = GemmInt8,           \
                           .rms_norm = RmsNormRow,          \
                           .swiglu = SwiGluRow,             \
                           .rotate = Rotate,                \
                           .store_kv = StoreKv,             \
                           .all_finite = AllFinite};        \
  }
