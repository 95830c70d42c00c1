// THE list of settings: each has one name, which is its flag (--kv-memory) and, with underscores,
// its key in the configuration file (kv_memory), one parser and one help text.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/options.h"

namespace espalier {

struct Setting {
  std::string name;   // with dashes
  std::string value;  // what the help calls the value: "SIZE"
  std::string help;
  std::function<absl::Status(std::string_view text, ServerOptions* options)> set;
  std::function<std::string(const ServerOptions& options)> get;  // as `set` would read it
};

const std::vector<Setting>& AllSettings();

// Null when there is none of that name; `name` with dashes or underscores.
const Setting* FindSetting(std::string_view name);

}  // namespace espalier
