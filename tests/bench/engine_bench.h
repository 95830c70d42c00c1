// `espalier-bench engine`: a real model through the whole engine, without a network.
#pragma once

namespace CLI {
class App;
}

namespace espalier::bench {

void AddEngineCommand(CLI::App& app);

}  // namespace espalier::bench
