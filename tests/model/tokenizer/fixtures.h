// The tokenizers of tests/golden/tokenizer and the corpus that they are compared on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/checkpoint/gguf.h"
#include "model/tokenizer/tokenizer.h"

namespace espalier {

// A fixture folder, or a fixture file that ends in .gguf. "demo": the GGUF that the environment
// variable ESPALIER_DEMO_MODEL names. Fails the test and gives null when it does not load.
std::unique_ptr<Tokenizer> LoadFixture(const std::string& name);

std::string GoldenPath(const std::string& name);
std::string ReadFile(const std::string& path);

// Why the "demo" fixture cannot be loaded; empty when it can.
std::string WhyNoDemoModel();

const std::vector<std::string>& CorpusLines();

// Every fixture but the demo model.
inline const char* const kFixtures[] = {
    "llama3",      "qwen2",          "gpt2",        "spm_bpe",    "spm_unigram",
    "spm_unknown", "llama-bpe.gguf", "qwen2.gguf",  "gpt-2.gguf", "smollm.gguf",
    "tekken.gguf", "default.gguf",   "spm_bpe.gguf"};

}  // namespace espalier
