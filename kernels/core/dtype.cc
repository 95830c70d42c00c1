#include "kernels/core/dtype.h"

#include "kernels/core/check.h"
#include "kernels/core/quant_blocks.h"

namespace espalier {
namespace {

template <typename Block>
constexpr DTypeInfo BlockInfo(std::string_view name) {
  return {name, Block::kElements, static_cast<int>(sizeof(Block))};
}

constexpr DTypeInfo kF32Info = {"F32", 1, 4};
constexpr DTypeInfo kF16Info = {"F16", 1, 2};
constexpr DTypeInfo kBF16Info = {"BF16", 1, 2};
constexpr DTypeInfo kE4M3Info = {"E4M3", 1, 1};
constexpr DTypeInfo kQ8_0Info = BlockInfo<BlockQ8_0>("Q8_0");
constexpr DTypeInfo kQ4_0Info = BlockInfo<BlockQ4_0>("Q4_0");
constexpr DTypeInfo kQ4_1Info = BlockInfo<BlockQ4_1>("Q4_1");
constexpr DTypeInfo kQ4_KInfo = BlockInfo<BlockQ4_K>("Q4_K");
constexpr DTypeInfo kQ6_KInfo = BlockInfo<BlockQ6_K>("Q6_K");

}  // namespace

const DTypeInfo& Info(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return kF32Info;
    case DType::kF16:
      return kF16Info;
    case DType::kBF16:
      return kBF16Info;
    case DType::kE4M3:
      return kE4M3Info;
    case DType::kQ8_0:
      return kQ8_0Info;
    case DType::kQ4_0:
      return kQ4_0Info;
    case DType::kQ4_1:
      return kQ4_1Info;
    case DType::kQ4_K:
      return kQ4_KInfo;
    case DType::kQ6_K:
      return kQ6_KInfo;
  }
  internal::CheckFailed("unknown dtype", __FILE__, __LINE__);
}

size_t BytesOf(DType dtype, int64_t elements) {
  const DTypeInfo& info = Info(dtype);
  ESPALIER_CHECK(elements >= 0);
  ESPALIER_CHECK(elements % info.block_elements == 0);
  return static_cast<size_t>(elements / info.block_elements) * info.block_bytes;
}

}  // namespace espalier
