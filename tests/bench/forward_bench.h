// `espalier-bench forward`: the model alone, prefill of a prompt and decode of branches over it.
#pragma once

#include <CLI/CLI.hpp>

namespace espalier::bench {

// Adds the subcommand; it runs when the command line is parsed.
void AddForwardCommand(CLI::App& app);

}  // namespace espalier::bench
