// `espalier-bench decode`, `prefill` and `replay`: the whole engine beside the bytes that its steps
// must read and the operations that a prompt must do.
#pragma once

namespace CLI {
class App;
}

namespace espalier::bench {

void AddDecodeCommand(CLI::App& app);
void AddPrefillCommand(CLI::App& app);
void AddReplayCommand(CLI::App& app);

}  // namespace espalier::bench
