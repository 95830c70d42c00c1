// The CUDA ops against the CPU's fp32 ops, on inputs rounded to the activation type.
#include "kernels/ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/cuda/graph_cache.h"
#include "kernels/weight_ops.h"
#include "tests/support/cuda_test.h"
#include "tests/support/device_array.h"
#include "tests/support/random_weights.h"

namespace espalier {
namespace {

using testing::DeviceArray;
using testing::RandomFloats;
using testing::RandomMatrix;
using testing::Rounded;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class CudaOpsTest : public testing::CudaTest, public ::testing::WithParamInterface<DType> {
 protected:
  CudaOpsTest() : CudaTest(GetParam()) {}

  // One unit in the last place of the activation type, relative.
  double Ulp() const { return dtype() == DType::kF16 ? 0x1p-10 : 0x1p-7; }
  void ExpectClose(const std::vector<float>& got, const std::vector<float>& want, double relative,
                   double absolute) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], absolute + relative * std::abs(want[i])) << "element " << i;
    }
  }

  void ExpectCopies(DType kv_dtype);

  const Context cpu_ = Context::Cpu(4, CpuPrecision::kF32);
};

TEST_P(CudaOpsTest, Embedding) {
  std::mt19937 rng(1);
  const int vocab = 300, hidden = 200, rows = 77;
  const std::vector<float> table = Rounded(dtype(), RandomFloats(vocab * hidden, rng));
  std::vector<int32_t> ids(rows);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % vocab);
  const DeviceArray device_table(ctx(), dtype(), table);
  const DeviceArray device_ids(ctx(), ids);
  const DeviceArray out(ctx(), rows * hidden * sizeof(float));
  kernels::Embedding(ctx(), {.table = {device_table.data(), dtype(), vocab, hidden},
                             .token_ids = device_ids.As<int32_t>(),
                             .rows = rows,
                             .out = out.As<float>()});
  const std::vector<float> got = out.Floats(DType::kF32);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < hidden; ++i) {
      ASSERT_EQ(got[r * hidden + i], table[ids[r] * hidden + i]) << r << " " << i;
    }
  }
}

TEST_P(CudaOpsTest, RmsNorm) {
  for (uint32_t seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 rng(seed);
    const int rows = 1 + static_cast<int>(rng() % 70);
    const int hidden = 1 + static_cast<int>(rng() % 5000);
    const bool add = seed % 2 == 1;
    std::vector<float> x = RandomFloats(rows * hidden, rng, 3.0f);
    const std::vector<float> residual = Rounded(dtype(), RandomFloats(rows * hidden, rng));
    const std::vector<float> weight = RandomFloats(hidden, rng);
    const DeviceArray device_x(ctx(), x);
    const DeviceArray device_residual(ctx(), dtype(), residual);
    const DeviceArray device_weight(ctx(), weight);
    const DeviceArray out(ctx(), BytesOf(dtype(), rows * hidden));
    kernels::RmsNormParams params{.x = device_x.As<float>(),
                                  .residual = add ? device_residual.data() : nullptr,
                                  .weight = device_weight.As<float>(),
                                  .eps = 1e-5f,
                                  .rows = rows,
                                  .hidden = hidden,
                                  .out = out.data()};
    kernels::RmsNorm(ctx(), params);
    std::vector<float> want(rows * hidden, kNaN);
    params.x = x.data();
    params.residual = add ? residual.data() : nullptr;
    params.weight = weight.data();
    params.out = want.data();
    kernels::RmsNorm(cpu_, params);
    ExpectClose(device_x.Floats(DType::kF32), x, 0, 0);
    ExpectClose(out.Floats(dtype()), want, Ulp(), 1e-6);
  }
}

TEST_P(CudaOpsTest, SwiGlu) {
  std::mt19937 rng(3);
  const int rows = 37, intermediate = 531;
  std::vector<float> gate_up = Rounded(dtype(), RandomFloats(rows * 2 * intermediate, rng, 8.0f));
  const float edges[] = {0.0f, -0.0f, 80.0f, 1000.0f, -80.0f, -1000.0f};
  std::copy(std::begin(edges), std::end(edges), gate_up.begin());
  const DeviceArray device(ctx(), dtype(), gate_up);
  const DeviceArray out(ctx(), BytesOf(dtype(), rows * intermediate));
  kernels::SwiGlu(
      ctx(),
      {.gate_up = device.data(), .rows = rows, .intermediate = intermediate, .out = out.data()});
  std::vector<float> want(rows * intermediate, kNaN);
  kernels::SwiGlu(
      cpu_,
      {.gate_up = gate_up.data(), .rows = rows, .intermediate = intermediate, .out = want.data()});
  ExpectClose(out.Floats(dtype()), want, Ulp(), 1e-4);
}

TEST_P(CudaOpsTest, GatherRowsAndFlags) {
  std::mt19937 rng(5);
  std::vector<float> x = Rounded(dtype(), RandomFloats(9 * 300, rng));
  x[3 * 300 + 299] = kNaN;
  x[7 * 300] = std::numeric_limits<float>::infinity();
  const DeviceArray device(ctx(), dtype(), x);
  const DeviceArray indices(ctx(), std::vector<int32_t>{8, 0, 2, 2});
  const DeviceArray out(ctx(), BytesOf(dtype(), 4 * 300));
  kernels::GatherRows(ctx(), {.x = device.data(),
                              .indices = indices.As<int32_t>(),
                              .rows = 4,
                              .cols = 300,
                              .out = out.data()});
  const std::vector<float> got = out.Floats(dtype());
  const int from[] = {8, 0, 2, 2};
  for (int r = 0; r < 4; ++r) {
    for (int i = 0; i < 300; ++i) ASSERT_EQ(got[r * 300 + i], x[from[r] * 300 + i]);
  }
  const DeviceArray bad(ctx(), std::vector<uint8_t>(9, 0));
  kernels::FlagNonFinite(
      ctx(), {.x = device.data(), .rows = 9, .cols = 300, .row_bad = bad.As<uint8_t>()});
  const std::vector<std::byte> flags = bad.Bytes();
  for (int r = 0; r < 9; ++r) EXPECT_EQ(flags[r], std::byte{r == 3 || r == 7}) << r;
}

// Every shape: rows that are no multiple of a tile, a bias, outputs with a stride, fp32 outputs,
// and neighbours that become one product.
TEST_P(CudaOpsTest, Project) {
  for (const int rows : {1, 2, 7, 16, 50, 129, 300}) {
    for (const int depth : {48, 64, 512, 1024}) {
      SCOPED_TRACE(::testing::Message() << rows << " x " << depth);
      std::mt19937 rng(rows * depth);
      const int widths[] = {192, 64, 64};
      const int total = 320;
      const std::vector<float> x = Rounded(dtype(), RandomFloats(rows * depth, rng));
      const std::vector<float> weight =
          Rounded(dtype(), RandomFloats(total * depth, rng, 1 / std::sqrt(float(depth))));
      const std::vector<float> bias = RandomFloats(total, rng);
      const DeviceArray device_x(ctx(), dtype(), x);
      const DeviceArray device_weight(ctx(), dtype(), weight);
      const DeviceArray device_bias(ctx(), bias);
      const DeviceArray out(ctx(), BytesOf(dtype(), rows * total));
      std::vector<float> want(rows * total, kNaN);
      std::vector<kernels::Projection> on_device, on_cpu;
      for (int i = 0, at = 0; i < 3; at += widths[i++]) {
        on_device.push_back(
            {.weight = {device_weight.As<std::byte>() + BytesOf(dtype(), at * depth), dtype(),
                        widths[i], depth},
             .bias = i == 1 ? nullptr : device_bias.As<float>() + at,
             .out = out.As<std::byte>() + BytesOf(dtype(), at),
             .out_stride = total});
        on_cpu.push_back({.weight = {weight.data() + at * depth, DType::kF32, widths[i], depth},
                          .bias = i == 1 ? nullptr : bias.data() + at,
                          .out = want.data() + at,
                          .out_stride = total});
      }
      kernels::Project(ctx(), {.x = device_x.data(), .projections = on_device, .rows = rows});
      kernels::Project(cpu_, {.x = x.data(), .projections = on_cpu, .rows = rows});
      // The bias is added to what is rounded already.
      ExpectClose(out.Floats(dtype()), want, Ulp(), 4 * Ulp());

      const DeviceArray out_f32(ctx(), rows * total * sizeof(float));
      kernels::MatMul(ctx(), {.x = device_x.data(),
                              .weight = {device_weight.data(), dtype(), total, depth},
                              .bias = nullptr,
                              .rows = rows,
                              .out = out_f32.data(),
                              .out_f32 = true});
      kernels::MatMul(cpu_, {.x = x.data(),
                             .weight = {weight.data(), DType::kF32, total, depth},
                             .bias = nullptr,
                             .rows = rows,
                             .out = want.data()});
      ExpectClose(out_f32.Floats(DType::kF32), want, 1e-5, 2e-5);
    }
  }
}

TEST_P(CudaOpsTest, RopeStoreKv) {
  for (const int head_dim : {64, 128}) {
    for (const auto& [page_size, kv_dtype] :
         {std::pair{16, dtype()}, {32, dtype()}, {64, dtype()}, {16, DType::kE4M3}}) {
      SCOPED_TRACE(::testing::Message()
                   << head_dim << " page " << page_size << " KV " << Info(kv_dtype).name);
      const bool scaled = kv_dtype == DType::kE4M3;
      std::mt19937 rng(head_dim + page_size);
      const int heads = 6, kv_heads = 3, rows = 61;
      const int width = (heads + 2 * kv_heads) * head_dim;
      const int pages = 8;
      std::vector<float> qkv = Rounded(dtype(), RandomFloats(rows * width, rng));
      // Row 4's v, row 9's k.
      qkv[4 * width + (heads + kv_heads) * head_dim + 70] = kNaN;
      qkv[9 * width + heads * head_dim + 5] = std::numeric_limits<float>::infinity();
      // Beyond what E4M3 holds at its scale: row 12's v.
      const std::vector<float> scales = {0.02f, 0.3f, 0.05f, 0.01f, 0.15f, 0.008f};  // K's, V's
      qkv[12 * width + (heads + kv_heads) * head_dim + 3] = 100;
      std::vector<int32_t> positions(rows);
      std::vector<int64_t> free(pages * page_size), slots(rows);
      for (size_t i = 0; i < free.size(); ++i) free[i] = static_cast<int64_t>(i);
      std::shuffle(free.begin(), free.end(), rng);
      for (int r = 0; r < rows; ++r) {
        positions[r] = static_cast<int32_t>(rng() % 100000);
        slots[r] = r % 5 == 3 ? -1 : free[r];
      }
      std::vector<float> inv_freq(head_dim / 2);
      for (int i = 0; i < head_dim / 2; ++i) {
        inv_freq[i] = static_cast<float>(std::pow(500000.0, -2.0 * i / head_dim));
      }
      const int64_t kv_elements = int64_t{pages} * page_size * kv_heads * head_dim;
      const std::vector<float> before(kv_elements, 7.0f);
      const DeviceArray k(ctx(), kv_dtype, before), v(ctx(), kv_dtype, before);
      const DeviceArray device_scales(ctx(), scales);
      const DeviceArray device_qkv(ctx(), dtype(), qkv),
          q(ctx(), BytesOf(dtype(), rows * heads * head_dim));
      const DeviceArray device_positions(ctx(), positions), device_slots(ctx(), slots);
      const DeviceArray device_freq(ctx(), inv_freq);
      const DeviceArray bad(ctx(), std::vector<uint8_t>(rows, 0));
      kernels::RopeStoreKvParams params{.qkv = device_qkv.data(),
                                        .q = q.data(),
                                        .positions = device_positions.As<int32_t>(),
                                        .kv_slots = device_slots.As<int64_t>(),
                                        .inv_freq = device_freq.As<float>(),
                                        .rope_magnitude = 1.1f,
                                        .rows = rows,
                                        .num_heads = heads,
                                        .kv = {.k = k.data(),
                                               .v = v.data(),
                                               .num_pages = pages,
                                               .num_kv_heads = kv_heads,
                                               .head_dim = head_dim,
                                               .page_size = page_size,
                                               .dtype = kv_dtype},
                                        .row_bad = bad.As<uint8_t>()};
      if (scaled) {
        params.kv.k_scale = device_scales.As<float>();
        params.kv.v_scale = params.kv.k_scale + kv_heads;
      }
      kernels::RopeStoreKv(ctx(), params);

      std::vector<float> want_k = before, want_v = before, want_q(rows * heads * head_dim, kNaN);
      std::vector<uint8_t> want_bad(rows, 0);
      params.qkv = qkv.data();
      params.q = want_q.data();
      params.positions = positions.data();
      params.kv_slots = slots.data();
      params.inv_freq = inv_freq.data();
      params.kv.k = want_k.data();
      params.kv.v = want_v.data();
      params.kv.dtype = DType::kF32;
      params.kv.k_scale = params.kv.v_scale = nullptr;
      params.row_bad = want_bad.data();
      kernels::RopeStoreKv(cpu_, params);
      ExpectClose(q.Floats(dtype()), want_q, Ulp(), 2e-3);
      if (scaled) {
        // As stored: what no row has written is still 7.
        for (int64_t i = 0; i < kv_elements; ++i) {
          const int64_t head = i / head_dim / page_size % kv_heads;
          if (want_k[i] != 7.0f) want_k[i] /= scales[head];
          if (want_v[i] != 7.0f) want_v[i] /= scales[kv_heads + head];
          want_v[i] = std::min(want_v[i], 448.0f);
        }
      }
      const double ulp = scaled ? 0x1p-4 : Ulp();
      const double subnormal = scaled ? 0x1p-10 : 0;
      ExpectClose(k.Floats(kv_dtype), want_k, ulp, subnormal + 2e-3 / (scaled ? 0.02 : 1.0));
      ExpectClose(v.Floats(kv_dtype), want_v, ulp, subnormal);
      const std::vector<std::byte> flags = bad.Bytes();
      for (int r = 0; r < rows; ++r) EXPECT_EQ(flags[r], std::byte{want_bad[r]}) << r;
    }
  }
}

TEST_P(CudaOpsTest, CopySlots) {
  for (const DType kv_dtype : {dtype(), DType::kE4M3}) ExpectCopies(kv_dtype);
}

void CudaOpsTest::ExpectCopies(DType kv_dtype) {
  SCOPED_TRACE(Info(kv_dtype).name);
  std::mt19937 rng(37);
  const int pages = 3, heads = 2, dim = 64;
  const int layers = 3;
  const int layer_size = pages * 16 * heads * dim;
  const std::vector<float> before = Rounded(kv_dtype, RandomFloats(layers * layer_size, rng));
  const DeviceArray k(ctx(), kv_dtype, before), v(ctx(), kv_dtype, before);
  const KvLayerView view{.k = k.data(),
                         .v = v.data(),
                         .num_pages = pages,
                         .num_kv_heads = heads,
                         .head_dim = dim,
                         .page_size = 16,
                         .dtype = kv_dtype};
  // The third overwrites what the first has read.
  const std::vector<int64_t> from = {5, 47, 16, 6}, to = {33, 0, 15, 5};
  const DeviceArray device_from(ctx(), from), device_to(ctx(), to);
  kernels::CopySlots(ctx(), {.kv = view,
                             .num_layers = layers,
                             .layer_bytes = static_cast<ptrdiff_t>(BytesOf(kv_dtype, layer_size)),
                             .from = device_from.As<int64_t>(),
                             .to = device_to.As<int64_t>(),
                             .count = 4});
  for (const DeviceArray* side : {&k, &v}) {
    const std::vector<float> got = side->Floats(kv_dtype);
    for (int64_t at = 0; at < layers * 48; ++at) {
      const int64_t slot = at % 48;
      const int64_t layer = at / 48 * layer_size;
      const auto copied = std::find(to.begin(), to.end(), slot);
      const int64_t source = copied == to.end() ? slot : from[copied - to.begin()];
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < dim; ++i) {
          ASSERT_EQ(got[layer + view.Offset(slot, h) + i],
                    before[layer + view.Offset(source, h) + i])
              << slot;
        }
      }
    }
  }
}

TEST_P(CudaOpsTest, ConvertsEveryStoredType) {
  std::mt19937 rng(41);
  for (const DType stored : testing::kAllDTypes) {
    SCOPED_TRACE(Info(stored).name);
    const RandomMatrix matrix(stored, 30, 512, rng);
    std::vector<uint8_t> raw(matrix.bytes.size());
    std::memcpy(raw.data(), matrix.bytes.data(), raw.size());
    const DeviceArray device(ctx(), raw);
    const DeviceArray out(ctx(), BytesOf(dtype(), 30 * 512));
    kernels::ConvertWeights(ctx(), {.from = {device.data(), stored, 30, 512}, .out = out.data()});
    const std::vector<float> want = Rounded(dtype(), matrix.values);
    const std::vector<float> got = out.Floats(dtype());
    for (size_t i = 0; i < want.size(); ++i) {
      if (std::isnan(want[i])) continue;
      ASSERT_EQ(got[i], want[i]) << i;
    }
  }
}

TEST_P(CudaOpsTest, RandomWeightsAreTheCpus) {
  const RandomWeights weights{.seed = 99, .mean = 0.5f, .deviation = 0.02f};
  const int64_t elements = 100'003;
  for (const DType type : {DType::kF32, dtype()}) {
    const DeviceArray out(ctx(), BytesOf(type, elements));
    kernels::FillRandom(
        ctx(), {.weights = weights, .elements = elements, .dtype = type, .out = out.data()});
    std::vector<std::byte> want(BytesOf(type, elements));
    kernels::FillRandom(
        cpu_, {.weights = weights, .elements = elements, .dtype = type, .out = want.data()});
    EXPECT_EQ(out.Bytes(), want);
  }
}

TEST_P(CudaOpsTest, GraphsReplayOnNewInputs) {
  const int rows = 5, hidden = 256;
  std::mt19937 rng(43);
  const DeviceArray table(ctx(), dtype(), RandomFloats(100 * hidden, rng));
  const DeviceArray ids(ctx(), rows * sizeof(int32_t));
  const DeviceArray out(ctx(), rows * hidden * sizeof(float));
  const auto enqueue = [&] {
    kernels::Embedding(ctx(), {.table = {table.data(), dtype(), 100, hidden},
                               .token_ids = ids.As<int32_t>(),
                               .rows = rows,
                               .out = out.As<float>()});
  };
  GraphCache graphs(ctx(), 2);
  const std::vector<float> values = table.Floats(dtype());
  for (int step = 0; step < 6; ++step) {
    SCOPED_TRACE(step);
    std::vector<int32_t> tokens(rows);
    for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % 100);
    CopyToDevice(ctx(), ids.data(), tokens.data(), rows * sizeof(int32_t));
    FillDevice(ctx(), out.data(), 0xff, rows * hidden * sizeof(float));
    graphs.Run({.rows = rows}, /*generation=*/step / 4, enqueue);
    const std::vector<float> got = out.Floats(DType::kF32);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < hidden; ++i) {
        ASSERT_EQ(got[r * hidden + i], values[tokens[r] * hidden + i]);
      }
    }
  }
  EXPECT_EQ(graphs.num_graphs(), 1);
}

TEST_P(CudaOpsTest, FailuresNameTheOp) {
  // No device has so much shared memory, or rows.
  kernels::GatherRows(ctx(),
                      {.x = nullptr, .indices = nullptr, .rows = -1, .cols = 1, .out = nullptr});
  const std::optional<std::string> error = ctx().TakeError();
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->rfind("GatherRows: ", 0), 0u) << *error;
  EXPECT_FALSE(ctx().TakeError().has_value()) << "it is reported once";
}

INSTANTIATE_TEST_SUITE_P(DTypes, CudaOpsTest, ::testing::Values(DType::kBF16, DType::kF16),
                         [](const auto& dtype) { return std::string(Info(dtype.param).name); });

}  // namespace
}  // namespace espalier
