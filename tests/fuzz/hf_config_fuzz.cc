// config.json, and the same bytes as generation_config.json.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/core/check.h"
#include "model/checkpoint/hf_config.h"
#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto config = espalier::ParseHfConfig(text);
  if (config.ok()) {
    ESPALIER_CHECK(espalier::ValidateConfig(*config).ok());
    for (const float frequency : espalier::RopeInvFreq(*config)) {
      ESPALIER_CHECK(std::isfinite(frequency));
      ESPALIER_CHECK(frequency > 0);
    }
  } else {
    config = espalier::ModelConfig{};
    config->vocab_size = 1000;
  }
  if (espalier::MergeGenerationConfig(text, &*config).ok()) {
    for (const int32_t id : config->eos_token_ids) {
      ESPALIER_CHECK(id >= 0);
      ESPALIER_CHECK(id < config->vocab_size);
    }
  }
  return 0;
}
