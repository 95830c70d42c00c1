// `espalier-bench sampling`: a step's sampling on the device and on the CPU, beside the roofline.
#pragma once

#include <CLI/CLI.hpp>

namespace espalier::bench {

// Adds the subcommand; it runs when the command line is parsed.
void AddSamplingCommand(CLI::App& app);

}  // namespace espalier::bench
