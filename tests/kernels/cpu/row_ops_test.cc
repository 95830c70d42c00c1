#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/core/fp8.h"
#include "kernels/core/half.h"
#include "kernels/ops.h"
#include "tests/support/random_weights.h"

namespace espalier {
namespace {

using testing::RandomFloats;
using testing::RandomMatrix;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class RowOpsTest : public ::testing::TestWithParam<std::tuple<CpuIsa, int>> {
 protected:
  const Context ctx_ =
      Context::Cpu(std::get<1>(GetParam()), CpuPrecision::kF32, std::get<0>(GetParam()));
};

TEST_P(RowOpsTest, EmbeddingReadsRowsOfEveryType) {
  std::mt19937 rng(1);
  for (DType dtype : testing::kAllDTypes) {
    SCOPED_TRACE(Info(dtype).name);
    const RandomMatrix table(dtype, 50, 256, rng);
    std::vector<int32_t> ids(100);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 50);
    std::vector<float> out(100 * 256, kNaN);
    kernels::Embedding(
        ctx_, {.table = table.view, .token_ids = ids.data(), .rows = 100, .out = out.data()});
    for (int r = 0; r < 100; ++r) {
      for (int i = 0; i < 256; ++i) {
        ASSERT_EQ(out[r * 256 + i], table.values[ids[r] * 256 + i]) << r << " " << i;
      }
    }
  }
}

TEST_P(RowOpsTest, RmsNormEqualsDoublePrecision) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    const int rows = 1 + static_cast<int>(rng() % 60);
    const int hidden = 1 + static_cast<int>(rng() % 700);
    const float eps = 1e-5f;
    std::vector<float> x = RandomFloats(rows * hidden, rng, 3.0f);
    const std::vector<float> before = x;
    const std::vector<float> residual = RandomFloats(rows * hidden, rng);
    const std::vector<float> weight = RandomFloats(hidden, rng);
    const bool add = seed % 2 == 1;
    std::vector<float> out(rows * hidden, kNaN);
    kernels::RmsNorm(ctx_, {.x = x.data(),
                            .residual = add ? residual.data() : nullptr,
                            .weight = weight.data(),
                            .eps = eps,
                            .rows = rows,
                            .hidden = hidden,
                            .out = out.data()});
    for (int r = 0; r < rows; ++r) {
      double squares = 0;
      for (int i = r * hidden; i < (r + 1) * hidden; ++i) {
        const float sum = add ? before[i] + residual[i] : before[i];
        ASSERT_EQ(x[i], sum);
        squares += static_cast<double>(sum) * sum;
      }
      const double scale = 1 / std::sqrt(squares / hidden + eps);
      for (int i = 0; i < hidden; ++i) {
        const double want = x[r * hidden + i] * scale * weight[i];
        ASSERT_NEAR(out[r * hidden + i], want, 1e-6 + 1e-6 * std::abs(want));
      }
    }
  }
}

TEST_P(RowOpsTest, SwiGluEqualsDoublePrecision) {
  std::mt19937 rng(3);
  const int rows = 37;
  const int intermediate = 531;
  std::vector<float> gate_up = RandomFloats(rows * 2 * intermediate, rng, 8.0f);
  // The exponential's ends.
  const float edges[] = {0.0f,   -0.0f,  80.0f,  100.0f,  1e30f,
                         -80.0f, -86.5f, -88.5f, -104.0f, -1e30f};
  std::copy(std::begin(edges), std::end(edges), gate_up.begin());
  std::vector<float> out(rows * intermediate, kNaN);
  kernels::SwiGlu(
      ctx_,
      {.gate_up = gate_up.data(), .rows = rows, .intermediate = intermediate, .out = out.data()});
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < intermediate; ++i) {
      const double gate = gate_up[r * 2 * intermediate + i];
      const double up = gate_up[r * 2 * intermediate + intermediate + i];
      const double want = gate / (1 + std::exp(-gate)) * up;
      // Where the exponential is clamped the result is below 1e-7 of the gate's scale.
      ASSERT_NEAR(out[r * intermediate + i], want, 4e-7 * std::abs(want) + 1e-6) << "gate " << gate;
    }
  }
}

TEST_P(RowOpsTest, SwiGluPassesNaNOn) {
  std::vector<float> gate_up(64, 1.0f);
  gate_up[5] = kNaN;
  gate_up[32 + 9] = kNaN;
  std::vector<float> out(32);
  kernels::SwiGlu(ctx_,
                  {.gate_up = gate_up.data(), .rows = 1, .intermediate = 32, .out = out.data()});
  for (int i = 0; i < 32; ++i) EXPECT_EQ(std::isnan(out[i]), i == 5 || i == 9) << i;
}

// A KV cache of one layer whose every slot is NaN.
struct PoisonedKv {
  PoisonedKv(DType dtype, int num_pages, int num_kv_heads, int head_dim, int page_size)
      : k(BytesOf(dtype, int64_t{num_pages} * num_kv_heads * page_size * head_dim),
          std::byte{0xff}),
        v(k),
        view{.k = k.data(),
             .v = v.data(),
             .num_pages = num_pages,
             .num_kv_heads = num_kv_heads,
             .head_dim = head_dim,
             .page_size = page_size,
             .dtype = dtype} {
    if (dtype != DType::kE4M3) return;
    for (int head = 0; head < num_kv_heads; ++head) {
      k_scale.push_back(0.011f * static_cast<float>(head + 1));
      v_scale.push_back(0.07f / static_cast<float>(head + 1));
    }
    view.k_scale = k_scale.data();
    view.v_scale = v_scale.data();
  }

  float At(const std::vector<std::byte>& side, int64_t element) const {
    const std::byte* at = side.data() + BytesOf(view.dtype, element);
    if (view.dtype == DType::kF32) {
      float value;
      std::memcpy(&value, at, sizeof(value));
      return value;
    }
    if (view.dtype == DType::kE4M3) {
      const int64_t head = element / view.head_dim / view.page_size % view.num_kv_heads;
      return E4M3ToFloat(static_cast<uint8_t>(*at)) * (&side == &k ? k_scale : v_scale)[head];
    }
    uint16_t bits;
    std::memcpy(&bits, at, sizeof(bits));
    return view.dtype == DType::kF16 ? HalfToFloat(bits) : BFloat16ToFloat(bits);
  }

  std::vector<std::byte> k, v;
  std::vector<float> k_scale, v_scale;
  KvLayerView view;
};

double StorageError(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return 0x1p-11;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kE4M3:
      return 0x1p-4;
    default:
      return 0;
  }
}

// Of types whose subnormals are met.
double SubnormalStep(DType dtype) { return dtype == DType::kE4M3 ? 0x1p-9 : 0; }

class RopeTest : public RowOpsTest {
 protected:
  struct Input {
    Input(int num_rows, int heads, const PoisonedKv& kv, std::mt19937& rng)
        : rows(num_rows),
          num_heads(heads),
          head_dim(kv.view.head_dim),
          q_width(num_heads * head_dim),
          kv_width(kv.view.num_kv_heads * head_dim),
          qkv(RandomFloats(rows * (q_width + 2 * kv_width), rng)),
          q(rows * q_width, kNaN),
          positions(rows),
          slots(rows),
          inv_freq(head_dim / 2),
          row_bad(rows) {
      std::vector<int64_t> free(int64_t{kv.view.num_pages} * kv.view.page_size);
      for (size_t i = 0; i < free.size(); ++i) free[i] = static_cast<int64_t>(i);
      std::shuffle(free.begin(), free.end(), rng);
      for (int r = 0; r < rows; ++r) {
        positions[r] = static_cast<int32_t>(rng() % 4000);
        slots[r] = r % 5 == 3 ? -1 : free[r];
      }
      for (int i = 0; i < head_dim / 2; ++i) {
        inv_freq[i] = static_cast<float>(std::pow(10000.0, -2.0 * i / head_dim));
      }
    }
    const float* Q(int row) const { return qkv.data() + row * (q_width + 2 * kv_width); }
    float* K(int row) { return qkv.data() + row * (q_width + 2 * kv_width) + q_width; }
    float* V(int row) { return K(row) + kv_width; }

    int rows, num_heads, head_dim, q_width, kv_width;
    std::vector<float> qkv;  // [rows, q_width + 2 * kv_width]
    std::vector<float> q;    // out
    std::vector<int32_t> positions;
    std::vector<int64_t> slots;
    std::vector<float> inv_freq;
    std::vector<uint8_t> row_bad;
  };

  void Run(Input& input, const PoisonedKv& kv, float magnitude) {
    kernels::RopeStoreKv(ctx_, {.qkv = input.qkv.data(),
                                .q = input.q.data(),
                                .positions = input.positions.data(),
                                .kv_slots = input.slots.data(),
                                .inv_freq = input.inv_freq.data(),
                                .rope_magnitude = magnitude,
                                .rows = input.rows,
                                .num_heads = input.num_heads,
                                .kv = kv.view,
                                .row_bad = input.row_bad.data()});
  }
};

TEST_P(RopeTest, RotatesAndStoresOnlyItsSlots) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3}) {
    for (int head_dim : {8, 18, 64, 128}) {
      SCOPED_TRACE(std::string(Info(dtype).name) + " head_dim " + std::to_string(head_dim));
      std::mt19937 rng(head_dim);
      const int kv_heads = 3;
      PoisonedKv kv(dtype, 6, kv_heads, head_dim, 16);
      Input input(61, 6, kv, rng);
      Input before = input;
      const float magnitude = 1.1f;
      Run(input, kv, magnitude);

      const auto rotated = [&](const float* head, int i, float position) {
        const int half = head_dim / 2;
        // The angle is defined in fp32; what follows is exact.
        const double angle = position * before.inv_freq[i % half];
        const double other = i < half ? -head[i + half] : head[i - half];
        return magnitude * (head[i] * std::cos(angle) + other * std::sin(angle));
      };
      std::vector<bool> written(6 * 16);
      for (int r = 0; r < input.rows; ++r) {
        const auto position = static_cast<float>(input.positions[r]);
        for (int i = 0; i < 6 * head_dim; ++i) {
          const float* head = before.Q(r) + i / head_dim * head_dim;
          ASSERT_NEAR(input.q[r * 6 * head_dim + i], rotated(head, i % head_dim, position), 2e-6);
        }
        EXPECT_EQ(input.row_bad[r], 0);
        if (input.slots[r] < 0) continue;
        written[input.slots[r]] = true;
        for (int h = 0; h < kv_heads; ++h) {
          for (int i = 0; i < head_dim; ++i) {
            const int64_t at = kv.view.Offset(input.slots[r], h) + i;
            const double k = rotated(before.K(r) + h * head_dim, i, position);
            const double v = before.V(r)[h * head_dim + i];
            const double half_step = SubnormalStep(dtype) / 2;
            ASSERT_NEAR(kv.At(kv.k, at), k,
                        2e-6 + half_step * kv.view.KeyScale(h) + StorageError(dtype) * std::abs(k));
            ASSERT_NEAR(
                kv.At(kv.v, at), v,
                1e-7 + half_step * kv.view.ValueScale(h) + StorageError(dtype) * std::abs(v));
          }
        }
      }
      for (int64_t slot = 0; slot < 6 * 16; ++slot) {
        if (written[slot]) continue;
        for (int h = 0; h < kv_heads; ++h) {
          ASSERT_TRUE(std::isnan(kv.At(kv.k, kv.view.Offset(slot, h)))) << slot;
          ASSERT_TRUE(std::isnan(kv.At(kv.v, kv.view.Offset(slot, h) + head_dim - 1))) << slot;
        }
      }
    }
  }
}

TEST_P(RopeTest, StoresNonFiniteAsZeroAndFlagsTheRow) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3}) {
    SCOPED_TRACE(Info(dtype).name);
    std::mt19937 rng(23);
    PoisonedKv kv(dtype, 2, 2, 32, 16);
    Input input(20, 2, kv, rng);
    input.slots = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, -1};
    input.V(4)[40] = kNaN;
    input.V(7)[3] = -kInfinity;
    input.K(9)[50] = kInfinity;
    input.V(19)[0] = kNaN;  // not stored
    Run(input, kv, 1.0f);
    for (int r = 0; r < 20; ++r) EXPECT_EQ(input.row_bad[r], r == 4 || r == 7 || r == 9) << r;
    EXPECT_EQ(kv.At(kv.v, kv.view.Offset(4, 1) + 8), 0.0f);
    EXPECT_EQ(kv.At(kv.v, kv.view.Offset(7, 0) + 3), 0.0f);
    for (int64_t slot = 0; slot < 19; ++slot) {
      for (int h = 0; h < 2; ++h) {
        for (int i = 0; i < 32; ++i) {
          ASSERT_TRUE(std::isfinite(kv.At(kv.k, kv.view.Offset(slot, h) + i)));
          ASSERT_TRUE(std::isfinite(kv.At(kv.v, kv.view.Offset(slot, h) + i)));
        }
      }
    }
  }
}

TEST_P(RopeTest, ClampsWhatTheKvTypeCannotHold) {
  const std::pair<DType, float> largest[] = {{DType::kF16, 65504.0f},
                                             {DType::kBF16, BFloat16ToFloat(0x7f7f)},
                                             {DType::kE4M3, kLargestE4M3 * 0.07f}};
  for (const auto& [dtype, limit] : largest) {
    SCOPED_TRACE(Info(dtype).name);
    std::mt19937 rng(29);
    PoisonedKv kv(dtype, 1, 1, 16, 16);
    Input input(1, 1, kv, rng);
    input.slots = {3};
    input.V(0)[2] = std::numeric_limits<float>::max();
    input.V(0)[15] = -std::numeric_limits<float>::max();
    Run(input, kv, 1.0f);
    EXPECT_EQ(input.row_bad[0], 0);
    EXPECT_EQ(kv.At(kv.v, kv.view.Offset(3, 0) + 2), limit);
    EXPECT_EQ(kv.At(kv.v, kv.view.Offset(3, 0) + 15), -limit);
  }
}

TEST_P(RowOpsTest, GatherRowsCopiesInOrder) {
  std::mt19937 rng(31);
  const std::vector<float> x = RandomFloats(9 * 5, rng);
  const int32_t indices[] = {8, 0, 3, 3};
  std::vector<float> out(4 * 5, kNaN);
  kernels::GatherRows(ctx_,
                      {.x = x.data(), .indices = indices, .rows = 4, .cols = 5, .out = out.data()});
  for (int r = 0; r < 4; ++r) {
    for (int i = 0; i < 5; ++i) EXPECT_EQ(out[r * 5 + i], x[indices[r] * 5 + i]);
  }
}

TEST_P(RowOpsTest, CopySlotsMovesAllHeadsAndNothingElse) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3}) {
    SCOPED_TRACE(Info(dtype).name);
    std::mt19937 rng(37);
    PoisonedKv kv(dtype, 3, 2, 8, 16);
    for (std::byte& b : kv.k) b = static_cast<std::byte>(rng());
    for (std::byte& b : kv.v) b = static_cast<std::byte>(rng());
    const PoisonedKv before = kv;
    kv.view.k = kv.k.data();
    kv.view.v = kv.v.data();
    const int64_t from[] = {5, 47, 16};
    const int64_t to[] = {33, 0, 15};
    kernels::CopySlots(ctx_, {.kv = kv.view, .from = from, .to = to, .count = 3});
    for (int64_t slot = 0; slot < 48; ++slot) {
      const int64_t* copied = std::find(std::begin(to), std::end(to), slot);
      const int64_t source = copied == std::end(to) ? slot : from[copied - to];
      for (int h = 0; h < 2; ++h) {
        const size_t bytes = BytesOf(dtype, 8);
        const size_t got = BytesOf(dtype, kv.view.Offset(slot, h));
        const size_t want = BytesOf(dtype, kv.view.Offset(source, h));
        ASSERT_EQ(std::memcmp(kv.k.data() + got, before.k.data() + want, bytes), 0) << slot;
        ASSERT_EQ(std::memcmp(kv.v.data() + got, before.v.data() + want, bytes), 0) << slot;
      }
    }
  }
}

TEST_P(RowOpsTest, FlagsRowsThatAreNotFinite) {
  std::mt19937 rng(41);
  std::vector<float> x = RandomFloats(6 * 37, rng);
  x[1 * 37 + 36] = kNaN;
  x[3 * 37] = -kInfinity;
  std::vector<uint8_t> bad = {0, 0, 0, 0, 0, 1};  // the last was flagged before
  kernels::FlagNonFinite(ctx_, {.x = x.data(), .rows = 6, .cols = 37, .row_bad = bad.data()});
  EXPECT_EQ(bad, (std::vector<uint8_t>{0, 1, 0, 1, 0, 1}));
}

const auto kMachines = ::testing::Combine(::testing::ValuesIn(testing::IsasOfThisMachine()),
                                          ::testing::Values(1, 2, 5));
const auto kMachineName = [](const auto& info) {
  return std::string(CpuIsaName(std::get<0>(info.param))) + "_" +
         std::to_string(std::get<1>(info.param));
};
INSTANTIATE_TEST_SUITE_P(Cpu, RowOpsTest, kMachines, kMachineName);
INSTANTIATE_TEST_SUITE_P(Cpu, RopeTest, kMachines, kMachineName);

}  // namespace
}  // namespace espalier
