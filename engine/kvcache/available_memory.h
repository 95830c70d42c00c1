// How much memory this process can still take without being killed for it.
#pragma once

#include <cstdint>
#include <string>

namespace espalier {

// The least of the machine's MemAvailable and what every memory cgroup (v1 or v2) around this
// process leaves, page cache that can be dropped counted as free. INT64_MAX when nothing says.
// Reads below `root` (tests give a folder of their own).
int64_t AvailableMemoryBytes(const std::string& root = "");

}  // namespace espalier
