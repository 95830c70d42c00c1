#include "model/checkpoint/gguf_checkpoint.h"

#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "model/checkpoint/gguf_config.h"
#include "model/checkpoint/quoted.h"
#include "model/tokenizer/load.h"

namespace espalier {
namespace {

struct Rename {
  std::string_view hugging_face;
  std::string_view gguf;
};

constexpr Rename kTopNames[] = {
    {"model.embed_tokens", "token_embd"},
    {"model.norm", "output_norm"},
    {"lm_head", "output"},
};

constexpr Rename kLayerNames[] = {
    {"input_layernorm", "attn_norm"},    {"self_attn.q_proj", "attn_q"},
    {"self_attn.k_proj", "attn_k"},      {"self_attn.v_proj", "attn_v"},
    {"self_attn.o_proj", "attn_output"}, {"post_attention_layernorm", "ffn_norm"},
    {"mlp.gate_proj", "ffn_gate"},       {"mlp.up_proj", "ffn_up"},
    {"mlp.down_proj", "ffn_down"},
};

// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight". Empty: not a name we know.
std::string GgufName(std::string_view name) {
  constexpr std::string_view kLayers = "model.layers.";
  const size_t suffix_dot = name.rfind('.');
  if (suffix_dot == std::string_view::npos) return "";
  const std::string_view suffix = name.substr(suffix_dot);
  std::string_view stem = name.substr(0, suffix_dot);
  if (!stem.starts_with(kLayers)) {
    for (const Rename& rename : kTopNames) {
      if (stem == rename.hugging_face) return absl::StrCat(ToAbsl(rename.gguf), ToAbsl(suffix));
    }
    return "";
  }
  stem.remove_prefix(kLayers.size());
  const size_t layer_dot = stem.find('.');
  if (layer_dot == std::string_view::npos) return "";
  const std::string_view layer = stem.substr(0, layer_dot);
  const std::string_view part = stem.substr(layer_dot + 1);
  for (const Rename& rename : kLayerNames) {
    if (part == rename.hugging_face) {
      return absl::StrCat("blk.", ToAbsl(layer), ".", ToAbsl(rename.gguf), ToAbsl(suffix));
    }
  }
  return "";
}

// GGUF interleaves the halves of each head (rotated pairs are neighbours); Hugging Face keeps the
// halves apart. Whole rows move, so blocks stay whole.
void CopyRowsInHuggingFaceOrder(const std::byte* from, int64_t heads, int64_t head_dim,
                                size_t row_bytes, std::byte* to) {
  const int64_t half = head_dim / 2;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < head_dim; ++i) {
      const int64_t source = head * head_dim + (i % half) * 2 + i / half;
      const int64_t target = head * head_dim + i;
      std::memcpy(to + target * row_bytes, from + source * row_bytes, row_bytes);
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufCheckpoint>> GgufCheckpoint::Create(
    std::unique_ptr<GgufFile> file) {
  auto config = ReadGgufConfig(*file);
  if (!config.ok()) return config.status();
  return std::unique_ptr<GgufCheckpoint>(new GgufCheckpoint(std::move(file), *std::move(config)));
}

bool GgufCheckpoint::HasTensor(std::string_view name) const {
  return file_->FindTensor(GgufName(name)) != nullptr;
}

absl::StatusOr<ConstMatrix> GgufCheckpoint::Tensor(std::string_view name, int64_t rows,
                                                   int64_t cols) {
  const std::string gguf_name = GgufName(name);
  const ConstMatrix* stored = file_->FindTensor(gguf_name);
  if (stored == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        file_->name(), ": no tensor ", gguf_name.empty() ? "" : gguf_name, " for ", Quoted(name)));
  }
  if (stored->rows != rows || stored->cols != cols) {
    return absl::InvalidArgumentError(absl::StrCat(file_->name(), ": tensor ", gguf_name, " is ",
                                                   stored->rows, " x ", stored->cols, ", not ",
                                                   rows, " x ", cols));
  }
  const bool is_q = gguf_name.ends_with(".attn_q.weight");
  const bool is_k = gguf_name.ends_with(".attn_k.weight");
  if (config_.architecture != "llama" || !(is_q || is_k)) return *stored;

  const int64_t heads = is_q ? config_.num_heads : config_.num_kv_heads;
  ESPALIER_CHECK(rows == heads * config_.head_dim);
  std::unique_ptr<std::byte[]>& copy = reordered_[gguf_name];
  if (copy == nullptr) {
    const size_t row_bytes = BytesOf(stored->dtype, cols);
    copy = std::make_unique_for_overwrite<std::byte[]>(row_bytes * rows);
    CopyRowsInHuggingFaceOrder(static_cast<const std::byte*>(stored->data), heads, config_.head_dim,
                               row_bytes, copy.get());
  }
  return ConstMatrix{copy.get(), stored->dtype, rows, cols};
}

absl::StatusOr<std::unique_ptr<Tokenizer>> GgufCheckpoint::LoadTokenizer() {
  return LoadTokenizerFromGguf(*file_);
}

}  // namespace espalier
