set(ESPALIER_CPU_SOURCES
    core/dtype.cc
    runtime/context.cc
    runtime/cpu_isa.cc
    runtime/thread_pool.cc)
