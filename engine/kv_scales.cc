#include "engine/kv_scales.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/device_setup.h"
#include "engine/executor/executor.h"
#include "kernels/core/check.h"
#include "kernels/core/fp8.h"
#include "kernels/core/half.h"
#include "kernels/runtime/device_memory.h"

namespace espalier {
namespace {

constexpr int kSequenceTokens = 128;
constexpr int kRandomTokens = 256;
constexpr uint64_t kSeed = 1;

// Prose, code, digits and a script of many bytes a character: each has tokens of its own.
constexpr std::string_view kTexts[] = {
    "The gardener tied the young branches to the wall one by one. \"In three years,\" she said, "
    "\"nobody will see the wires any more; they will only see pears.\" Her apprentice wasn't sure, "
    "but he held the ladder and asked how old the tree was.",
    "#include <vector>\n\nint Sum(const std::vector<int>& values) {\n  int sum = 0;\n"
    "  for (int i = 0; i < (int)values.size(); ++i) {\n    sum += values[i];  // may overflow\n"
    "  }\n  return sum;\n}\n",
    "3.14159265358979 | 2026-11-27 08:45:00 | 1,024 x 768 = 786,432 | +49 (30) 901820 | 6.022e23 | "
    "0x7fff | $19.99 | 50%\n",
    "春天，园丁把小树的枝条一根一根地绑在墙上。三年以后，墙上开满了白色的花。",
};

int64_t NumTokens(const std::vector<std::vector<int32_t>>& sequences) {
  int64_t tokens = 0;
  for (const std::vector<int32_t>& sequence : sequences) tokens += std::ssize(sequence);
  return tokens;
}

std::vector<int32_t> DrawTokens(const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens;
  if (const std::optional<int32_t> bos = tokenizer.bos()) tokens.push_back(*bos);
  std::mt19937_64 rng(kSeed);
  for (int i = 0; i < kRandomTokens; ++i) {
    tokens.push_back(static_cast<int32_t>(rng() % tokenizer.vocab_size()));
  }
  return tokens;
}

float ToFloat(DType dtype, const std::byte* data, int64_t index) {
  if (dtype == DType::kF32) return reinterpret_cast<const float*>(data)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[index];
  return dtype == DType::kF16 ? HalfToFloat(bits) : BFloat16ToFloat(bits);
}

// Runs sequences, each alone in a cache of the unscaled type, and keeps what was largest.
class Calibration {
 public:
  static absl::StatusOr<std::unique_ptr<Calibration>> Create(Context* ctx, Llama* model,
                                                             KvLayout layout, int max_rows) {
    layout.dtype = KvDType(*ctx, KvCacheDType::kAuto);
    const int num_pages = (kSequenceTokens + layout.page_size - 1) / layout.page_size;
    absl::StatusOr<std::unique_ptr<KvCache>> kv = KvCache::Create(*ctx, layout, num_pages);
    if (!kv.ok()) return kv.status();
    absl::StatusOr<std::unique_ptr<Executor>> executor = Executor::Create(
        ctx, model, kv->get(),
        {.cuda_graphs = false, .plan_ahead = false, .max_rows = max_rows, .max_logits_rows = 1});
    if (!executor.ok()) return executor.status();
    return std::unique_ptr<Calibration>(
        new Calibration(*ctx, *std::move(kv), *std::move(executor), max_rows));
  }

  absl::Status Run(std::span<const int32_t> tokens) {
    row_bad_.clear();
    for (size_t begin = 0; begin < tokens.size(); begin += max_rows_) {
      const size_t rows = std::min<size_t>(max_rows_, tokens.size() - begin);
      FillBatch(tokens.subspan(begin, rows), static_cast<int>(begin));
      const absl::StatusOr<Executor::Result> result = executor_->Run(batch_);
      if (!result.ok()) return result.status();
      row_bad_.insert(row_bad_.end(), result->row_bad.begin(), result->row_bad.end());
    }
    for (int i = 0; i < kv_->layout().num_layers; ++i) {
      const KvLayerView layer = kv_->layer(i);
      TakeLargest(layer, layer.k, &largest_.k[i * layer.num_kv_heads]);
      TakeLargest(layer, layer.v, &largest_.v[i * layer.num_kv_heads]);
    }
    good_rows_ += std::ranges::count(row_bad_, 0);
    return absl::OkStatus();
  }

  const KvScales& largest() const { return largest_; }
  int64_t good_rows() const { return good_rows_; }

 private:
  Calibration(const Context& ctx, std::unique_ptr<KvCache> kv, std::unique_ptr<Executor> executor,
              int max_rows)
      : ctx_(ctx), kv_(std::move(kv)), executor_(std::move(executor)), max_rows_(max_rows) {
    const KvLayout& layout = kv_->layout();
    pages_.resize(kv_->num_pages());
    std::iota(pages_.begin(), pages_.end(), 0);
    largest_.k.resize(int64_t{layout.num_layers} * layout.num_kv_heads);
    largest_.v.resize(largest_.k.size());
    host_.resize(BytesOf(layout.dtype, kv_->num_pages() * layout.page_elements()));
  }

  // Rows of a sequence, from position `begin` on: position p is in slot p.
  void FillBatch(std::span<const int32_t> tokens, int begin) {
    const int end = begin + static_cast<int>(tokens.size());
    const int page_size = kv_->layout().page_size;
    batch_.Clear();
    batch_.shape.page_size = page_size;
    const int node = batch_.shape.AddNode(
        -1, end, 0, std::span(pages_).first((end + page_size - 1) / page_size));
    for (int position = begin; position < end; ++position) {
      batch_.shape.AddQuery(node, position);
      batch_.token_ids.push_back(tokens[position - begin]);
      batch_.positions.push_back(position);
      batch_.kv_slots.push_back(position);
    }
  }

  // `buffer` is K or V of the layer; `largest` has a number a kv head.
  void TakeLargest(const KvLayerView& layer, const void* buffer, float* largest) {
    CopyToHost(ctx_, host_.data(), buffer, host_.size());
    Synchronize(ctx_);
    for (size_t slot = 0; slot < row_bad_.size(); ++slot) {
      if (row_bad_[slot] != 0) continue;
      for (int head = 0; head < layer.num_kv_heads; ++head) {
        const int64_t begin = layer.Offset(static_cast<int64_t>(slot), head);
        for (int64_t i = begin; i < begin + layer.head_dim; ++i) {
          largest[head] = std::max(largest[head], std::abs(ToFloat(layer.dtype, host_.data(), i)));
        }
      }
    }
  }

  const Context& ctx_;
  const std::unique_ptr<KvCache> kv_;
  const std::unique_ptr<Executor> executor_;
  const int max_rows_;
  std::vector<int32_t> pages_;
  StepBatch batch_;
  std::vector<uint8_t> row_bad_;  // of the sequence
  std::vector<std::byte> host_;   // K or V of a layer
  KvScales largest_;              // magnitudes, in the order of the scales
  int64_t good_rows_ = 0;
};

}  // namespace

std::vector<std::vector<int32_t>> CalibrationSequences(const Tokenizer& tokenizer, int vocab_size,
                                                       int max_context) {
  std::vector<std::vector<int32_t>> samples;
  for (std::string_view text : kTexts) samples.push_back(tokenizer.Encode(text, /*at_root=*/true));
  const ChatMessage message = {.role = "user", .content = std::string(kTexts[0])};
  if (auto chat = EncodeChat(tokenizer, {&message, 1}, /*at_root=*/true,
                             /*add_generation_prompt=*/true)) {
    samples.push_back(*std::move(chat));
  }
  samples.push_back(DrawTokens(tokenizer));

  const int64_t length = std::min(kSequenceTokens, max_context);
  std::vector<std::vector<int32_t>> sequences;
  for (std::vector<int32_t>& sample : samples) {
    // A draft model may know fewer tokens than its tokenizer.
    std::erase_if(sample, [&](int32_t id) { return id >= vocab_size; });
    for (auto begin = sample.begin(); begin != sample.end();) {
      const auto end = begin + std::min<int64_t>(length, sample.end() - begin);
      sequences.emplace_back(begin, end);
      begin = end;
    }
  }
  return sequences;
}

float ScaleFor(float largest) {
  ESPALIER_CHECK(std::isfinite(largest));
  if (largest == 0) return 1.0f;
  // largest = mantissa * 2^exponent, and half of the largest E4M3 is 0.875 * 2^8.
  static_assert(kLargestE4M3 / 2 == 0.875f * 0x1p8f);
  int exponent;
  const float mantissa = std::frexp(std::abs(largest), &exponent);
  const float scale = std::ldexp(1.0f, exponent - 8 + (mantissa > 0.875f ? 1 : 0));
  return std::max(scale, std::numeric_limits<float>::min());
}

absl::StatusOr<KvScales> FindKvScales(Context* ctx, Llama* model, const Tokenizer& tokenizer,
                                      const KvLayout& layout, const CalibrationLimits& limits) {
  if (layout.dtype != DType::kE4M3) return KvScales();
  const int max_rows = std::min(limits.max_rows, kSequenceTokens);
  absl::StatusOr<std::unique_ptr<Calibration>> calibration =
      Calibration::Create(ctx, model, layout, max_rows);
  if (!calibration.ok()) return calibration.status();
  const auto sequences =
      CalibrationSequences(tokenizer, model->config().vocab_size, limits.max_context);
  for (const std::vector<int32_t>& sequence : sequences) {
    if (absl::Status status = (*calibration)->Run(sequence); !status.ok()) return status;
  }
  if ((*calibration)->good_rows() == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_dtype is fp8, and there are no scales to be found: the model gives a value that is not "
        "finite for each of ",
        NumTokens(sequences), " tokens"));
  }
  KvScales scales = (*calibration)->largest();
  std::ranges::transform(scales.k, scales.k.begin(), ScaleFor);
  std::ranges::transform(scales.v, scales.v.begin(), ScaleFor);
  return scales;
}

}  // namespace espalier
