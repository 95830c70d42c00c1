// Tree attention on the CPU: runs any plan, threaded over (partition, kv head), vectorised for the
// best instruction set of the machine.
#pragma once

#include "kernels/ops.h"

namespace espalier::kernels::cpu {

// See TreeAttentionParams. kv.dtype is kF32, kF16 or kBF16; head_dim a multiple of 8 up to 256;
// num_heads / kv.num_kv_heads is the plan's group size. A slot that no query of the plan sees is
// never read. Same input and plan, same bits, whatever the number of threads.
void TreeAttention(const Context& ctx, const TreeAttentionParams& p);

}  // namespace espalier::kernels::cpu
