// A program that runs beside the test: what it prints, signals to it, how it ended.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace espalier {

class Process {
 public:
  explicit Process(const std::vector<std::string>& command);
  // Kills what still runs.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  // The next line of its stdout, without the newline; empty at the end.
  std::string ReadLine();
  void Signal(int signal) const;
  // Its exit status, or 128 + the signal that ended it.
  int Wait();
  // All of its stderr. After Wait.
  std::string Errors() const;

 private:
  pid_t pid_ = -1;
  int stdout_fd_ = -1;
  std::string errors_path_;
  int exit_code_ = -1;
};

}  // namespace espalier
