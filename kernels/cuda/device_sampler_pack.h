// Lays a step's requests out as the sampling kernel reads them: device_sampler_step.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/device_sampler.h"
#include "kernels/cuda/device_sampler_step.h"

namespace espalier::device_sampler {

// Keeps its memory from step to step.
class StepPacker {
 public:
  // 4-byte words that the step takes. The requests must stay as they are until Pack.
  size_t Measure(std::span<const DeviceSampleRequest> requests);
  // `step` has that many words. The same requests.
  void Pack(std::span<const DeviceSampleRequest> requests, int32_t* step);

 private:
  // A prompt's tokens, biases or allowed tokens: branches of one tree share them, and the step
  // holds them once.
  struct SharedList {
    const void* data;
    size_t words;
    size_t begin;  // in the step
  };
  struct ByAddress {
    bool operator()(const SharedList& a, const SharedList& b) const;
  };

  template <typename T>
  void AddShared(std::span<const T> list);
  template <typename T>
  List FindShared(std::span<const T> list) const;
  template <typename T>
  List Append(std::span<const T> list);
  Request PackRequest(const DeviceSampleRequest& r);

  std::vector<SharedList> shared_;  // by address, each once
  int32_t* step_ = nullptr;
  size_t end_ = 0;  // words written
};

}  // namespace espalier::device_sampler
