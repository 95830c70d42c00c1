#include "model/weight_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/cpu/dequantize.h"

namespace espalier {
namespace {

// Of an allocation's parts: what vector loads and matrix products want.
constexpr int64_t kAlignment = 256;
constexpr int64_t kChunkBytes = 16 << 20;
constexpr int kRingChunks = 4;
// A thread's share of the copy into a pinned chunk.
constexpr int64_t kCopyGrain = 1 << 20;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

struct WeightStore::Chunk {
  explicit Chunk(const Context& ctx)
      : pinned(ctx, kChunkBytes), raw(ctx, kChunkBytes), copied(ctx) {}
  StagingBuffer pinned;
  DeviceBuffer raw;  // stored elements that the device converts
  DeviceEvent copied;
};

absl::StatusOr<std::unique_ptr<WeightStore>> WeightStore::Create(const Context& ctx,
                                                                 int64_t capacity_bytes,
                                                                 LoadProgressCallback on_progress) {
  std::unique_ptr<WeightStore> store(new WeightStore(ctx, std::move(on_progress)));
  if (ctx.device() == Device::kCpu) return store;
  store->arena_ = DeviceBuffer(ctx, capacity_bytes);
  if (store->arena_.empty()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the weights need ", capacity_bytes, " bytes of device memory, ",
                     QueryDeviceMemory(ctx).free_bytes, " are free"));
  }
  for (int i = 0; i < kRingChunks; ++i) {
    store->ring_.push_back(std::make_unique<Chunk>(ctx));
    if (store->ring_.back()->pinned.empty() || store->ring_.back()->raw.empty()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("loading needs ", kRingChunks, " x ", kChunkBytes,
                       " bytes of pinned and of device memory, which cannot be had"));
    }
  }
  return store;
}

WeightStore::WeightStore(const Context& ctx, LoadProgressCallback on_progress)
    : ctx_(ctx), on_progress_(std::move(on_progress)) {}
WeightStore::~WeightStore() = default;

int64_t WeightStore::SizeOf(const Context& ctx, int64_t rows, int64_t cols, bool vector) {
  return Aligned(BytesOf(vector ? DType::kF32 : ctx.activation_dtype(), rows * cols));
}

std::byte* WeightStore::Reserve(int64_t bytes) {
  if (ctx_.device() == Device::kCpu) {
    owned_.emplace_back(ctx_, bytes);
    ESPALIER_CHECK(!owned_.back().empty());
    return owned_.back().As<std::byte>();
  }
  ESPALIER_CHECK(used_bytes_ + Aligned(bytes) <= static_cast<int64_t>(arena_.bytes()));
  std::byte* memory = arena_.As<std::byte>() + used_bytes_;
  used_bytes_ += Aligned(bytes);
  return memory;
}

ConstMatrix WeightStore::Add(const ConstMatrix& stored) {
  if (ctx_.device() == Device::kCpu) return stored;
  const DType dtype = ctx_.activation_dtype();
  std::byte* memory = Reserve(BytesOf(dtype, stored.rows * stored.cols));
  Upload(stored, memory);
  return {memory, dtype, stored.rows, stored.cols};
}

// In runs of whole rows, or of a row's blocks where a row is larger than a chunk.
void WeightStore::Upload(const ConstMatrix& stored, std::byte* to) {
  const DType dtype = ctx_.activation_dtype();
  const DTypeInfo& info = Info(stored.dtype);
  const int64_t elements = stored.rows * stored.cols;
  const int64_t step = kChunkBytes / info.block_bytes * info.block_elements;
  for (int64_t begin = 0; begin < elements; begin += step) {
    const int64_t count = std::min(step, elements - begin);
    const auto* from = static_cast<const std::byte*>(stored.data) + BytesOf(stored.dtype, begin);
    const int64_t bytes = static_cast<int64_t>(BytesOf(stored.dtype, count));
    std::byte* target = to + BytesOf(dtype, begin);
    Chunk& chunk = *ring_[next_chunk_++ % ring_.size()];
    chunk.copied.Wait();
    auto* pinned = chunk.pinned.As<std::byte>();
    ctx_.pool().ParallelFor(bytes, kCopyGrain, [&](int64_t first, int64_t last, int) {
      std::memcpy(pinned + first, from + first, last - first);
    });
    if (stored.dtype == dtype) {
      CopyToDevice(ctx_, target, pinned, bytes);
    } else {
      CopyToDevice(ctx_, chunk.raw.As<std::byte>(), pinned, bytes);
      kernels::ConvertWeights(
          ctx_, {.from = {chunk.raw.As<std::byte>(), stored.dtype, 1, count}, .out = target});
    }
    chunk.copied.Record();
    Report(static_cast<int64_t>(BytesOf(dtype, count)));
  }
}

ConstMatrix WeightStore::AddRandom(const RandomWeights& random, int64_t rows, int64_t cols) {
  const DType dtype = ctx_.device() == Device::kCpu ? DType::kBF16 : ctx_.activation_dtype();
  std::byte* memory = Reserve(BytesOf(dtype, rows * cols));
  kernels::FillRandom(ctx_,
                      {.weights = random, .elements = rows * cols, .dtype = dtype, .out = memory});
  Report(static_cast<int64_t>(BytesOf(dtype, rows * cols)));
  return {memory, dtype, rows, cols};
}

const float* WeightStore::AddVector(const ConstMatrix& stored) {
  const int64_t size = stored.rows * stored.cols;
  std::byte* memory = Reserve(size * sizeof(float));
  std::vector<float> values(size);
  kernels::cpu::Dequantize(stored, values.data());
  CopyToDevice(ctx_, memory, values.data(), size * sizeof(float));
  return reinterpret_cast<const float*>(memory);
}

const float* WeightStore::AddRandomVector(const RandomWeights& random, int64_t size) {
  std::byte* memory = Reserve(size * sizeof(float));
  kernels::FillRandom(ctx_,
                      {.weights = random, .elements = size, .dtype = DType::kF32, .out = memory});
  return reinterpret_cast<const float*>(memory);
}

absl::Status WeightStore::Finish() {
  const std::optional<std::string> error = ctx_.TakeError();
  ring_.clear();
  if (error) return absl::InternalError(absl::StrCat("loading the weights failed: ", *error));
  return absl::OkStatus();
}

void WeightStore::Report(int64_t bytes) {
  done_bytes_ += bytes;
  if (on_progress_) on_progress_(done_bytes_, static_cast<int64_t>(arena_.bytes()));
}

}  // namespace espalier
