#include "engine/device_setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/tree_attention/device_plan.h"

namespace espalier {
namespace {

using ::testing::HasSubstr;

ModelConfig Llama8B() {
  ModelConfig model;
  model.vocab_size = 128256;
  model.hidden_size = 4096;
  model.intermediate_size = 14336;
  model.num_layers = 32;
  model.num_heads = 32;
  model.num_kv_heads = 8;
  model.head_dim = 128;
  return model;
}

TEST(DeviceSetupTest, CudaRefusesByFieldAndValue) {
  EXPECT_TRUE(CheckCudaRuns(Llama8B()).ok());
  const auto refusal = [](auto change) {
    ModelConfig model = Llama8B();
    change(model);
    return std::string(CheckCudaRuns(model).message());
  };
  EXPECT_THAT(refusal([](ModelConfig& m) { m.head_dim = 96; }), HasSubstr("head_dim is 96"));
  EXPECT_THAT(refusal([](ModelConfig& m) { m.num_kv_heads = 1; }),
              HasSubstr("num_heads / num_kv_heads is 32"));
  EXPECT_EQ(refusal([](ModelConfig& m) { m.num_kv_heads = 2; }), "");
  EXPECT_THAT(refusal([](ModelConfig& m) { m.hidden_size = 4098; }),
              HasSubstr("hidden_size is 4098"));
  EXPECT_THAT(refusal([](ModelConfig& m) { m.intermediate_size = 14337; }),
              HasSubstr("intermediate_size is 14337"));
  EXPECT_THAT(refusal([](ModelConfig& m) { m.vocab_size = (1 << 19) + 1; }),
              HasSubstr("vocab_size is 524289"));
}

// A model of one small layer, whose KV of all of a device's memory is more rows than the kernels
// tell apart.
TEST(DeviceSetupTest, PagesAreWhatKernelsCanAddress) {
  for (const int page_size : {16, 32, 64}) {
    for (const int heads : {1, 3, 8, 32}) {
      const int64_t pages = MostPages(Device::kCuda, page_size, heads);
      EXPECT_LE(pages * page_size * heads, kKvRowMask);
      EXPECT_GT((pages + 1) * page_size * heads, kKvRowMask);
      EXPECT_GT(MostPages(Device::kCpu, page_size, heads), pages);
    }
    const int64_t slots = int64_t{MostPages(Device::kCpu, page_size, 1)} * page_size;
    EXPECT_LE(slots, std::numeric_limits<int32_t>::max());
  }
}

TEST(DeviceSetupTest, OnlyAnUnaskedForDeviceFallsBack) {
  ModelConfig model = Llama8B();
  model.head_dim = 16;
  EngineConfig config;
  config.num_threads = 1;
  const auto fallen_back = OpenContext(config, model, DType::kBF16);
  ASSERT_TRUE(fallen_back.ok()) << fallen_back.status();
  EXPECT_EQ((*fallen_back)->device(), Device::kCpu);

  config.device = Device::kCuda;
  EXPECT_EQ(OpenContext(config, model, DType::kBF16).status().code(),
            absl::StatusCode::kUnimplemented);
  config.gpu = 1023;
  EXPECT_EQ(OpenContext(config, Llama8B(), DType::kBF16).status().code(),
            absl::StatusCode::kUnavailable);
  config.device = Device::kCpu;
  EXPECT_TRUE(OpenContext(config, Llama8B(), DType::kBF16).ok());
}

}  // namespace
}  // namespace espalier
