#include "server/log.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace espalier {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  ESPALIER_CHECK(false);
}

spdlog::logger& Logger() {
  // Never destroyed: threads of gRPC may log until the process is gone.
  static spdlog::logger* const logger = [] {
    auto* made =
        new spdlog::logger("espalier", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %v");
    made->flush_on(spdlog::level::warn);
    return made;
  }();
  return *logger;
}

void FromGrpc(gpr_log_func_args* args) {
  Log(LogLevel::kDebug, absl::StrCat("grpc: ", args->message));
}

void FromProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  Log(LogLevel::kDebug, absl::StrCat("protobuf: ", message));
}

}  // namespace

void InitLog(LogLevel level) {
  Logger().set_level(ToSpdlog(level));
  gpr_set_log_function(FromGrpc);
  gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
  google::protobuf::SetLogHandler(FromProtobuf);
}

bool LogEnabled(LogLevel level) { return Logger().should_log(ToSpdlog(level)); }

void Log(LogLevel level, std::string_view message) {
  Logger().log(ToSpdlog(level), spdlog::string_view_t(message.data(), message.size()));
}

}  // namespace espalier
