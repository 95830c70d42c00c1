#define ESPALIER_TILE_LANES 4
#include "kernels/cpu/tree_attention_tile_impl.h"

namespace espalier::kernels::cpu {

void AttendTilePortable(const AttentionTile& tile) { AttendTile(tile); }

}  // namespace espalier::kernels::cpu
