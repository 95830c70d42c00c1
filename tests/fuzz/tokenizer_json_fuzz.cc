// Any bytes as tokenizer.json: refused, or a tokenizer that encodes any text to ids of its own
// vocabulary. The input is the file, then, after a NUL, the text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/core/check.h"
#include "model/tokenizer/tokenizer_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t nul = input.find('\0');
  const std::string_view text =
      nul == std::string_view::npos ? "It's 2024: caf\u00E9 \xFF\n  x" : input.substr(nul + 1);
  espalier::TokenizerConfig config;
  config.bos_token = "<s>";
  config.eos_token = "</s>";
  const auto tokenizer = espalier::ParseTokenizerJson(input.substr(0, nul), config);
  if (!tokenizer.ok()) return 0;
  for (const bool at_root : {false, true}) {
    for (const int32_t id : (*tokenizer)->Encode(text.substr(0, 256), at_root)) {
      ESPALIER_CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
      ESPALIER_CHECK(at_root || !(*tokenizer)->IsSpecial(id));
      (*tokenizer)->TokenBytes(id, at_root);
    }
  }
  return 0;
}
