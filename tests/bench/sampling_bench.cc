#include "tests/bench/sampling_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/sampler/sampler.h"
#include "kernels/core/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_sampler.h"
#include "kernels/runtime/device_memory.h"

namespace espalier::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string device = "cuda";
  int vocab = 128256;
  std::vector<int> rows = {1, 16, 64, 256};
  double read_gbps = 3120;  // of an H100 SXM, measured
  int repeats = 200;
  bool portable = false;
  bool json = false;
};

struct Mode {
  const char* name;
  SamplingParams params;
  int top_logprobs = -1;
};

std::vector<Mode> Modes() {
  std::vector<Mode> modes(6);
  modes[0] = {.name = "greedy", .params = {}};
  modes[0].params.temperature = 0;
  modes[1] = {.name = "temperature", .params = {}};
  modes[2] = {.name = "top-k 50, top-p 0.9", .params = {}};
  modes[2].params.top_k = 50;
  modes[2].params.top_p = 0.9f;
  modes[3] = {.name = "top-p 0.9", .params = {}};
  modes[3].params.top_p = 0.9f;
  modes[4] = {.name = "greedy, 20 logprobs", .params = modes[0].params, .top_logprobs = 20};
  modes[5] = {.name = "greedy, penalty on 4000", .params = modes[0].params};
  modes[5].params.repetition_penalty = 1.1f;
  return modes;
}

// Logits as a language model's: a wide body, and a few tokens that hold most of the weight.
std::vector<float> RandomLogits(int64_t count) {
  std::mt19937_64 rng(1);
  std::normal_distribution<float> normal(0, 2.5f);
  std::vector<float> logits(count);
  for (float& l : logits) l = normal(rng);
  return logits;
}

double MedianUs(std::vector<double> us) {
  std::ranges::nth_element(us, us.begin() + us.size() / 2);
  return us[us.size() / 2];
}

double UsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    for (int i = 0; i < 4000; ++i) prompt_.push_back(i * 7 % options.vocab);
    history_.AddPrompt(prompt_);
    max_rows_ = *std::ranges::max_element(options.rows);
    // Row 0's kinds repeat from row kDistinctRows on: making more takes long and changes nothing.
    logits_ = RandomLogits(int64_t{kDistinctRows} * options.vocab);
  }

  // Of one thread, for all rows of a step; timed on a few.
  double CpuUs(const Mode& mode, int rows) {
    const int timed = std::min(rows, kDistinctRows);
    std::vector<double> us;
    for (int repeat = 0; repeat < 5; ++repeat) {
      const auto start = Clock::now();
      for (int row = 0; row < timed; ++row) {
        sampler_.Run({.logits = {&logits_[int64_t{row} * options_.vocab],
                                 static_cast<size_t>(options_.vocab)},
                      .params = &mode.params,
                      .history = &history_,
                      .banned = {},
                      .uniform = BranchUniform(1, row),
                      .top_logprobs = mode.top_logprobs});
      }
      us.push_back(UsSince(start) / timed * rows);
    }
    return MedianUs(us);
  }

  bool OpenDevice() {
    std::string error;
    ctx_ = Context::Cuda(0, DType::kBF16, 1, &error);
    if (ctx_ == nullptr) {
      std::printf("%s\n", error.c_str());
      return false;
    }
    // Twice the largest step: a row is out of the caches when its turn comes again.
    device_rows_ = 2 * std::max(max_rows_, 256);
    device_logits_ = DeviceBuffer(*ctx_, int64_t{device_rows_} * options_.vocab * sizeof(float));
    sampler_on_device_ =
        std::make_unique<DeviceSampler>(*ctx_, options_.vocab, max_rows_, options_.portable);
    if (device_logits_.empty() || !sampler_on_device_->ok()) {
      std::printf("the device lacks the memory\n");
      return false;
    }
    const int64_t part = static_cast<int64_t>(logits_.size());
    for (int row = 0; row < device_rows_; row += kDistinctRows) {
      const int64_t count = std::min<int64_t>(part, int64_t{device_rows_ - row} * options_.vocab);
      CopyToDevice(*ctx_, device_logits_.As<float>() + int64_t{row} * options_.vocab,
                   logits_.data(), count * sizeof(float));
    }
    Synchronize(*ctx_);
    return true;
  }

  // The kernel alone: many runs in a row, none waited for, each on other rows.
  double RunUs(const Mode& mode, int rows) {
    ESPALIER_CHECK(sampler_on_device_->Upload(Requests(mode, rows)));
    std::vector<double> us;
    constexpr int kRunsAtOnce = 20;
    for (int repeat = 0; repeat < std::max(options_.repeats / kRunsAtOnce, 3); ++repeat) {
      Synchronize(*ctx_);
      const auto start = Clock::now();
      for (int i = 0; i < kRunsAtOnce; ++i) sampler_on_device_->Run(NextRows(rows), rows);
      Synchronize(*ctx_);
      us.push_back(UsSince(start) / kRunsAtOnce);
    }
    return MedianUs(us);
  }

  // As an engine sees it: upload, run, download, wait.
  double StepUs(const Mode& mode, int rows) {
    const std::vector<DeviceSampleRequest> requests = Requests(mode, rows);
    std::vector<double> us;
    for (int repeat = 0; repeat < options_.repeats; ++repeat) {
      const auto start = Clock::now();
      ESPALIER_CHECK(sampler_on_device_->Upload(requests));
      sampler_on_device_->Run(NextRows(rows), rows);
      sampler_on_device_->Download();
      Synchronize(*ctx_);
      sampler_on_device_->Results();
      us.push_back(UsSince(start));
    }
    return MedianUs(us);
  }

  const Context& ctx() const { return *ctx_; }

 private:
  static constexpr int kDistinctRows = 16;

  std::vector<DeviceSampleRequest> Requests(const Mode& mode, int rows) const {
    std::vector<DeviceSampleRequest> requests(rows);
    for (int row = 0; row < rows; ++row) {
      DeviceSampleRequest& r = requests[row];
      r.logits_row = row;
      r.temperature = mode.params.temperature;
      r.top_k = mode.params.top_k;
      r.top_p = mode.params.top_p;
      r.repetition_penalty = mode.params.repetition_penalty;
      r.uniform = BranchUniform(1, row);
      r.top_logprobs = mode.top_logprobs;
      r.prompt_tokens = {*history_.prompts()[0]};
    }
    return requests;
  }

  const float* NextRows(int rows) {
    if (next_row_ + rows > device_rows_) next_row_ = 0;
    const float* const at = device_logits_.As<float>() + int64_t{next_row_} * options_.vocab;
    next_row_ += rows;
    return at;
  }

  const Options& options_;
  std::vector<int32_t> prompt_;
  TokenHistory history_;
  std::vector<float> logits_;
  Sampler sampler_;
  int max_rows_ = 0;

  std::unique_ptr<Context> ctx_;
  int device_rows_ = 0;
  int next_row_ = 0;
  DeviceBuffer device_logits_;
  std::unique_ptr<DeviceSampler> sampler_on_device_;
};

void RunSampling(const Options& options) {
  Bench bench(options);
  const bool cuda = options.device == "cuda";
  if (cuda && !bench.OpenDevice()) return;
  const std::string device = cuda ? cuda::DeviceName(bench.ctx()) : "CPU";
  nlohmann::json results = nlohmann::json::array();
  if (!options.json) {
    std::printf("sampling on %s, %d tokens, logits out of cache; roofline at %.0f GB/s\n",
                device.c_str(), options.vocab, options.read_gbps);
    std::printf("%-24s %5s %10s %10s %10s %8s %12s\n", "", "rows", "run us", "step us", "roof us",
                "ratio", "CPU us");
  }
  for (const Mode& mode : Modes()) {
    for (int rows : options.rows) {
      const double bytes = 4.0 * rows * options.vocab;
      const double roofline_us = bytes / options.read_gbps / 1e3;
      const double cpu_us = bench.CpuUs(mode, rows);
      const double run_us = cuda ? bench.RunUs(mode, rows) : 0;
      const double step_us = cuda ? bench.StepUs(mode, rows) : 0;
      if (options.json) {
        results.push_back({{"mode", mode.name},
                           {"rows", rows},
                           {"run_us", run_us},
                           {"step_us", step_us},
                           {"roofline_us", roofline_us},
                           {"cpu_us", cpu_us}});
      } else {
        std::printf("%-24s %5d %10.1f %10.1f %10.1f %8.2f %12.0f\n", mode.name, rows, run_us,
                    step_us, roofline_us, run_us / roofline_us, cpu_us);
      }
    }
  }
  if (options.json) {
    std::printf("%s\n", nlohmann::json({{"device", device},
                                        {"vocab", options.vocab},
                                        {"read_gbps", options.read_gbps},
                                        {"results", results}})
                            .dump(2)
                            .c_str());
  }
}

}  // namespace

void AddSamplingCommand(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("sampling", "Time of a step's sampling");
  command->add_option("--device", options->device, "cuda, with the CPU beside it, or cpu")
      ->check(CLI::IsMember({"cuda", "cpu"}))
      ->capture_default_str();
  command->add_option("--vocab", options->vocab, "tokens")
      ->check(CLI::Range(1, 1 << 19))
      ->capture_default_str();
  command->add_option("--rows", options->rows, "rows a step")
      ->check(CLI::Range(1, 4096))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--read-gbps", options->read_gbps, "the device's measured read bandwidth")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "timed steps of each kind")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_flag("--portable", options->portable, "the kernel of devices before sm_90");
  command->add_flag("--json", options->json, "print JSON");
  command->callback([options] { RunSampling(*options); });
}

}  // namespace espalier::bench
