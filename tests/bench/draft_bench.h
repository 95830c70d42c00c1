// `espalier-bench drafts`: what speculative decoding brings a model and its draft model, by load.
#pragma once

namespace CLI {
class App;
}

namespace espalier::bench {

void AddDraftsCommand(CLI::App& app);

}  // namespace espalier::bench
