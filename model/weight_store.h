// Holds a model's weights where a device computes with them, all in the order in which they come,
// so that matrices that follow each other (q, k, v; gate, up) can be multiplied as one.
//
// On the CPU a matrix stays where the checkpoint has it. On CUDA everything is in one allocation of
// a size that is known beforehand: stored rows pass through a ring of pinned chunks, so that
// reading, copying and converting overlap and the host never holds a second copy.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/matrix.h"
#include "kernels/runtime/device_memory.h"
#include "kernels/weight_ops.h"

namespace espalier {

// Bytes of weights that are in place, of how many.
using LoadProgressCallback = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

class WeightStore {
 public:
  // `capacity_bytes` is at least the sum of SizeOf what will come. RESOURCE_EXHAUSTED names the
  // bytes when the device lacks them. `on_progress` may be empty.
  static absl::StatusOr<std::unique_ptr<WeightStore>> Create(const Context& ctx,
                                                             int64_t capacity_bytes,
                                                             LoadProgressCallback on_progress);
  ~WeightStore();

  // Bytes that a matrix takes in a store for CUDA.
  static int64_t SizeOf(const Context& ctx, int64_t rows, int64_t cols, bool vector);

  // A matrix of the device's type: on CUDA of activations, on the CPU as it is stored. `stored` is
  // memory of the host that outlives a store for the CPU.
  ConstMatrix Add(const ConstMatrix& stored);
  ConstMatrix AddRandom(const RandomWeights& random, int64_t rows, int64_t cols);
  // fp32 on every device.
  const float* AddVector(const ConstMatrix& stored);
  const float* AddRandomVector(const RandomWeights& random, int64_t size);

  // Waits until all is in place. INTERNAL names what the device met.
  absl::Status Finish();

 private:
  struct Chunk;
  WeightStore(const Context& ctx, LoadProgressCallback on_progress);

  // Memory for `bytes`, at the end of what is in use.
  std::byte* Reserve(int64_t bytes);
  void Upload(const ConstMatrix& stored, std::byte* to);
  void Report(int64_t bytes);

  const Context& ctx_;
  const LoadProgressCallback on_progress_;
  DeviceBuffer arena_;  // CUDA only
  int64_t used_bytes_ = 0;
  int64_t done_bytes_ = 0;
  std::vector<DeviceBuffer> owned_;  // CPU only: vectors, random matrices
  std::vector<std::unique_ptr<Chunk>> ring_;
  size_t next_chunk_ = 0;
};

}  // namespace espalier
