#include "tests/support/tiny_engine.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/support/fake_tokenizer.h"

namespace espalier {

EngineConfig ExactConfig(Sharing sharing) {
  EngineConfig config;
  config.device = Device::kCpu;
  config.cpu_precision = CpuPrecision::kF32;
  config.num_threads = 2;
  config.sharing = sharing;
  config.kv_memory_bytes = 8 << 20;
  config.limits.max_logprobs = kTinyVocab;
  return config;
}

std::unique_ptr<Checkpoint> OpenTinyCheckpoint(const std::string& name) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(absl::StrCat(ESPALIER_SOURCE_DIR, "/tests/golden/tiny/", name));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return *std::move(checkpoint);
}

std::unique_ptr<Engine> MakeEngine(const EngineConfig& config,
                                   std::unique_ptr<Checkpoint> checkpoint,
                                   std::unique_ptr<Checkpoint> draft) {
  absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Create(
      config, std::move(checkpoint), std::make_unique<FakeTokenizer>(kTinyVocab), std::move(draft));
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::unique_ptr<Engine> MakeEngine(const EngineConfig& config, const std::string& name) {
  return MakeEngine(config, OpenTinyCheckpoint(name));
}

double LogprobTolerance(KvCacheDType kv_dtype) {
  return kv_dtype == KvCacheDType::kFp8 ? 0.02 : 1e-4;
}

std::vector<int32_t> RandomTokens(std::mt19937_64& rng, int count) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % (kTinyVocab - 1));
  return tokens;
}

Generation Greedy(int max_tokens) {
  Generation g;
  g.max_tokens = max_tokens;
  g.ignore_eos = true;
  g.sampling.temperature = 0;
  g.logprobs = kTinyVocab;
  return g;
}

PromptNode Node(int parent, std::vector<int32_t> tokens, std::optional<Generation> generation) {
  PromptNode node;
  node.parent = parent;
  node.content = std::move(tokens);
  node.generation = std::move(generation);
  return node;
}

}  // namespace espalier
