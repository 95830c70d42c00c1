#define ESPALIER_TILE_LANES 8
#include "kernels/cpu/tree_attention_tile_impl.h"

namespace espalier::kernels::cpu {

void AttendTileAvx2(const AttentionTile& tile) { AttendTile(tile); }

}  // namespace espalier::kernels::cpu
