#include "tests/server/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace espalier {

Process::Process(const std::vector<std::string>& command) {
  errors_path_ = std::filesystem::temp_directory_path() / "espalier_stderr_XXXXXX";
  const int errors_fd = mkstemp(errors_path_.data());
  int pipe_fds[2] = {-1, -1};
  EXPECT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(pipe_fds[1], STDOUT_FILENO);
    dup2(errors_fd, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(errors_fd);
  close(pipe_fds[1]);
  stdout_fd_ = pipe_fds[0];
}

Process::~Process() {
  if (exit_code_ < 0) {
    Signal(SIGKILL);
    Wait();
  }
  close(stdout_fd_);
  std::filesystem::remove(errors_path_);
}

std::string Process::ReadLine() {
  std::string line;
  char c;
  while (read(stdout_fd_, &c, 1) == 1 && c != '\n') line.push_back(c);
  return line;
}

void Process::Signal(int signal) const { kill(pid_, signal); }

int Process::Wait() {
  int status = 0;
  EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return exit_code_;
}

std::string Process::Errors() const {
  std::ifstream file(errors_path_);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

}  // namespace espalier
