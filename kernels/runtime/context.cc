#include "kernels/runtime/context.h"

#include <utility>

#include "kernels/core/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/runtime/device_memory.h"

namespace espalier {

Context::Context() : error_(std::make_unique<std::optional<std::string>>()) {}
Context::~Context() = default;
Context::Context(Context&&) noexcept = default;

Context Context::Cpu(int num_threads, CpuPrecision precision, CpuIsa isa) {
  ESPALIER_CHECK(isa <= BestCpuIsa());
  Context context;
  context.cpu_precision_ = precision;
  context.cpu_isa_ = isa;
  context.pool_ = std::make_unique<ThreadPool>(num_threads);
  context.scratch_ = std::make_unique<Scratch[]>(num_threads + 1);
  return context;
}

std::unique_ptr<Context> Context::Cuda(int index, DType activations, int num_threads,
                                       std::string* error) {
  ESPALIER_CHECK(activations == DType::kBF16 || activations == DType::kF16);
  CudaState* state = cuda::OpenDevice(index, error);
  if (state == nullptr) return nullptr;
  std::unique_ptr<Context> context(new Context(Cpu(num_threads, CpuPrecision::kF32)));
  context->device_ = Device::kCuda;
  context->activation_dtype_ = activations;
  context->cuda_.reset(state);
  return context;
}

void Context::CloseCuda::operator()(CudaState* state) const { cuda::CloseDevice(state); }

void Context::RecordError(const char* op, const std::string& message) const {
  if (!error_->has_value()) *error_ = std::string(op) + ": " + message;
}

std::optional<std::string> Context::TakeError() const {
  if (device_ == Device::kCuda) cuda::Synchronize(*this);
  return std::exchange(*error_, std::nullopt);
}

std::optional<std::string> Context::TakeError(const DeviceEvent& event) const {
  event.Wait();
  return std::exchange(*error_, std::nullopt);
}

}  // namespace espalier
