#include "engine/kvcache/kv_cache.h"

#include <sys/mman.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/kvcache/available_memory.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

absl::Status CheckLayout(const KvLayout& layout, int num_pages) {
  const std::pair<const char*, int> fields[] = {{"num_layers", layout.num_layers},
                                                {"num_kv_heads", layout.num_kv_heads},
                                                {"head_dim", layout.head_dim},
                                                {"page_size", layout.page_size},
                                                {"num_pages", num_pages}};
  for (const auto& [name, value] : fields) {
    if (value <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("KV cache: ", name, " is ", value, ", must be at least 1"));
    }
  }
  if (layout.dtype != DType::kF32 && layout.dtype != DType::kF16 && layout.dtype != DType::kBF16 &&
      layout.dtype != DType::kE4M3) {
    const std::string_view name = Info(layout.dtype).name;
    return absl::InvalidArgumentError(
        absl::StrCat("KV cache: dtype is ", std::string(name), ", must be F32, F16, BF16 or E4M3"));
  }
  return absl::OkStatus();
}

absl::Status CheckScales(const KvLayout& layout, const char* name,
                         const std::vector<float>& scales) {
  const size_t count = layout.dtype == DType::kE4M3
                           ? static_cast<size_t>(layout.num_layers) * layout.num_kv_heads
                           : 0;
  if (scales.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("KV cache: there are ", scales.size(),
                                                   " scales of ", name, ", must be ", count,
                                                   " for ", std::string(Info(layout.dtype).name)));
  }
  for (size_t i = 0; i < count; ++i) {
    if (std::isnormal(scales[i]) && scales[i] > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "KV cache: the scale of ", name, " of layer ", i / layout.num_kv_heads, ", kv head ",
        i % layout.num_kv_heads, " is ", scales[i], ", must be a normal number above 0"));
  }
  return absl::OkStatus();
}

// 0: more than a size_t can say.
size_t TotalBytes(const KvLayout& layout, int num_pages) {
  size_t bytes = BytesOf(layout.dtype, 1);
  for (int factor :
       {layout.num_kv_heads, layout.head_dim, layout.page_size, layout.num_layers, 2, num_pages}) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(factor), &bytes)) return 0;
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const Context& ctx, const KvLayout& layout,
                                                         int num_pages, const KvScales& scales) {
  if (absl::Status status = CheckLayout(layout, num_pages); !status.ok()) return status;
  if (absl::Status status = CheckScales(layout, "K", scales.k); !status.ok()) return status;
  if (absl::Status status = CheckScales(layout, "V", scales.v); !status.ok()) return status;
  const size_t bytes = TotalBytes(layout, num_pages);
  const bool on_device = ctx.device() == Device::kCuda;
  const size_t available =
      on_device ? QueryDeviceMemory(ctx).free_bytes : static_cast<size_t>(AvailableMemoryBytes());
  if (bytes == 0 || bytes > available) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: ", num_pages, " pages need ",
                     bytes == 0 ? "more than 2^64" : absl::StrCat(bytes), " bytes of memory, ",
                     available, " are available"));
  }
  std::unique_ptr<KvCache> cache(new KvCache(layout, num_pages));
  absl::Status status = on_device ? cache->AllocateOnDevice(ctx, bytes) : cache->Map(bytes);
  if (status.ok() && layout.dtype == DType::kE4M3) status = cache->CopyScales(ctx, scales);
  if (!status.ok()) return status;
  return cache;
}

absl::Status KvCache::Map(size_t bytes) {
  // Anonymous memory is zero.
  void* memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: cannot map ", bytes, " bytes for ",
                                                     num_pages_, " pages: ", std::strerror(errno)));
  }
  memory_ = static_cast<std::byte*>(memory);
  memory_bytes_ = mapped_bytes_ = bytes;
  return absl::OkStatus();
}

absl::Status KvCache::AllocateOnDevice(const Context& ctx, size_t bytes) {
  device_memory_ = DeviceBuffer(ctx, bytes);
  if (device_memory_.empty()) {
    return absl::ResourceExhaustedError(absl::StrCat("KV cache: the device does not give ", bytes,
                                                     " bytes for ", num_pages_, " pages"));
  }
  FillDevice(ctx, device_memory_.As<void>(), 0, bytes);
  memory_ = device_memory_.As<std::byte>();
  memory_bytes_ = bytes;
  return absl::OkStatus();
}

absl::Status KvCache::CopyScales(const Context& ctx, const KvScales& scales) {
  const size_t bytes = scales.k.size() * sizeof(float);
  scales_ = DeviceBuffer(ctx, 2 * bytes);
  if (scales_.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("KV cache: there is no memory for ", 2 * bytes, " bytes of scales"));
  }
  CopyToDevice(ctx, scales_.As<float>(), scales.k.data(), bytes);
  CopyToDevice(ctx, scales_.As<float>() + scales.k.size(), scales.v.data(), bytes);
  return absl::OkStatus();
}

KvCache::~KvCache() {
  if (mapped_bytes_ > 0) munmap(memory_, mapped_bytes_);
}

size_t KvCache::buffer_bytes() const { return memory_bytes_ / (2 * layout_.num_layers); }

KvLayerView KvCache::layer(int index) const {
  ESPALIER_CHECK(index >= 0);
  ESPALIER_CHECK(index < layout_.num_layers);
  std::byte* k = memory_ + 2 * index * buffer_bytes();
  const float* k_scale = nullptr;
  const float* v_scale = nullptr;
  if (!scales_.empty()) {
    k_scale = scales_.As<float>() + index * layout_.num_kv_heads;
    v_scale = k_scale + layout_.num_layers * layout_.num_kv_heads;
  }
  return {.k = k,
          .v = k + buffer_bytes(),
          .num_pages = num_pages_,
          .num_kv_heads = layout_.num_kv_heads,
          .head_dim = layout_.head_dim,
          .page_size = layout_.page_size,
          .dtype = layout_.dtype,
          .k_scale = k_scale,
          .v_scale = v_scale};
}

}  // namespace espalier
