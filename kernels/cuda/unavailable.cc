// The CUDA backend of a build without CUDA: there is no device, and so no context that names one.
#include "kernels/core/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_rates.h"
#include "kernels/cuda/device_sampler.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/plan_buffers.h"
#include "kernels/weight_ops.h"

namespace espalier {
namespace {

[[noreturn]] void Unavailable() {
  internal::CheckFailed("this build has a CUDA backend", __FILE__, __LINE__);
}

}  // namespace

struct GraphCache::Impl {};
GraphCache::GraphCache(const Context&, int) { Unavailable(); }
GraphCache::~GraphCache() = default;
void GraphCache::Run(const GraphKey&, int64_t, const std::function<void()>&) { Unavailable(); }
int GraphCache::num_graphs() const { Unavailable(); }

struct PlanBuffers::Impl {};
PlanBuffers::PlanBuffers(const Context&, int, int, DType, AttentionKernel) { Unavailable(); }
PlanBuffers::~PlanBuffers() = default;
bool PlanBuffers::Upload(const TreePlan&) { Unavailable(); }
bool PlanBuffers::UploadAhead(const TreePlan&) { Unavailable(); }
int PlanBuffers::generation() const { Unavailable(); }
const DevicePlan& PlanBuffers::device_plan() const { Unavailable(); }
PlanOptions CudaPlanOptions(const Context&, AttentionVariant, int, int, DType, AttentionKernel) {
  Unavailable();
}

struct DeviceSampler::Impl {};
DeviceSampler::DeviceSampler(const Context&, int, int, bool) { Unavailable(); }
DeviceSampler::~DeviceSampler() = default;
bool DeviceSampler::ok() const { Unavailable(); }
bool DeviceSampler::Upload(std::span<const DeviceSampleRequest>) { Unavailable(); }
void DeviceSampler::Run(const float*, int) { Unavailable(); }
void DeviceSampler::Download() { Unavailable(); }
std::span<const DeviceSample> DeviceSampler::Results() const { Unavailable(); }
int DeviceSampler::generation() const { Unavailable(); }

namespace cuda {

CudaState* OpenDevice(int, std::string* error) {
  *error = "this build has the CPU backend only";
  return nullptr;
}
void CloseDevice(CudaState* state) { ESPALIER_CHECK(state == nullptr); }
int NumDevices() { return 0; }
void UseDevice(const Context&) { Unavailable(); }
void Synchronize(const Context&) { Unavailable(); }
void* AllocateDevice(const Context&, size_t) { Unavailable(); }
void FreeDevice(void*) { Unavailable(); }
void* AllocatePinned(const Context&, size_t) { Unavailable(); }
void FreePinned(void*) { Unavailable(); }
void Copy(const Context&, void*, const void*, size_t) { Unavailable(); }
void Fill(const Context&, void*, int, size_t) { Unavailable(); }
void* CreateEvent(const Context&) { Unavailable(); }
void DestroyEvent(void*) { Unavailable(); }
void RecordEvent(const Context&, void*) { Unavailable(); }
void WaitEvent(const Context&, void*) { Unavailable(); }
DeviceMemory QueryMemory(const Context&) { Unavailable(); }
std::string DeviceName(const Context&) { Unavailable(); }
double MeasureReadGbps(const Context&) { Unavailable(); }
double MeasureMatMulTflops(const Context&) { Unavailable(); }
double MedianMicroseconds(const Context&, int, const std::function<void()>&) { Unavailable(); }

}  // namespace cuda

namespace kernels::cuda {

void Embedding(const Context&, const EmbeddingParams&) { Unavailable(); }
void RmsNorm(const Context&, const RmsNormParams&) { Unavailable(); }
void Project(const Context&, const ProjectParams&) { Unavailable(); }
void RopeStoreKv(const Context&, const RopeStoreKvParams&) { Unavailable(); }
void TreeAttention(const Context&, const TreeAttentionParams&) { Unavailable(); }
void SwiGlu(const Context&, const SwiGluParams&) { Unavailable(); }
void GatherRows(const Context&, const GatherRowsParams&) { Unavailable(); }
void CopySlots(const Context&, const CopySlotsParams&) { Unavailable(); }
void FlagNonFinite(const Context&, const FlagNonFiniteParams&) { Unavailable(); }
void ConvertWeights(const Context&, const ConvertWeightsParams&) { Unavailable(); }
void FillRandom(const Context&, const FillRandomParams&) { Unavailable(); }

}  // namespace kernels::cuda
}  // namespace espalier
