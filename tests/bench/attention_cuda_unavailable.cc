// Of a build without CUDA.
#include <CLI/CLI.hpp>

#include "tests/bench/attention_measure.h"

namespace espalier::bench {

AttentionReport MeasureOnCuda(const AttentionProblem&) {
  throw CLI::ValidationError("--device cuda: this build has the CPU backend only");
}

}  // namespace espalier::bench
