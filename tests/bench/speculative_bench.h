// `espalier-bench speculative`: recorded speculative decoding, acceptance forced.
#pragma once

#include <CLI/CLI.hpp>

namespace espalier::bench {

// Adds the subcommand; it runs when the command line is parsed.
void AddSpeculativeCommand(CLI::App& app);

}  // namespace espalier::bench
