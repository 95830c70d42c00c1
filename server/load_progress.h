// Tells a waiting person that the model is loading, how large it is and how far memory has filled.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace espalier {

class LoadProgress {
 public:
  // Logs a line now, and one every few seconds until destroyed.
  explicit LoadProgress(const std::string& model_path);
  ~LoadProgress();

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

}  // namespace espalier
