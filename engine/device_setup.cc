#include "engine/device_setup.h"

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/kvcache/available_memory.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/tree_attention/device_plan.h"
#include "kernels/runtime/device_memory.h"

namespace espalier {
namespace {

// Of the CUDA kernels: query heads a kv head, and entries of a row that is sampled.
constexpr int kMaxGroup = 16;
constexpr int kMaxVocab = 1 << 19;

constexpr size_t kMaxDefaultKvBytes = size_t{4} << 30;
// Beside pages: plans, sampling, captured graphs and the libraries' own.
constexpr size_t kCudaReserveBytes = size_t{1} << 30;

int NumThreads(const EngineConfig& config) {
  if (config.num_threads > 0) return config.num_threads;
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// Of a CUDA device: what the process may take, less what it has taken and the reserve.
size_t DefaultCudaKvBytes(const EngineConfig& config, const Context& ctx) {
  const DeviceMemory memory = QueryDeviceMemory(ctx);
  const auto allowed =
      static_cast<size_t>(static_cast<double>(memory.total_bytes) * config.gpu_memory_fraction);
  const size_t taken = memory.total_bytes - memory.free_bytes + kCudaReserveBytes;
  return allowed > taken ? allowed - taken : 0;
}

}  // namespace

absl::Status CheckCudaRuns(const ModelConfig& model) {
  const auto refuse = [](std::string_view field, int value, std::string_view takes) {
    return absl::UnimplementedError(absl::StrCat(std::string(field), " is ", value,
                                                 "; on CUDA it must be ", std::string(takes)));
  };
  if (model.head_dim != 64 && model.head_dim != 128) {
    return refuse("head_dim", model.head_dim, "64 or 128");
  }
  if (const int group = model.num_heads / model.num_kv_heads; group > kMaxGroup) {
    return refuse("num_heads / num_kv_heads", group, absl::StrCat("at most ", kMaxGroup));
  }
  // Rows of 16 bytes: what products and vector accesses are aligned to.
  for (const auto& [field, value] : {std::pair{"hidden_size", model.hidden_size},
                                     std::pair{"intermediate_size", model.intermediate_size}}) {
    if (value % 8 != 0) return refuse(field, value, "a multiple of 8");
  }
  if (model.vocab_size > kMaxVocab) {
    return refuse("vocab_size", model.vocab_size, absl::StrCat("at most ", kMaxVocab));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Context>> OpenContext(const EngineConfig& config,
                                                     const ModelConfig& model, DType stored) {
  const absl::Status runs = CheckCudaRuns(model);
  if (config.device == Device::kCuda && !runs.ok()) return runs;
  const bool cuda =
      config.device ? *config.device == Device::kCuda : runs.ok() && cuda::NumDevices() > 0;
  if (!cuda) {
    return std::make_unique<Context>(Context::Cpu(NumThreads(config), config.cpu_precision));
  }
  DType dtype = DType::kBF16;
  if (config.dtype == DeviceDType::kF16 ||
      (config.dtype == DeviceDType::kAuto && stored == DType::kF16)) {
    dtype = DType::kF16;
  }
  std::string error;
  std::unique_ptr<Context> ctx = Context::Cuda(config.gpu, dtype, NumThreads(config), &error);
  if (ctx == nullptr) return absl::UnavailableError(absl::StrCat("device is cuda: ", error));
  return ctx;
}

DType KvDType(const Context& ctx, KvCacheDType choice) {
  if (choice == KvCacheDType::kFp8) return DType::kE4M3;
  if (ctx.device() == Device::kCuda) return ctx.activation_dtype();
  return ctx.cpu_precision() == CpuPrecision::kF32 ? DType::kF32 : DType::kF16;
}

int MostPages(Device device, int page_size, int num_kv_heads) {
  int32_t slots = std::numeric_limits<int32_t>::max();
  if (device == Device::kCuda) slots = kKvRowMask / num_kv_heads;
  return slots / page_size;
}

absl::StatusOr<int> NumPages(const EngineConfig& config, const Context& ctx, size_t page_bytes,
                             int num_kv_heads) {
  size_t bytes = config.kv_memory_bytes;
  if (bytes == 0) {
    bytes = ctx.device() == Device::kCuda
                ? DefaultCudaKvBytes(config, ctx)
                : std::min<size_t>(AvailableMemoryBytes() / 4, kMaxDefaultKvBytes);
  }
  const size_t pages = bytes / page_bytes;
  if (pages < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_memory is ", bytes, " bytes; must be at least ", 2 * page_bytes,
                     ", two pages of ", config.page_size, " tokens of this model"));
  }
  const int most = MostPages(ctx.device(), config.page_size, num_kv_heads);
  return static_cast<int>(std::min<size_t>(pages, most));
}

std::string DescribeDevice(const Context& ctx) {
  if (ctx.device() == Device::kCuda) return cuda::DeviceName(ctx);
  return absl::StrCat("cpu ", CpuIsaName(ctx.cpu_isa()), ", ", ctx.pool().num_threads(),
                      " threads");
}

}  // namespace espalier
