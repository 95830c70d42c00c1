// The command line and the configuration file. A flag wins over the file, the file over the
// default, a later flag over an earlier one of the same name.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/options.h"

namespace espalier {

// Nothing when --help or --version was asked for and printed. INVALID_ARGUMENT names the flag, or
// the file and its key.
absl::StatusOr<std::optional<ServerOptions>> ParseCommandLine(int argc, const char* const* argv);

// Applies a JSON object (comments allowed) of settings. An unknown key is an error.
absl::Status ApplyConfigFile(const std::string& path, ServerOptions* options);

}  // namespace espalier
