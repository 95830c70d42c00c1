// What engine tests share: an engine on a tiny random checkpoint, and requests by token ids.
#pragma once

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"

namespace espalier {

inline constexpr int kTinyVocab = 256;

// fp32 throughout, two threads, 8 MiB of KV, and logprobs of whole rows allowed.
EngineConfig ExactConfig(Sharing sharing);

// `name` is a path below tests/golden/tiny.
std::unique_ptr<Checkpoint> OpenTinyCheckpoint(const std::string& name);
std::unique_ptr<Engine> MakeEngine(const EngineConfig& config,
                                   std::unique_ptr<Checkpoint> checkpoint,
                                   std::unique_ptr<Checkpoint> draft = nullptr);
std::unique_ptr<Engine> MakeEngine(const EngineConfig& config,
                                   const std::string& name = "llama-gqa8-linear");

// Within which logprobs agree that were computed in other batches. An element of fp8 KV may be
// rounded to the other side when it differs in its last bit.
double LogprobTolerance(KvCacheDType kv_dtype);

// Ids of plain tokens: the last of the vocabulary would end a generation.
std::vector<int32_t> RandomTokens(std::mt19937_64& rng, int count);

// Greedy, to the very end, with the logprobs of whole rows.
Generation Greedy(int max_tokens);

PromptNode Node(int parent, std::vector<int32_t> tokens,
                std::optional<Generation> generation = std::nullopt);

}  // namespace espalier
