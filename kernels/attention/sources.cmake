set(ESPALIER_ATTENTION_SOURCES
  attention/tree_shape.cc)
