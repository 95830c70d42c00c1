#include "server/load_progress.h"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/log.h"

namespace espalier {
namespace {

constexpr std::chrono::seconds kInterval{3};
constexpr int kBarWidth = 30;
constexpr double kGib = 1 << 30;

// Of a file, or of a folder's files; 0 when there is none: the loader will say so.
uint64_t BytesOnDisk(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    const uint64_t bytes = std::filesystem::file_size(path, error);
    return error ? 0 : bytes;
  }
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
    std::error_code entry_error;
    const uint64_t size = entry.file_size(entry_error);
    if (!entry_error) bytes += size;
  }
  return bytes;
}

double ResidentMib() {
  std::ifstream statm("/proc/self/statm");
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return static_cast<double>(resident_pages * sysconf(_SC_PAGESIZE)) / (1 << 20);
}

}  // namespace

LoadProgress::LoadProgress(const std::string& model_path) {
  Log(LogLevel::kInfo, absl::StrFormat("loading %s (%.0f MiB)", model_path,
                                       static_cast<double>(BytesOnDisk(model_path)) / (1 << 20)));
  thread_ = std::thread([this] { Run(); });
}

LoadProgress::~LoadProgress() {
  {
    std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void LoadProgress::Run() {
  std::unique_lock lock(mutex_);
  std::chrono::seconds elapsed{0};
  while (!changed_.wait_for(lock, kInterval, [this] { return done_; })) {
    elapsed += kInterval;
    const auto loaded = static_cast<double>(loaded_bytes_);
    const auto total = static_cast<double>(total_bytes_);
    if (total == 0) {
      Log(LogLevel::kInfo, absl::StrFormat("still loading after %d s, %.0f MiB in memory",
                                           elapsed.count(), ResidentMib()));
      continue;
    }
    const int filled = static_cast<int>(loaded / total * kBarWidth);
    Log(LogLevel::kInfo,
        absl::StrFormat("loading [%s%s] %.1f of %.1f GiB, %.2f GiB/s", std::string(filled, '#'),
                        std::string(kBarWidth - filled, '.'), loaded / kGib, total / kGib,
                        loaded / kGib / static_cast<double>(elapsed.count())));
  }
}

void LoadProgress::Report(int64_t done_bytes, int64_t total_bytes) {
  loaded_bytes_ = done_bytes;
  total_bytes_ = total_bytes;
}

}  // namespace espalier
