#include "engine/kvcache/available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

namespace espalier {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// The first number of a file; empty if there is none ("max").
std::optional<int64_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  int64_t value;
  if (file >> value) return value;
  return std::nullopt;
}

// The number after `key` in a file of "key value" lines.
std::optional<int64_t> ReadField(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string name;
    int64_t value;
    if (fields >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

// What is left in the cgroup `group` and in those around it, up to the mount point.
int64_t LeftInCgroups(const std::string& mount, std::string group, const char* limit_file,
                      const char* usage_file, const char* cache_field) {
  int64_t left = kUnlimited;
  for (;;) {
    const std::string folder = mount + group + "/";
    const std::optional<int64_t> limit = ReadNumber(folder + limit_file);
    const std::optional<int64_t> usage = ReadNumber(folder + usage_file);
    if (limit && usage) {
      const int64_t cache = ReadField(folder + "memory.stat", cache_field).value_or(0);
      left = std::min(left, std::max<int64_t>(0, *limit - *usage + cache));
    }
    const size_t slash = group.find_last_of('/');
    if (slash == std::string::npos) return left;
    group.resize(slash);
  }
}

}  // namespace

int64_t AvailableMemoryBytes(const std::string& root) {
  int64_t available = kUnlimited;
  if (const auto kib = ReadField(root + "/proc/meminfo", "MemAvailable:")) available = *kib * 1024;

  // Lines "id:controllers:path"; version 2 has no controllers.
  std::ifstream groups(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers == ",,") {
      available = std::min(available, LeftInCgroups(root + "/sys/fs/cgroup", path, "memory.max",
                                                    "memory.current", "inactive_file"));
    } else if (controllers.find(",memory,") != std::string::npos) {
      available = std::min(
          available, LeftInCgroups(root + "/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                                   "memory.usage_in_bytes", "total_inactive_file"));
    }
  }
  return available;
}

}  // namespace espalier
