#include "kernels/cuda/device_sampler.h"

#include <algorithm>

#include "kernels/core/check.h"
#include "kernels/cuda/device_sampler_kernel.h"
#include "kernels/cuda/device_sampler_pack.h"
#include "kernels/runtime/device_memory.h"

namespace espalier {

using device_sampler::Request;
using device_sampler::Result;
using device_sampler::StepHeader;
using device_sampler::TopEntry;

static_assert(DeviceSampler::kMaxTopLogprobs == device_sampler::kMaxTop);

namespace {

// What a request's lists may take before the memory grows: stop tokens and a few penalties.
constexpr size_t kListBytesPerRequest = 1024;

}  // namespace

struct DeviceSampler::Impl {
  Impl(const Context& context, int vocab_size, int rows, bool portable)
      : ctx(context),
        vocab(vocab_size),
        max_requests(rows),
        shape(device_sampler::ChooseShape(context, vocab_size, portable)) {
    const size_t result_bytes = max_requests * sizeof(Result) + TopBytes(max_requests);
    results = DeviceBuffer(ctx, result_bytes);
    results_staging = StagingBuffer(ctx, result_bytes);
    const bool has_step =
        Grow(sizeof(StepHeader) + max_requests * (sizeof(Request) + kListBytesPerRequest));
    const size_t scratch_bytes =
        shape.scratch_bytes_per_row * std::min(max_requests, shape.max_rows_at_once);
    if (scratch_bytes > 0) scratch = DeviceBuffer(ctx, scratch_bytes);
    ok = has_step && !results.empty() && !results_staging.empty() &&
         (scratch_bytes == 0 || !scratch.empty());
    if (!ok) return;
    FillDevice(ctx, results.As<void>(), 0, result_bytes);
    samples.reserve(max_requests);
    top.reserve(max_requests * kMaxTopLogprobs);
  }

  static size_t TopBytes(size_t requests) { return requests * kMaxTopLogprobs * sizeof(TopEntry); }
  // Behind the results.
  template <typename Memory>
  TopEntry* TopOf(const Memory& memory) const {
    return reinterpret_cast<TopEntry*>(memory.template As<Result>() + max_requests);
  }

  bool Grow(size_t bytes) {
    if (bytes <= step.bytes() && bytes <= step_staging.bytes()) return true;
    bytes = std::max(bytes, 2 * step.bytes());
    step = DeviceBuffer();  // first, so that old and new are never there together
    step_staging = StagingBuffer();
    step = DeviceBuffer(ctx, bytes);
    step_staging = StagingBuffer(ctx, bytes);
    ++generation;
    if (step.empty() || step_staging.empty()) return false;
    // No requests, and nothing that has never been written: the kernel reads a request before it
    // knows that there is one.
    FillDevice(ctx, step.As<void>(), 0, bytes);
    return true;
  }

  const Context& ctx;
  const int vocab;
  const int max_requests;
  const device_sampler::Shape shape;
  bool ok = false;
  int generation = 0;

  device_sampler::StepPacker packer;
  DeviceBuffer step;
  StagingBuffer step_staging;
  DeviceBuffer scratch;
  DeviceBuffer results;  // Result [max_requests], TopEntry [max_requests, kMaxTopLogprobs]
  StagingBuffer results_staging;

  // Of the last Upload.
  int num_requests = 0;
  bool wants_top = false;
  std::vector<DeviceSample> samples;
  std::vector<std::pair<int32_t, float>> top;
};

DeviceSampler::DeviceSampler(const Context& ctx, int vocab, int max_requests, bool portable)
    : impl_(std::make_unique<Impl>(ctx, vocab, max_requests, portable)) {}
DeviceSampler::~DeviceSampler() = default;

bool DeviceSampler::ok() const { return impl_->ok; }
int DeviceSampler::generation() const { return impl_->generation; }

bool DeviceSampler::Upload(std::span<const DeviceSampleRequest> requests) {
  ESPALIER_CHECK(requests.size() <= static_cast<size_t>(impl_->max_requests));
  impl_->num_requests = static_cast<int>(requests.size());
  impl_->wants_top = false;
  for (const DeviceSampleRequest& r : requests) {
    ESPALIER_CHECK(r.score_token < impl_->vocab);
    ESPALIER_CHECK(r.top_logprobs <= kMaxTopLogprobs);
    impl_->wants_top |= r.top_logprobs > 0;
  }
  const size_t bytes = impl_->packer.Measure(requests) * sizeof(int32_t);
  if (!impl_->Grow(bytes)) return false;
  impl_->packer.Pack(requests, impl_->step_staging.As<int32_t>());
  CopyToDevice(impl_->ctx, impl_->step.As<void>(), impl_->step_staging.As<void>(), bytes);
  return true;
}

void DeviceSampler::Run(const float* logits, int max_requests) {
  ESPALIER_CHECK(impl_->ok && max_requests <= impl_->max_requests);
  device_sampler::Launch(impl_->ctx, impl_->shape,
                         {.step = impl_->step.As<void>(),
                          .logits = logits,
                          .scratch = impl_->scratch.As<float>(),
                          .results = impl_->results.As<Result>(),
                          .top = impl_->TopOf(impl_->results)},
                         max_requests);
}

void DeviceSampler::Download() {
  const size_t count = impl_->num_requests;
  CopyToHost(impl_->ctx, impl_->results_staging.As<void>(), impl_->results.As<void>(),
             count * sizeof(Result));
  if (!impl_->wants_top) return;
  CopyToHost(impl_->ctx, impl_->TopOf(impl_->results_staging), impl_->TopOf(impl_->results),
             Impl::TopBytes(count));
}

std::span<const DeviceSample> DeviceSampler::Results() const {
  impl_->samples.clear();
  impl_->top.clear();
  const Result* const results = impl_->results_staging.As<Result>();
  const TopEntry* const top = impl_->TopOf(impl_->results_staging);
  for (int i = 0; i < impl_->num_requests; ++i) {
    const Result& result = results[i];
    const size_t begin = impl_->top.size();
    for (int j = 0; j < result.num_top; ++j) {
      const TopEntry& entry = top[i * kMaxTopLogprobs + j];
      impl_->top.emplace_back(entry.token, entry.logprob);
    }
    // The vector has room for all: what is there does not move.
    impl_->samples.push_back({.token = result.token,
                              .logprob = result.logprob,
                              .finite = result.finite != 0,
                              .top = {impl_->top.data() + begin, impl_->top.size() - begin}});
  }
  return impl_->samples;
}

}  // namespace espalier
