// ESPALIER_CHECK: a condition that only a bug of ours can break. Prints where and aborts.
// What a caller, a file or a device can cause is an absl::Status instead.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace espalier::internal {

[[noreturn]] inline void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace espalier::internal

#define ESPALIER_CHECK(condition)                                              \
  do {                                                                         \
    if (!(condition)) [[unlikely]]                                             \
      ::espalier::internal::CheckFailed(#condition, __FILE__, __LINE__);       \
  } while (false)
