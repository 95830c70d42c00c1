set(ESPALIER_CPU_SOURCES
    cpu/dequantize.cc
    cpu/kernel_table.cc
    cpu/kernels_portable.cc
    cpu/matmul.cc
    cpu/row_ops.cc
    ops.cc
    runtime/context.cc
    runtime/cpu_isa.cc
    runtime/device_memory.cc
    runtime/thread_pool.cc
    weight_ops.cc)

# One set of kernels, compiled for each instruction set. Contraction is off because dequantised
# weights must have the bits that the format defines; products say where they want it.
set(cpu_kernel_options -O3 -ffp-contract=off -fno-math-errno)
set_source_files_properties(cpu/kernels_portable.cc PROPERTIES COMPILE_OPTIONS
  "${cpu_kernel_options}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND ESPALIER_CPU_SOURCES cpu/kernels_avx2.cc cpu/kernels_avx512.cc)
  set(avx2_options -mavx2 -mfma -mf16c)
  set(avx512_options ${avx2_options} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's own AVX-512 headers use undefined vectors on purpose.
    list(APPEND avx512_options -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  set_source_files_properties(cpu/kernels_avx2.cc PROPERTIES COMPILE_OPTIONS
    "${cpu_kernel_options};${avx2_options}")
  set_source_files_properties(cpu/kernels_avx512.cc PROPERTIES COMPILE_OPTIONS
    "${cpu_kernel_options};${avx512_options}")
endif()
