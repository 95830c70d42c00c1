if(ESPALIER_CUDA)
  set(ESPALIER_CUDA_SOURCES
    cuda/cuda_device.cc
    cuda/graph_cache.cc
    cuda/matmul.cu
    cuda/matmul_plans.cc
    cuda/rope_store_kv.cu
    cuda/row_ops.cu
    cuda/weight_ops.cu)
else()
  set(ESPALIER_CUDA_SOURCES cuda/unavailable.cc)
endif()
