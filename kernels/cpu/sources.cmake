set(ESPALIER_CPU_SOURCES
    core/dtype.cc)
