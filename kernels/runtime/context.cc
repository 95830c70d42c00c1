#include "kernels/runtime/context.h"

#include "kernels/core/check.h"

namespace espalier {

Context Context::Cpu(int num_threads, CpuPrecision precision, CpuIsa isa) {
  ESPALIER_CHECK(isa <= BestCpuIsa());
  Context context;
  context.cpu_precision_ = precision;
  context.cpu_isa_ = isa;
  context.pool_ = std::make_unique<ThreadPool>(num_threads);
  context.scratch_ = std::make_unique<Scratch[]>(num_threads + 1);
  return context;
}

}  // namespace espalier
