// A warpgroup's matrix products of 16-bit elements with fp32 sums on Hopper (PTX ISA:
// wgmma.mma_async, sm_90a). Warp w of the four holds rows 16 * w to 16 * w + 15 of the accumulator
// and of the left operand, as warp_mma.cuh says of one warp; the right operand is in shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace espalier::cuda {

// Before the first product that reads registers which were written by other instructions.
__device__ inline void ProductsFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all but the last `kPending` groups of products. `sum` are accumulators of those
// awaited: no read of them may move up.
template <int kPending, int kTiles>
__device__ void AwaitProducts(float (&sum)[kTiles][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    asm volatile("" : "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])::"memory");
  }
}

// A right operand in shared memory, in atoms of 8 rows of 128 bytes, each swizzled with a pattern
// of 128 bytes: chunk c of row r at chunk c ^ r. Distances in bytes, between atoms: `across` of 64
// columns to the next, `along` of 8 rows to the next. `address` is that of an atom, or up to 96
// bytes further.
class SharedOperand {
 public:
  __device__ SharedOperand(uint32_t address, int across, int along)
      : low_(address >> 4 | static_cast<uint32_t>(across >> 4) << 16),
        high_(kSwizzle128 | static_cast<uint32_t>(along >> 4)) {}
  // The operand `bytes` further.
  __device__ uint64_t At(int bytes) const {
    return uint64_t{high_} << 32 | (low_ + static_cast<uint32_t>(bytes >> 4));
  }

 private:
  static constexpr uint32_t kSwizzle128 = 1 << 30;
  uint32_t low_;
  uint32_t high_;
};

#define ESPALIER_TILE(sum, i) "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])
#define ESPALIER_TILES_8(sum, i)                                                       \
  ESPALIER_TILE(sum, i), ESPALIER_TILE(sum, i + 1), ESPALIER_TILE(sum, i + 2),         \
      ESPALIER_TILE(sum, i + 3), ESPALIER_TILE(sum, i + 4), ESPALIER_TILE(sum, i + 5), \
      ESPALIER_TILE(sum, i + 6), ESPALIER_TILE(sum, i + 7)
#define ESPALIER_REGISTERS_32                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ESPALIER_REGISTERS_64                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// The sum's registers are followed by the operands: %32 or %64 is the first of them.
#define ESPALIER_WGMMA(type, columns, regs, accumulate, operands)                                \
  "{ .reg .pred p; setp.ne.b32 p, " accumulate ", 0; wgmma.mma_async.sync.aligned.m64n" #columns \
  "k16.f32." #type "." #type " {" ESPALIER_REGISTERS_##regs "}, " operands "; }"
#define ESPALIER_START_SCORE(type)                                                          \
  asm volatile(ESPALIER_WGMMA(type, 64, 32, "%37", "{%32, %33, %34, %35}, %36, p, 1, 1, 0") \
               : ESPALIER_TILES_8(sum, 0)                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate))
#define ESPALIER_REGISTERS_4 "%0, %1, %2, %3"
#define ESPALIER_START_8(type)                                                     \
  asm volatile(ESPALIER_WGMMA(type, 8, 4, "1", "{%4, %5, %6, %7}, %8, p, 1, 1, 0") \
               : ESPALIER_TILE(sum, 0)                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define ESPALIER_START_64(type)                                                           \
  asm volatile(ESPALIER_WGMMA(type, 64, 32, "1", "{%32, %33, %34, %35}, %36, p, 1, 1, 1") \
               : ESPALIER_TILES_8(sum, 0)                                                 \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define ESPALIER_START_128(type)                                                           \
  asm volatile(ESPALIER_WGMMA(type, 128, 64, "1", "{%64, %65, %66, %67}, %68, p, 1, 1, 1") \
               : ESPALIER_TILES_8(sum, 0), ESPALIER_TILES_8(sum, 8)                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// Both start a product that nothing may touch, nor its registers, until AwaitProducts.

// sum (64 x 64) = or += a (64 x 16, in registers) * b^T: of b in shared memory (64 x 16) the
// elements of a row lie side by side.
template <typename T, bool kAccumulate>
__device__ void StartProduct(float (&sum)[8][4], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    ESPALIER_START_SCORE(f16);
  } else {
    ESPALIER_START_SCORE(bf16);
  }
}

// sum (64 x 8 * kTiles) += a (64 x 16, in registers) * b (16 x 8 * kTiles), likewise.
template <typename T, int kTiles>
__device__ void StartProductByRows(float (&sum)[kTiles][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kTiles == 8 || kTiles == 16);
  constexpr bool kIsHalf = std::is_same_v<T, __half>;
  if constexpr (kTiles == 16 && kIsHalf) {
    ESPALIER_START_128(f16);
  } else if constexpr (kTiles == 16) {
    ESPALIER_START_128(bf16);
  } else if constexpr (kIsHalf) {
    ESPALIER_START_64(f16);
  } else {
    ESPALIER_START_64(bf16);
  }
}

// sum (64 x 8) += a (64 x 16, in registers) * b (16 x 8), without any swizzle: `ones` is the
// address of 16 x 8 equal elements, in whatever order.
template <typename T>
__device__ void StartProductOfOnes(float (&sum)[1][4], const uint32_t (&a)[4], uint32_t ones) {
  const uint64_t b = uint64_t{8} << 32 | uint64_t{8} << 16 | ones >> 4;
  if constexpr (std::is_same_v<T, __half>) {
    ESPALIER_START_8(f16);
  } else {
    ESPALIER_START_8(bf16);
  }
}

#undef ESPALIER_TILE
#undef ESPALIER_TILES_8
#undef ESPALIER_REGISTERS_4
#undef ESPALIER_REGISTERS_32
#undef ESPALIER_REGISTERS_64
#undef ESPALIER_WGMMA
#undef ESPALIER_START_SCORE
#undef ESPALIER_START_8
#undef ESPALIER_START_64
#undef ESPALIER_START_128

// Moves registers between the warpgroups of a block, which all call one of the two.
template <int kRegisters>
__device__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace espalier::cuda
