// The device draws what the CPU sampler draws. Both kernels: clusters of thread blocks, and the one
// of older devices.
#include "kernels/cuda/device_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <sstream>

#include "engine/limits.h"
#include "engine/sampler/row_math.h"
#include "engine/sampler/sampler.h"
#include "gtest/gtest.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/runtime/device_memory.h"
#include "tests/engine/sampler/sampling_reference.h"

namespace espalier {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
static_assert(Limits{}.max_logprobs <= DeviceSampler::kMaxTopLogprobs);

// What one row is asked for, on both devices.
struct Case {
  int row = 0;
  SamplingParams params;
  TokenHistory history;
  std::vector<int32_t> banned;
  std::shared_ptr<const std::vector<uint64_t>> allowed;
  double uniform = 0;
  bool uniform_is_special = false;  // where rounding is likely to decide
  int top_logprobs = -1;
  std::optional<int32_t> score_token;

  std::string Describe() const {
    std::ostringstream out;
    out << "row " << row << ", temperature " << params.temperature << ", top_k " << params.top_k
        << ", top_p " << params.top_p << ", min_p " << params.min_p << ", penalties "
        << params.repetition_penalty << " " << params.frequency_penalty << " "
        << params.presence_penalty << ", " << params.logit_bias.size() << " biases, "
        << banned.size() << " banned, " << (allowed ? "a mask, " : "") << history.prompts().size()
        << " prompts, " << history.generated().size() << " generated, top " << top_logprobs
        << ", score " << score_token.value_or(-1);
    out.precision(17);
    out << ", uniform " << uniform;
    return out.str();
  }
};

Sample OnCpu(Sampler& sampler, std::span<const float> logits, const Case& c) {
  if (c.score_token) return sampler.Score(logits, *c.score_token, c.top_logprobs);
  return sampler.Run(
      {.logits = logits,
       .params = &c.params,
       .history = &c.history,
       .banned = c.banned,
       .allowed = c.allowed ? std::span<const uint64_t>(*c.allowed) : std::span<const uint64_t>(),
       .uniform = c.uniform,
       .top_logprobs = c.top_logprobs});
}

DeviceSampleRequest ForDevice(const Case& c) {
  DeviceSampleRequest request;
  request.logits_row = c.row;
  request.score_token = c.score_token.value_or(-1);
  request.temperature = c.params.temperature;
  request.min_p = c.params.min_p;
  request.top_k = c.params.top_k;
  request.top_p = c.params.top_p;
  request.repetition_penalty = c.params.repetition_penalty;
  request.frequency_penalty = c.params.frequency_penalty;
  request.presence_penalty = c.params.presence_penalty;
  request.uniform = c.uniform;
  request.top_logprobs = c.top_logprobs;
  request.logit_bias = c.params.logit_bias;
  request.banned = c.banned;
  if (c.allowed) request.allowed = *c.allowed;
  for (const auto& prompt : c.history.prompts()) request.prompt_tokens.push_back(*prompt);
  request.generated = c.history.generated();
  return request;
}

class Random {
 public:
  explicit Random(uint64_t seed) : rng_(seed) {}
  bool Coin() { return rng_() % 2 == 0; }
  int Below(int limit) { return static_cast<int>(rng_() % limit); }
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return values.begin()[rng_() % values.size()];
  }
  double Uniform() { return static_cast<double>(rng_() >> 11) * 0x1p-53; }
  float Normal() { return normal_(rng_); }
  std::mt19937_64& engine() { return rng_; }

 private:
  std::mt19937_64 rng_;
  std::normal_distribution<float> normal_;
};

// Rows of every kind: flat and steep, with ties, masked tokens, and what is not finite.
std::vector<float> RandomRows(int rows, int vocab, Random& random) {
  std::vector<float> logits(static_cast<size_t>(rows) * vocab);
  for (int row = 0; row < rows; ++row) {
    const std::span<float> l(&logits[static_cast<size_t>(row) * vocab], vocab);
    const float spread = random.Pick({0.0f, 0.01f, 1.0f, 3.0f, 8.0f, 1e4f});
    for (float& x : l) x = spread * random.Normal();
    const auto at = [&]() -> float& { return l[random.Below(vocab)]; };
    switch (random.Below(12)) {
      case 0:  // ties
        for (float& x : l) x = std::round(x * 2) / 2;
        break;
      case 1:  // most are masked
        for (float& x : l) x = random.Below(20) == 0 ? x : -kInf;
        break;
      case 2:
        at() = -kInf;
        at() = -0.0f;
        at() = 0.0f;
        break;
      case 3:
        at() = random.Pick({kNan, -kNan, kInf});
        break;
      case 4:
        if (random.Coin()) std::ranges::fill(l, random.Pick({-kInf, 0.0f, 2.5f}));
        break;
      case 5:  // one stands out, its equal beside it
        at() = 30 * spread + 30;
        at() = 30 * spread + 30;
        break;
      default:
        break;
    }
  }
  return logits;
}

int32_t AnyToken(int vocab, Random& random) {
  return random.Coin() ? random.Below(vocab) : random.Below(std::min(vocab, 40));
}

TokenHistory RandomHistory(int vocab, Random& random) {
  TokenHistory history;
  for (int prompt = random.Below(4); prompt > 0; --prompt) {
    std::vector<int32_t> tokens(random.Pick({0, 1, 30, 3000}));
    for (int32_t& token : tokens) token = AnyToken(vocab, random);
    history.AddPrompt(tokens);
  }
  for (int n = random.Pick({0, 1, 5, 200}); n > 0; --n) {
    history.AddGenerated(AnyToken(vocab, random));
  }
  return history;
}

// As clients mix them, to the validator's limits.
Case RandomCase(int rows, int vocab, Random& random) {
  Case c;
  c.row = random.Below(rows);
  SamplingParams& p = c.params;
  p.temperature = random.Pick({0.0f, 9e-6f, 1e-5f, 0.05f, 0.7f, 1.0f, 1.0f, 3.0f, 100.0f});
  if (random.Coin()) p.top_k = random.Pick({-1, 1, 2, 40, 1 + random.Below(vocab + 10)});
  if (random.Coin()) p.top_p = random.Pick({1e-6f, 0.1f, 0.5f, 0.9f, 0.99f, 0.9999999f});
  if (random.Below(3) == 0) p.min_p = random.Pick({1e-6f, 0.001f, 0.05f, 0.5f, 1.0f});
  if (random.Below(3) == 0) p.repetition_penalty = random.Pick({0.01f, 0.8f, 1.2f, 10.0f});
  if (random.Below(3) == 0) p.frequency_penalty = random.Pick({-2.0f, -0.3f, 0.1f, 2.0f});
  if (random.Below(3) == 0) p.presence_penalty = random.Pick({-2.0f, 0.7f, 2.0f});
  if (random.Below(3) == 0) {  // tokens may come twice: the order of addition counts
    for (int i = random.Pick({1, 4, 300, Limits{}.max_logit_bias}); i > 0; --i) {
      p.logit_bias.emplace_back(AnyToken(vocab, random),
                                random.Pick({-100.0f, -1.1f, 0.3f, 2.5f, 100.0f}));
    }
  }
  if (random.Below(3) == 0) {
    for (int i = random.Pick({1, 3, 66}); i > 0; --i) c.banned.push_back(AnyToken(vocab, random));
  } else if (random.Below(30) == 0) {
    c.banned.resize(vocab);
    std::iota(c.banned.begin(), c.banned.end(), 0);
  }
  if (random.Below(4) == 0) {
    // Few, about half, or nearly all tokens.
    const int share = random.Pick({1, 32, 63});
    auto mask = std::make_shared<std::vector<uint64_t>>((vocab + 63) / 64);
    for (int token = 0; token < vocab; ++token) {
      const bool bit = random.Below(64) < share;
      (*mask)[token / 64] |= uint64_t{bit} << (token % 64);
    }
    c.allowed = std::move(mask);
  }
  c.history = RandomHistory(vocab, random);
  c.uniform_is_special = random.Below(10) == 0;
  c.uniform = c.uniform_is_special ? random.Pick({0.0, 0.5, 1 - 0x1p-53}) : random.Uniform();
  c.top_logprobs = random.Pick({-1, -1, 0, 1, Limits{}.max_logprobs});
  if (random.Below(12) == 0) c.score_token = AnyToken(vocab, random);
  return c;
}

std::vector<Case> RandomCases(int count, int rows, int vocab, Random& random) {
  std::vector<Case> cases;
  for (int i = 0; i < count; ++i) cases.push_back(RandomCase(rows, vocab, random));
  return cases;
}

bool IsClose(float a, float b) {
  return a == b || std::abs(a - b) <= 1e-5f * std::max(1.0f, std::abs(b));
}

// What differs, or nothing.
std::string Difference(const DeviceSample& device, const Sample& cpu) {
  std::ostringstream out;
  out.precision(9);
  if (device.finite != cpu.finite) out << "finite " << device.finite << ", not " << cpu.finite;
  if (!device.finite || !cpu.finite) return out.str();
  if (device.token != cpu.token) out << "token " << device.token << ", not " << cpu.token << "; ";
  if (!IsClose(device.logprob, cpu.logprob)) {
    out << "logprob " << device.logprob << ", not " << cpu.logprob << "; ";
  }
  if (device.top.size() != cpu.top.size()) {
    out << device.top.size() << " most likely, not " << cpu.top.size();
    return out.str();
  }
  for (size_t i = 0; i < cpu.top.size(); ++i) {
    const auto& [token, logprob] = device.top[i];
    if (token == cpu.top[i].first && IsClose(logprob, cpu.top[i].second)) continue;
    out << "most likely [" << i << "] " << token << " " << logprob << ", not " << cpu.top[i].first
        << " " << cpu.top[i].second << "; ";
  }
  return out.str();
}

// Whether the token is one that rounding of sums in double could choose: the uniform number is in
// its share of the probability, or so near that nothing likely is between. Two equal logits at the
// top and 0.5 are such a place: the tokens between them weigh less than the sum's last bit.
bool IsAtABorder(const DeviceSample& device, Sampler& cpu, std::span<const float> logits,
                 const Case& c) {
  constexpr double kClose = 1e-7;  // of fp32 weights against the reference's
  Sample expected = OnCpu(cpu, logits, c);
  if (!device.finite || !expected.finite || c.score_token || c.params.temperature < 1e-5f) {
    return false;
  }
  expected.token = device.token;
  expected.logprob = static_cast<float>(ReferenceLogSoftmax(logits)[device.token]);
  if (!Difference(device, expected).empty()) return false;
  ReferenceHistory history;
  for (const auto& prompt : c.history.prompts()) {
    history.on_path.insert(prompt->begin(), prompt->end());
  }
  for (const TokenHistory::Count& count : c.history.generated()) {
    history.on_path.insert(count.token);
    history.generated[count.token] = count.times;
  }
  std::vector<int32_t> banned = c.banned;
  for (int32_t token = 0; c.allowed && token < static_cast<int32_t>(logits.size()); ++token) {
    if (((*c.allowed)[token / 64] >> (token % 64) & 1) == 0) banned.push_back(token);
  }
  const std::vector<double> probabilities =
      ReferenceFilter(ReferenceLogits(logits, c.params, history, banned), c.params).probabilities;
  double below = 0;
  for (int32_t token = 0; token < device.token; ++token) below += probabilities[token];
  const double share = probabilities[device.token];
  return share > 0 && below - kClose <= c.uniform && c.uniform <= below + share + kClose;
}

// A copy that outlives the next step.
struct Drawn {
  int32_t token;
  float logprob;
  bool finite;
  std::vector<std::pair<int32_t, float>> top;
  bool operator==(const Drawn& other) const {
    return token == other.token && finite == other.finite && top == other.top &&
           std::memcmp(&logprob, &other.logprob, sizeof(float)) == 0;
  }
};

class DeviceSamplerTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    std::string error;
    ctx_ = Context::Cuda(0, DType::kBF16, 1, &error);
    if (ctx_ == nullptr) GTEST_SKIP() << error;
  }
  void TearDown() override {
    if (ctx_ == nullptr) return;
    const std::optional<std::string> device_error = ctx_->TakeError();
    EXPECT_FALSE(device_error.has_value()) << *device_error;
  }

  std::unique_ptr<DeviceSampler> NewSampler(int vocab, int max_requests) {
    auto sampler = std::make_unique<DeviceSampler>(*ctx_, vocab, max_requests, GetParam());
    EXPECT_TRUE(sampler->ok());
    return sampler;
  }

  DeviceBuffer ToDevice(const std::vector<float>& logits) {
    DeviceBuffer buffer(*ctx_, logits.size() * sizeof(float));
    CopyToDevice(*ctx_, buffer.As<void>(), logits.data(), buffer.bytes());
    return buffer;
  }

  std::vector<Drawn> Finish(DeviceSampler& sampler) {
    sampler.Download();
    Synchronize(*ctx_);
    std::vector<Drawn> drawn;
    for (const DeviceSample& s : sampler.Results()) {
      drawn.push_back({s.token, s.logprob, s.finite, {s.top.begin(), s.top.end()}});
    }
    return drawn;
  }

  static std::vector<DeviceSampleRequest> Requests(const std::vector<Case>& cases) {
    std::vector<DeviceSampleRequest> requests;
    for (const Case& c : cases) requests.push_back(ForDevice(c));
    return requests;
  }

  std::vector<Drawn> Run(DeviceSampler& sampler, const DeviceBuffer& logits,
                         const std::vector<Case>& cases) {
    const std::vector<DeviceSampleRequest> requests = Requests(cases);
    EXPECT_TRUE(sampler.Upload(requests));
    sampler.Run(logits.As<float>(), static_cast<int>(requests.size()));
    return Finish(sampler);
  }

  // Leaves NaN in whatever memory the kernel keeps rows in.
  void Poison(DeviceSampler& sampler, int vocab, int requests) {
    const DeviceBuffer rows = ToDevice(std::vector<float>(vocab, kNan));
    for (const Drawn& drawn : Run(sampler, rows, std::vector<Case>(requests))) {
      ASSERT_FALSE(drawn.finite);
    }
  }

  void ExpectWhatTheCpuDraws(int vocab, int rows, int num_cases, uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "vocab " << vocab << ", seed " << seed);
    Random random(seed);
    const std::vector<float> logits = RandomRows(rows, vocab, random);
    const std::vector<Case> cases = RandomCases(num_cases, rows, vocab, random);
    const auto device = NewSampler(vocab, num_cases);
    Poison(*device, vocab, std::min(num_cases, 300));
    const std::vector<Drawn> drawn = Run(*device, ToDevice(logits), cases);

    Sampler cpu;
    int different = 0;
    int at_a_border = 0;
    int special = 0;
    for (int i = 0; i < num_cases; ++i) {
      const std::span<const float> row(&logits[static_cast<size_t>(cases[i].row) * vocab], vocab);
      const DeviceSample sample{drawn[i].token, drawn[i].logprob, drawn[i].finite, drawn[i].top};
      const std::string difference = Difference(sample, OnCpu(cpu, row, cases[i]));
      if (difference.empty()) continue;
      const bool border = IsAtABorder(sample, cpu, row, cases[i]);
      ++(!border ? different : cases[i].uniform_is_special ? special : at_a_border);
      if (different + at_a_border + special > 5) continue;
      std::printf("  vocab %d, seed %d, case %d%s: %s\n    (%s)\n", vocab, static_cast<int>(seed),
                  i, border ? ", at a border" : "", difference.c_str(),
                  cases[i].Describe().c_str());
    }
    std::printf("vocab %d, seed %d: %d cases, %d differ; at a border %d, of special numbers %d\n",
                vocab, static_cast<int>(seed), num_cases, different, at_a_border, special);
    EXPECT_EQ(different, 0);
    // With AVX2, whose bits the device has, the CPU's weights are the device's; without it a draw
    // may differ where the last bit of a weight decides.
    EXPECT_LE(at_a_border, HasSameWeights() ? 0 : 1 + num_cases / 1000);
    EXPECT_LE(special, num_cases / 100);
  }

  static bool HasSameWeights() {
    return internal::NativeRowKernels().exp_weights != internal::PortableRowKernels().exp_weights;
  }

  std::unique_ptr<Context> ctx_;
};

TEST_P(DeviceSamplerTest, SmallVocabulariesDrawWhatTheCpuDraws) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (int vocab : {1, 3, 257}) ExpectWhatTheCpuDraws(vocab, 200, 1000, seed);
  }
}

TEST_P(DeviceSamplerTest, VocabulariesAroundABlockDrawWhatTheCpuDraws) {
  for (uint64_t seed = 0; seed < 3; ++seed) {
    for (int vocab : {1023, 1024, 1025, 8193}) ExpectWhatTheCpuDraws(vocab, 100, 1000, seed);
  }
}

TEST_P(DeviceSamplerTest, RealVocabulariesDrawWhatTheCpuDraws) {
  for (uint64_t seed = 0; seed < 2; ++seed) {
    ExpectWhatTheCpuDraws(49152, 48, 800, seed);
    ExpectWhatTheCpuDraws(128256, 48, 800, seed);
  }
  ExpectWhatTheCpuDraws(200001, 24, 200, 7);
}

// Few enough for compute-sanitizer.
TEST_P(DeviceSamplerTest, FewCasesOfEverySize) {
  for (int vocab : {3, 257, 1025, 9001}) ExpectWhatTheCpuDraws(vocab, 12, 24, 11);
}

TEST_P(DeviceSamplerTest, ResultsDependNeitherOnTheBatchNorOnTheRun) {
  constexpr int kVocab = 5003;
  constexpr uint64_t kSeed = 21;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const DeviceBuffer logits = ToDevice(RandomRows(50, kVocab, random));
  const std::vector<Case> cases = RandomCases(300, 50, kVocab, random);
  const auto sampler = NewSampler(kVocab, 300);
  const std::vector<Drawn> all = Run(*sampler, logits, cases);
  EXPECT_EQ(Run(*sampler, logits, cases), all);

  std::vector<int> order(cases.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::shuffle(order, random.engine());
  order.resize(77);
  std::vector<Case> some;
  std::vector<Drawn> expected;
  for (int i : order) {
    some.push_back(cases[i]);
    expected.push_back(all[i]);
  }
  EXPECT_EQ(Run(*sampler, logits, some), expected);
  EXPECT_EQ(Run(*NewSampler(kVocab, 77), logits, some), expected);
  EXPECT_TRUE(Run(*sampler, logits, {}).empty());
}

TEST_P(DeviceSamplerTest, AGraphServesOtherRequests) {
  constexpr int kVocab = 3001;
  constexpr int kBucket = 64;
  constexpr uint64_t kSeed = 31;
  SCOPED_TRACE(kSeed);
  Random random(kSeed);
  const DeviceBuffer logits = ToDevice(RandomRows(40, kVocab, random));
  const auto sampler = NewSampler(kVocab, kBucket);
  const auto plain = NewSampler(kVocab, kBucket);
  GraphCache graphs(*ctx_, 4);
  int moved = 0;
  // The first step is not captured, the second is; fewer requests than the graph was made for,
  // none, and lists that make the memory grow.
  for (int requests : {64, 64, 64, 10, 0, 1, 63, 64}) {
    const std::vector<Case> cases = RandomCases(requests, 40, kVocab, random);
    const int before = sampler->generation();
    ASSERT_TRUE(sampler->Upload(Requests(cases)));
    moved += sampler->generation() != before;
    graphs.Run({.rows = 40, .requests = kBucket}, sampler->generation(),
               [&] { sampler->Run(logits.As<float>(), kBucket); });
    EXPECT_EQ(Finish(*sampler), Run(*plain, logits, cases)) << requests << " requests";
  }
  EXPECT_GT(moved, 0);
  EXPECT_GT(graphs.num_graphs(), 0);
}

TEST_P(DeviceSamplerTest, BranchesThatShareAPromptShareItsUpload) {
  constexpr int kVocab = 40000;
  constexpr int kBranches = 256;
  Random random(41);
  const std::vector<float> row = RandomRows(1, kVocab, random);
  Case shared;
  std::vector<int32_t> prompt(20000);
  std::iota(prompt.begin(), prompt.end(), 100);
  shared.history.AddPrompt(prompt);
  shared.params.repetition_penalty = 1.3f;
  shared.params.temperature = 0.9f;
  std::vector<Case> cases(kBranches, shared);  // a fork's history shares its prompts
  for (int i = 0; i < kBranches; ++i) cases[i].uniform = BranchUniform(41, i);
  const auto sampler = NewSampler(kVocab, kBranches);
  const int before = sampler->generation();
  const std::vector<Drawn> drawn = Run(*sampler, ToDevice(row), cases);
  EXPECT_EQ(sampler->generation(), before);  // 20 MB otherwise
  Sampler cpu;
  for (int i = 0; i < kBranches; ++i) EXPECT_EQ(drawn[i].token, OnCpu(cpu, row, cases[i]).token);
}

TEST_P(DeviceSamplerTest, DrawsFollowTheDistribution) {
  constexpr int kVocab = 2000;
  constexpr int kBatch = 1000;
  constexpr int kBatches = 40;
  constexpr uint64_t kSeed = 51;
  Random random(kSeed);
  std::vector<float> logits(kVocab);
  for (float& l : logits) l = 2 * random.Normal();
  const DeviceBuffer on_device = ToDevice(logits);
  const auto sampler = NewSampler(kVocab, kBatch);
  for (int filter = 0; filter < 4; ++filter) {
    SCOPED_TRACE(testing::Message() << "seed " << kSeed << ", filter " << filter);
    Case c;
    c.params.temperature = 0.9f;
    if (filter == 1) c.params.top_k = 30;
    if (filter == 2) c.params.top_p = 0.8f;
    if (filter == 3) c.params.min_p = 0.05f;
    std::vector<int> counts(kVocab);
    for (int batch = 0; batch < kBatches; ++batch) {
      std::vector<Case> cases(kBatch, c);
      for (int i = 0; i < kBatch; ++i) {
        cases[i].uniform = BranchUniform(BranchSeed(kSeed, filter, i), batch);
      }
      for (const Drawn& drawn : Run(*sampler, on_device, cases)) ++counts[drawn.token];
    }
    const std::vector<double> probabilities =
        ReferenceFilter(ReferenceLogits(logits, c.params, {}, {}), c.params).probabilities;
    double chi_square = 0;
    int bins = 0;
    double rest = 1;  // of the tokens too rare for a bin of their own
    int rest_count = kBatch * kBatches;
    const auto add = [&](double probability, int count) {
      const double expected = probability * kBatch * kBatches;
      chi_square += (count - expected) * (count - expected) / expected;
      ++bins;
    };
    for (int token = 0; token < kVocab; ++token) {
      if (probabilities[token] == 0) {
        EXPECT_EQ(counts[token], 0) << token;
      }
      if (probabilities[token] * kBatch * kBatches < 10) continue;
      add(probabilities[token], counts[token]);
      rest -= probabilities[token];
      rest_count -= counts[token];
    }
    if (rest * kBatch * kBatches > 10) add(rest, rest_count);
    // Wilson and Hilferty's approximation of the 99.99 % point.
    const double k = bins - 1;
    const double limit = k * std::pow(1 - 2 / (9 * k) + 3.719 * std::sqrt(2 / (9 * k)), 3);
    std::printf("filter %d: chi-square %.1f of %d bins, limit %.1f\n", filter, chi_square, bins,
                limit);
    EXPECT_LT(chi_square, limit);
  }
}

std::string KernelName(const testing::TestParamInfo<bool>& portable) {
  return portable.param ? "Portable" : "Clusters";
}
INSTANTIATE_TEST_SUITE_P(Kernels, DeviceSamplerTest, testing::Bool(), KernelName);

}  // namespace
}  // namespace espalier
