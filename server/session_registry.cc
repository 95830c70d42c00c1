#include "server/session_registry.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace espalier {

absl::Status SessionRegistry::Add(const std::string& id, End end) {
  std::lock_guard lock(mutex_);
  if (closed_) return absl::UnavailableError("the server is shutting down");
  if (static_cast<int>(sessions_.size()) >= max_sessions_) {
    return absl::ResourceExhaustedError(
        absl::StrCat(sessions_.size(), " sessions are open; must be below ", max_sessions_,
                     " (max_sessions): try again later"));
  }
  sessions_.emplace(id, std::move(end));
  return absl::OkStatus();
}

void SessionRegistry::Remove(const std::string& id) {
  std::lock_guard lock(mutex_);
  sessions_.erase(id);
}

absl::Status SessionRegistry::Abort(std::string_view id) {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return absl::NotFoundError("no such session is open");
  found->second(absl::CancelledError("aborted"), /*at_once=*/true);
  return absl::OkStatus();
}

void SessionRegistry::EndAll() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  for (auto& [id, end] : sessions_) {
    end(absl::UnavailableError("the server is shutting down"), /*at_once=*/false);
  }
}

}  // namespace espalier
