// Benchmarks of Espalier's parts. Each subcommand prints a table, or JSON with --json.
#include <CLI/CLI.hpp>

#include "tests/bench/attention_bench.h"
#include "tests/bench/device_engine_bench.h"
#include "tests/bench/draft_bench.h"
#include "tests/bench/engine_bench.h"
#include "tests/bench/forward_bench.h"
#include "tests/bench/sampling_bench.h"
#include "tests/bench/speculative_bench.h"

int main(int argc, char** argv) {
  CLI::App app("Espalier benchmarks", "espalier-bench");
  app.require_subcommand(1);
  espalier::bench::AddAttentionCommand(app);
  espalier::bench::AddDecodeCommand(app);
  espalier::bench::AddDraftsCommand(app);
  espalier::bench::AddEngineCommand(app);
  espalier::bench::AddForwardCommand(app);
  espalier::bench::AddSamplingCommand(app);
  espalier::bench::AddPrefillCommand(app);
  espalier::bench::AddReplayCommand(app);
  espalier::bench::AddSpeculativeCommand(app);
  CLI11_PARSE(app, argc, argv);
  return 0;
}
