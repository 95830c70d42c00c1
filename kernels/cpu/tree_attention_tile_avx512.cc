#define ESPALIER_TILE_LANES 16
#include "kernels/cpu/tree_attention_tile_impl.h"

namespace espalier::kernels::cpu {

void AttendTileAvx512(const AttentionTile& tile) { AttendTile(tile); }

}  // namespace espalier::kernels::cpu
