set(ESPALIER_ATTENTION_SOURCES
  attention/kv_runs.cc
  attention/row_order.cc
  attention/shape_growth.cc
  attention/tree_planner.cc
  attention/tree_planner_spans.cc
  attention/tree_planner_tiles.cc
  attention/tree_shape.cc
  cpu/tree_attention.cc
  cpu/tree_attention_tile_portable.cc)

# One body, compiled for each instruction set; -O3 and contraction to FMA are what its register
# blocking counts on. Vector arguments stay inside a file, so their ABI is nobody's business.
set(attention_tile_options -O3 -ffp-contract=fast -Wno-psabi)
set_source_files_properties(cpu/tree_attention.cc cpu/tree_attention_tile_portable.cc
  PROPERTIES COMPILE_OPTIONS "${attention_tile_options}")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND ESPALIER_ATTENTION_SOURCES
    cpu/tree_attention_tile_avx2.cc
    cpu/tree_attention_tile_avx512.cc)
  set_source_files_properties(cpu/tree_attention_tile_avx2.cc PROPERTIES COMPILE_OPTIONS
    "${attention_tile_options};-mavx2;-mfma;-mf16c")
  set_source_files_properties(cpu/tree_attention_tile_avx512.cc PROPERTIES COMPILE_OPTIONS
    "${attention_tile_options};-mavx512f;-mavx512bw;-mavx512dq;-mavx512vl;-mavx2;-mfma;-mf16c;-mprefer-vector-width=512")
endif()
