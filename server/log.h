// The server's log: one line an entry, on stderr. Thread-safe. spdlog stays in log.cc, because its
// headers are slow to compile.
#pragma once

#include <string_view>

namespace espalier {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Entries below `level` are dropped. gRPC's and protobuf's own messages go the same way from now
// on; they count as debug, because clients can cause any number of them.
void InitLog(LogLevel level);

bool LogEnabled(LogLevel level);
void Log(LogLevel level, std::string_view message);

}  // namespace espalier
