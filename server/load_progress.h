// Tells a waiting person that the model is loading, how large it is and how far memory has filled.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace espalier {

class LoadProgress {
 public:
  // Logs a line now, and one every few seconds until destroyed.
  explicit LoadProgress(const std::string& model_path);
  ~LoadProgress();

  // So many of the weights' bytes are in place. Any thread.
  void Report(int64_t done_bytes, int64_t total_bytes);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::atomic<int64_t> loaded_bytes_ = 0;
  std::atomic<int64_t> total_bytes_ = 0;  // 0: the loader reports nothing
  std::thread thread_;
};

}  // namespace espalier
