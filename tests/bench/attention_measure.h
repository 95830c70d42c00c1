// Times the plan variants of tree attention on one problem, on a device.
#pragma once

#include <string>
#include <vector>

#include "kernels/attention/tree_plan.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/plan_buffers.h"
#include "tests/bench/attention_cases.h"

namespace espalier::bench {

struct AttentionProblem {
  AttentionCase tree;
  int num_heads = 32;
  int num_kv_heads = 8;
  int head_dim = 128;
  DType dtype = DType::kF16;
  DType kv_dtype = DType::kF16;  // `dtype` or kE4M3
  std::vector<AttentionVariant> variants;
  int block_tokens = 0;  // as in PlanOptions
  int tile_rows = 0;     // 0: the device's own
  int token_cost = 0;    // PlanCost::token; 0: the device's own
  AttentionKernel kernel = AttentionKernel::kBest;
  int threads = 1;  // of the host
  int repeats = 0;

  int64_t TokenBytes() const { return 2 * num_kv_heads * BytesOf(kv_dtype, head_dim); }
};

// Medians on the host, of a plan made anew and of one for a shape whose leaves have grown by a
// token.
struct PlanningTimes {
  double fresh_us = 0;
  double grown_us = 0;
};

// One variant. Times are of a layer.
struct AttentionTimes {
  AttentionVariant variant;
  double us = 0;         // median
  double spread_us = 0;  // between the 10th and the 90th percentile
  PlanningTimes planning;
  double error = 0;     // ||out - reference|| / ||reference||
  double kv_error = 0;  // the same against KV before its rounding to kE4M3
  int partitions = 0;
  int64_t partial_bytes = 0;
  PlanStats stats;
};

struct AttentionReport {
  std::string device;
  double read_bytes_per_s = 0;  // measured in the same run; 0: not measured
  double flops_per_s = 0;       // of a large matrix product, likewise
  std::vector<AttentionTimes> variants;
};

// Of kE4M3 and KV of standard deviation 1, up to seven deviations.
inline constexpr float kKvScale = 0x1p-6f;

AttentionReport MeasureOnCpu(const AttentionProblem& problem);
// Throws CLI::ValidationError where there is no CUDA device.
AttentionReport MeasureOnCuda(const AttentionProblem& problem);

// Percentile p of [0, 1].
double Percentile(std::vector<double> values, double p);

PlanningTimes TimePlanning(const TreeShape& shape, PlanOptions options, int repeats);

}  // namespace espalier::bench
