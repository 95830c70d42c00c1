// The sessions that are open, for whoever ends them from outside: Abort, and the end of the server.
// Thread-safe.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace espalier {

class SessionRegistry {
 public:
  // Ends a session: at once, or once what it runs is done. Must return at once, on any thread.
  using End = std::function<void(const absl::Status& status, bool at_once)>;

  explicit SessionRegistry(int max_sessions) : max_sessions_(max_sessions) {}

  // RESOURCE_EXHAUSTED when too many are open; UNAVAILABLE after EndAll.
  absl::Status Add(const std::string& id, End end);
  // `end` is not running and will not run again when it returns.
  void Remove(const std::string& id);
  // NOT_FOUND: no such session is open.
  absl::Status Abort(std::string_view id);
  // Lets sessions finish what they run, and no longer.
  void EndAll();

 private:
  const int max_sessions_;
  std::mutex mutex_;
  std::map<std::string, End, std::less<>> sessions_;
  bool closed_ = false;
};

}  // namespace espalier
