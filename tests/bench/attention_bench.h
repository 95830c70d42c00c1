// `espalier-bench attention`: tree attention alone, on a synthetic tree, for each plan variant.
#pragma once

#include <CLI/CLI.hpp>

namespace espalier::bench {

// Adds the subcommand; it runs when the command line is parsed.
void AddAttentionCommand(CLI::App& app);

}  // namespace espalier::bench
