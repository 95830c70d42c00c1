set(ESPALIER_ATTENTION_SOURCES
  attention/row_order.cc
  attention/tree_planner.cc
  attention/tree_shape.cc)
