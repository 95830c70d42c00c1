// The one kernel of the device sampler. No CUDA headers.
#pragma once

#include <cstddef>

#include "kernels/cuda/device_sampler_step.h"
#include "kernels/runtime/context.h"

namespace espalier::device_sampler {

// How the kernel is launched for a vocabulary on a device.
struct Shape {
  int vocab = 0;
  int blocks_per_row = 0;  // of threads: a cluster of them, or one
  int slice_blocks = 0;    // of kRowBlock logits, one thread block's share of a row
  int shared_bytes = 0;    // dynamic, a block
  int max_rows_at_once = 0;
  // Of global memory for each row at once, where a block's shared memory does not hold it; else 0.
  size_t scratch_bytes_per_row = 0;
};

// `portable`: one block a row on any device.
Shape ChooseShape(const Context& ctx, int vocab, bool portable);

struct SampleParams {
  const void* step;     // StepHeader, Request [max_requests], lists
  const float* logits;  // [rows, vocab]
  float* scratch;       // Shape::scratch_bytes_per_row for each row at once
  Result* results;      // [max_requests]
  TopEntry* top;        // [max_requests, kMaxTop]
};

// Reads how many requests there are from the step, and does at most `max_requests`.
void Launch(const Context& ctx, const Shape& shape, const SampleParams& params, int max_requests);

}  // namespace espalier::device_sampler
