// espalier-server: loads a model and serves it until SIGTERM or SIGINT, then drains.
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/engine.h"
#include "server/flags.h"
#include "server/load_progress.h"
#include "server/log.h"
#include "server/probe.h"
#include "server/server.h"

namespace espalier {
namespace {

constexpr int kBadUsage = 2;
constexpr absl::Duration kProbeTimeout = absl::Seconds(5);

// Waits for the first SIGTERM or SIGINT; a second one ends the process at once. While a model
// loads, signals keep their default action: there is nothing to drain yet.
class StopSignal {
 public:
  StopSignal() {
    event_fd_ = eventfd(0, EFD_CLOEXEC);
    struct sigaction action = {};
    action.sa_handler = OnSignal;
    sigaction(SIGTERM, &action, nullptr);
    sigaction(SIGINT, &action, nullptr);
  }

  // As a signal would, from any thread.
  static void Raise() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(event_fd_, &one, sizeof(one));
  }

  void Wait() {
    uint64_t count;
    while (read(event_fd_, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
  }

 private:
  static void OnSignal(int signal) {
    if (seen_.exchange(true)) _exit(128 + signal);
    Raise();  // the counter cannot overflow, so the write cannot fail
  }

  static inline int event_fd_ = -1;
  static inline std::atomic<bool> seen_ = false;
  static_assert(std::atomic<bool>::is_always_lock_free);  // or a handler could not use it
};

// Hands the device's failure from the engine thread to the one that waits for signals.
class DeviceFailure {
 public:
  void Set(const absl::Status& status) {
    const std::lock_guard lock(mutex_);
    status_ = status;
    if (signalling_) StopSignal::Raise();
  }
  // A failure before this call is signalled now.
  void StartSignalling() {
    const std::lock_guard lock(mutex_);
    signalling_ = true;
    if (!status_.ok()) StopSignal::Raise();
  }
  absl::Status Get() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status status_;
  bool signalling_ = false;
};

absl::StatusOr<std::unique_ptr<Engine>> Load(EngineConfig config) {
  LoadProgress progress(config.model_path);
  config.on_load_progress = [&progress](int64_t done, int64_t total) {
    progress.Report(done, total);
  };
  return Engine::Create(config);
}

void LogModel(const Engine& engine, absl::Duration load_time) {
  const ModelInfo& info = engine.model_info();
  const EngineStats stats = engine.Stats();
  Log(LogLevel::kInfo,
      absl::StrFormat("loaded %s: %.1f M parameters, %s, %.0f MiB, context %d, in %.1f s",
                      info.name, static_cast<double>(info.parameters) * 1e-6, info.weight_type,
                      static_cast<double>(info.weight_bytes) / (1 << 20), info.max_context,
                      absl::ToDoubleSeconds(load_time)));
  if (!info.draft_name.empty()) {
    Log(LogLevel::kInfo, absl::StrFormat("drafts by %s: %.0f MiB", info.draft_name,
                                         static_cast<double>(info.draft_weight_bytes) / (1 << 20)));
  }
  const MemorySummary& memory = info.memory;
  const auto gib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  if (info.device == Device::kCuda) {
    Log(LogLevel::kInfo,
        absl::StrFormat(
            "device %s: %.2f GiB = weights %.2f + activations %.2f + KV %.2f + other "
            "%.2f + free %.2f",
            info.device_name, gib(memory.total), gib(memory.weights), gib(memory.activations),
            gib(memory.kv),
            gib(memory.total - memory.weights - memory.activations - memory.kv - memory.free),
            gib(memory.free)));
  } else {
    Log(LogLevel::kInfo, absl::StrCat("device ", info.device_name));
  }
  Log(LogLevel::kInfo,
      absl::StrFormat("KV cache: %.0f MiB of %s, %d tokens in pages of %d",
                      static_cast<double>(stats.kv_bytes) / (1 << 20), info.kv_type,
                      stats.pages_total * stats.page_size, stats.page_size));
}

absl::Status Serve(const ServerOptions& options) {
  absl::Status address = CheckAddress(options.rpc.host, options.rpc.port);
  if (!address.ok()) return address;

  const absl::Time start = absl::Now();
  DeviceFailure failure;
  EngineConfig config = options.engine;
  config.on_failure = [&failure](const absl::Status& status) { failure.Set(status); };
  absl::StatusOr<std::unique_ptr<Engine>> engine = Load(std::move(config));
  if (!engine.ok()) return engine.status();
  LogModel(**engine, absl::Now() - start);

  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(engine->get(), options.rpc);
  if (!server.ok()) return server.status();

  StopSignal stop;
  // For programs that start this one and wait for it; the log is for people.
  std::printf("listening on %s\n", (*server)->address().c_str());
  std::fflush(stdout);

  failure.StartSignalling();
  stop.Wait();
  if (absl::Status status = failure.Get(); !status.ok()) {
    Log(LogLevel::kError, absl::StrCat(std::string(status.message()), "; the server ends"));
    (*server)->Drain(absl::ZeroDuration());
    return status;
  }
  Log(LogLevel::kInfo,
      absl::StrCat("draining for at most ", absl::FormatDuration(options.drain_timeout),
                   "; a second signal ends at once"));
  (*server)->Drain(options.drain_timeout);
  Log(LogLevel::kInfo, "drained");
  return absl::OkStatus();
}

int Main(int argc, const char* const* argv) {
  absl::StatusOr<std::optional<ServerOptions>> options = ParseCommandLine(argc, argv);
  if (!options.ok()) {
    std::fprintf(stderr, "espalier-server: %s\n", std::string(options.status().message()).c_str());
    return kBadUsage;
  }
  if (!options->has_value()) return 0;  // --help, --version

  if (!(*options)->probe.empty()) {
    const absl::Status status = Probe((*options)->probe, kProbeTimeout);
    if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return status.ok() ? 0 : 1;
  }

  std::signal(SIGPIPE, SIG_IGN);  // of a stdout that nobody reads any more
  InitLog((*options)->log_level);
  if (absl::Status status = Serve(**options); !status.ok()) {
    Log(LogLevel::kError, std::string(status.message()));
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) { return espalier::Main(argc, argv); }
