#include "engine/kvcache/kv_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "engine/kvcache/available_memory.h"

namespace espalier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const Context& Ctx() {
  static const Context ctx = Context::Cpu(1, CpuPrecision::kF32);
  return ctx;
}

constexpr KvLayout kLayout = {
    .num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .page_size = 4, .dtype = DType::kBF16};

constexpr KvLayout kE4M3Layout = {
    .num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .page_size = 4, .dtype = DType::kE4M3};

KvScales SomeScales() {
  return {.k = {1, 2, 3, 4, 5, 6}, .v = {0.5f, 0.25f, 0x1p-126f, 0x1p127f, 7, 8}};
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class KvCacheMemoryTest : public ::testing::TestWithParam<KvLayout> {};

INSTANTIATE_TEST_SUITE_P(DTypes, KvCacheMemoryTest, ::testing::Values(kLayout, kE4M3Layout),
                         [](const auto& param) {
                           return std::string(Info(param.param.dtype).name);
                         });

TEST_P(KvCacheMemoryTest, LayersAreDisjointZeroedAndLargeEnough) {
  constexpr int kPages = 5;
  const KvLayout& layout = GetParam();
  const KvScales scales = layout.dtype == DType::kE4M3 ? SomeScales() : KvScales();
  const auto cache = KvCache::Create(Ctx(), layout, kPages, scales);
  ASSERT_TRUE(cache.ok()) << cache.status();
  const size_t buffer_bytes = layout.page_bytes() / (2 * layout.num_layers) * kPages;
  // Marking every byte of each buffer in turn: each must still be zero when its turn comes.
  for (int layer = 0; layer < layout.num_layers; ++layer) {
    const KvLayerView view = (*cache)->layer(layer);
    EXPECT_EQ(view.num_pages, kPages);
    EXPECT_EQ(view.num_kv_heads, layout.num_kv_heads);
    EXPECT_EQ(view.head_dim, layout.head_dim);
    EXPECT_EQ(view.page_size, layout.page_size);
    EXPECT_EQ(view.dtype, layout.dtype);
    EXPECT_EQ(BytesOf(view.dtype, view.Offset(int64_t{kPages} * view.page_size, 0)), buffer_bytes);
    for (void* buffer : {view.k, view.v}) {
      auto* bytes = static_cast<char*>(buffer);
      ASSERT_TRUE(std::all_of(bytes, bytes + buffer_bytes, [](char byte) { return byte == 0; }));
      std::memset(bytes, 0x5a, buffer_bytes);
    }
  }
}

TEST(KvCacheTest, E4M3TakesHalfTheBytesOfSixteenBits) {
  EXPECT_EQ(2 * kE4M3Layout.page_bytes(), kLayout.page_bytes());
}

TEST(KvCacheTest, EveryLayerHasItsOwnScales) {
  const KvScales scales = SomeScales();
  const auto cache = KvCache::Create(Ctx(), kE4M3Layout, 1, scales);
  ASSERT_TRUE(cache.ok()) << cache.status();
  for (int layer = 0; layer < kE4M3Layout.num_layers; ++layer) {
    const KvLayerView view = (*cache)->layer(layer);
    for (int head = 0; head < kE4M3Layout.num_kv_heads; ++head) {
      const int i = layer * kE4M3Layout.num_kv_heads + head;
      EXPECT_EQ(view.k_scale[head], scales.k[i]) << "layer " << layer << " head " << head;
      EXPECT_EQ(view.v_scale[head], scales.v[i]) << "layer " << layer << " head " << head;
    }
  }
  const auto unscaled = KvCache::Create(Ctx(), kLayout, 1);
  ASSERT_TRUE(unscaled.ok()) << unscaled.status();
  EXPECT_EQ((*unscaled)->layer(0).k_scale, nullptr);
  EXPECT_EQ((*unscaled)->layer(0).v_scale, nullptr);
}

TEST(KvCacheTest, RefusesScalesThatScaleNothing) {
  const auto refusal = [](const KvLayout& layout, const KvScales& scales) {
    const absl::Status status = KvCache::Create(Ctx(), layout, 1, scales).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return Message(status);
  };
  EXPECT_THAT(refusal(kE4M3Layout, {}), HasSubstr("0 scales of K, must be 6 for E4M3"));
  EXPECT_THAT(refusal(kE4M3Layout, {.k = SomeScales().k, .v = {1}}),
              HasSubstr("1 scales of V, must be 6"));
  EXPECT_THAT(refusal(kLayout, SomeScales()), HasSubstr("6 scales of K, must be 0 for BF16"));
  for (const float scale : {0.0f, -1.0f, 0x1p-127f, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
    SCOPED_TRACE(scale);
    KvScales scales = SomeScales();
    scales.k[3] = scale;
    EXPECT_THAT(refusal(kE4M3Layout, scales), HasSubstr("scale of K of layer 1, kv head 1 is"));
    scales = SomeScales();
    scales.v[4] = scale;
    EXPECT_THAT(refusal(kE4M3Layout, scales), HasSubstr("scale of V of layer 2, kv head 0 is"));
  }
}

TEST(KvCacheTest, NamesTheBytesThatCannotBeHad) {
  const auto cache = KvCache::Create(Ctx(), kLayout, std::numeric_limits<int>::max());
  ASSERT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
  const int64_t bytes = int64_t{2} * 3 * 2 * 8 * 4 * 2 * std::numeric_limits<int>::max();
  EXPECT_THAT(Message(cache.status()),
              AllOf(HasSubstr(std::to_string(bytes)), HasSubstr("2147483647 pages")));
}

TEST(KvCacheTest, RefusesMoreBytesThanANumberHolds) {
  KvLayout layout = kLayout;
  layout.num_layers = layout.num_kv_heads = layout.head_dim = std::numeric_limits<int>::max();
  const auto cache = KvCache::Create(Ctx(), layout, std::numeric_limits<int>::max());
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(KvCacheTest, RefusesALayoutThatDescribesNoCache) {
  const auto refused = [](KvLayout layout, int num_pages, const std::string& field) {
    const absl::Status status = KvCache::Create(Ctx(), layout, num_pages).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(Message(status), HasSubstr(field));
  };
  KvLayout layout = kLayout;
  layout.num_layers = 0;
  refused(layout, 1, "num_layers");
  layout = kLayout;
  layout.page_size = -1;
  refused(layout, 1, "page_size");
  layout = kLayout;
  layout.dtype = DType::kQ8_0;
  refused(layout, 1, "dtype");
  refused(kLayout, 0, "num_pages");
}

// A folder that stands for the root of a machine's file system.
class AvailableMemoryTest : public ::testing::Test {
 protected:
  AvailableMemoryTest()
      : root_(::testing::TempDir() + "available_memory_" + std::to_string(getpid())) {
    Write("/proc/meminfo", "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 500 kB\n");
  }
  ~AvailableMemoryTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }

  const std::string root_;
};

TEST_F(AvailableMemoryTest, IsTheMachinesWithoutCgroups) {
  EXPECT_EQ(AvailableMemoryBytes(root_), 500 * 1024);
  EXPECT_EQ(AvailableMemoryBytes(root_ + "/nowhere"), std::numeric_limits<int64_t>::max());
  EXPECT_GT(AvailableMemoryBytes(), 0);
}

TEST_F(AvailableMemoryTest, IsBoundedByEveryCgroupAround) {
  Write("/proc/self/cgroup", "0::/outer/inner\n");
  Write("/sys/fs/cgroup/outer/inner/memory.max", "max\n");
  Write("/sys/fs/cgroup/outer/inner/memory.current", "5000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 500 * 1024);
  Write("/sys/fs/cgroup/outer/memory.max", "100000\n");
  Write("/sys/fs/cgroup/outer/memory.current", "70000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 30000);
  Write("/sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 2000\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 32000);
  Write("/sys/fs/cgroup/outer/inner/memory.max", "4000\n");  // over its limit already
  EXPECT_EQ(AvailableMemoryBytes(root_), 0);
}

TEST_F(AvailableMemoryTest, ReadsVersionOneCgroups) {
  Write("/proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/\n0::/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "90000\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "50000\n");
  Write("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100\n");
  EXPECT_EQ(AvailableMemoryBytes(root_), 40100);
}

}  // namespace
}  // namespace espalier
