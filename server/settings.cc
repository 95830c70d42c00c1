#include "server/settings.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/parse_value.h"
#include "server/wire_guard.h"

namespace espalier {

template <>
struct NamesOf<LogLevel> {
  static constexpr std::array<std::pair<std::string_view, LogLevel>, 4> kAll = {
      {{"debug", LogLevel::kDebug},
       {"info", LogLevel::kInfo},
       {"warning", LogLevel::kWarning},
       {"error", LogLevel::kError}}};
};

namespace {

constexpr int kMaxInt = std::numeric_limits<int>::max();
// A prompt node is a message inside its parent's; the request is around the root, and a node's
// generation, with its map entries, is inside the deepest.
constexpr int kMaxDepth = kMaxWireDepth - 4;

// `field` maps the options, const or not, to the field that the setting is about.
template <class Field, class Parse, class Format>
Setting Make(std::string name, std::string value, std::string help, Field field, Parse parse,
             Format format) {
  return {.name = std::move(name),
          .value = std::move(value),
          .help = std::move(help),
          .set = [field, parse](std::string_view text, ServerOptions* options) -> absl::Status {
            auto parsed = parse(text);
            if (!parsed.ok()) return parsed.status();
            auto& target = field(*options);
            target = static_cast<std::remove_reference_t<decltype(target)>>(*std::move(parsed));
            return absl::OkStatus();
          },
          .get = [field, format](const ServerOptions& options) { return format(field(options)); }};
}

template <class Field>
Setting Text(std::string name, std::string value, std::string help, Field field) {
  return Make(
      std::move(name), std::move(value), std::move(help), field,
      [](std::string_view text) { return absl::StatusOr<std::string>(std::string(text)); },
      [](const std::string& text) { return text; });
}

template <class Field>
Setting Integer(std::string name, std::string help, int64_t min, int64_t max, Field field) {
  return Make(
      std::move(name), "N", std::move(help), field,
      [min, max](std::string_view text) { return ParseInteger(text, min, max); },
      [](int64_t value) { return absl::StrCat(value); });
}

template <class Field>
Setting Size(std::string name, std::string help, size_t min, size_t max, Field field) {
  return Make(
      std::move(name), "SIZE", std::move(help), field,
      [min, max](std::string_view text) -> absl::StatusOr<size_t> {
        absl::StatusOr<size_t> bytes = ParseSize(text);
        if (bytes.ok() && (*bytes < min || *bytes > max)) {
          return absl::InvalidArgumentError(absl::StrCat(
              FormatSize(*bytes), " is not between ", FormatSize(min), " and ", FormatSize(max)));
        }
        return bytes;
      },
      [](size_t bytes) { return FormatSize(bytes); });
}

template <class Field>
Setting Time(std::string name, std::string help, Field field) {
  return Make(std::move(name), "TIME", std::move(help), field, ParseDuration,
              [](absl::Duration duration) { return absl::FormatDuration(duration); });
}

template <class Enum, class Field>
Setting Name(std::string name, std::string help, Field field) {
  std::string values;
  for (const auto& [value, unused] : NamesOf<Enum>::kAll) {
    values.append(values.empty() ? "" : "|").append(value);
  }
  return Make(std::move(name), std::move(values), std::move(help), field, ParseName<Enum>,
              [](Enum value) { return std::string(NameOf(value)); });
}

constexpr std::string_view kAutoDevice = "auto";

absl::StatusOr<std::optional<Device>> ParseDevice(std::string_view text) {
  if (text == kAutoDevice) return std::optional<Device>();
  absl::StatusOr<Device> device = ParseName<Device>(text);
  if (!device.ok()) return UnknownName(text, "auto, cpu, cuda");
  return std::optional<Device>(*device);
}

absl::StatusOr<double> ParseFraction(std::string_view text) {
  double value = 0;
  if (!absl::SimpleAtod({text.data(), text.size()}, &value) || !(value > 0 && value <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("\"",
                                                   absl::string_view(text.data(), text.size()),
                                                   "\" is not a number above 0 and at most 1"));
  }
  return value;
}

absl::StatusOr<bool> ParseSwitch(std::string_view text) {
  if (text != "on" && text != "off") return UnknownName(text, "on, off");
  return text == "on";
}

absl::StatusOr<int64_t> ParsePageSize(std::string_view text) {
  absl::StatusOr<int64_t> size = ParseInteger(text, 1, kMaxInt);
  if (size.ok() && *size != 16 && *size != 32 && *size != 64)
    return UnknownName(text, "16, 32, 64");
  return size;
}

constexpr std::string_view kGrow = "grow";

absl::StatusOr<std::vector<int>> ParseDraftShape(std::string_view text) {
  std::vector<int> levels;
  if (text == kGrow) return levels;
  for (absl::string_view level : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    absl::StatusOr<int64_t> children = ParseInteger({level.data(), level.size()}, 1, 16);
    if (!children.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", level, "\" is neither grow nor children between 1 and 16"));
    }
    levels.push_back(static_cast<int>(*children));
  }
  return levels;
}

std::string FormatDraftShape(const std::vector<int>& levels) {
  return levels.empty() ? std::string(kGrow) : absl::StrJoin(levels, ",");
}

#define FIELD(path) \
  [](auto& options) -> auto& { return options.path; }

std::vector<Setting> MakeSettings() {
  const auto format_int = [](int64_t value) { return absl::StrCat(value); };
  return {
      Text("model", "PATH", "GGUF file, or Hugging Face folder, of the model. Required",
           FIELD(engine.model_path)),
      Text("host", "ADDRESS", "Address to listen on; 0.0.0.0 or [::] for all of the machine's",
           FIELD(rpc.host)),
      Integer("port", "TCP port; 0 takes a free one, which the listening line names", 0, 65535,
              FIELD(rpc.port)),
      Make("device", "auto|cpu|cuda", "Where the model runs", FIELD(engine.device), ParseDevice,
           [](std::optional<Device> device) {
             return std::string(device ? NameOf(*device) : kAutoDevice);
           }),
      Integer("gpu", "Index of the CUDA device", 0, 1023, FIELD(engine.gpu)),
      Make("gpu-memory-fraction", "0..1",
           "Part of the CUDA device's memory that weights, work and KV cache may take",
           FIELD(engine.gpu_memory_fraction), ParseFraction,
           [](double fraction) { return absl::StrCat(fraction); }),
      Name<DeviceDType>("dtype",
                        "Weights and activations on CUDA, and KV unless --kv-dtype says else; "
                        "auto: f16 where the model is stored so, else bf16",
                        FIELD(engine.dtype)),
      Make("cuda-graphs", "on|off", "Replay decode steps as captured CUDA graphs",
           FIELD(engine.cuda_graphs), ParseSwitch,
           [](bool on) { return std::string(on ? "on" : "off"); }),
      Name<AttentionVariant>("attention",
                             "How attention groups KV with branches; the others are DeFT's, for "
                             "comparison",
                             FIELD(engine.attention)),
      Integer("random-weights",
              "Not 0: make weights up from this seed; --model is then a config.json, or a folder "
              "with one",
              0, std::numeric_limits<int64_t>::max(), FIELD(engine.random_weights)),
      Name<CpuPrecision>(
          "cpu-precision",
          "auto: int8 activations for quantised weights and fp16 KV; f32: all fp32, save KV with "
          "--kv-dtype fp8",
          FIELD(engine.cpu_precision)),
      Integer("threads", "CPU threads that run the model; 0: every core", 0, 1024,
              FIELD(engine.num_threads)),
      Name<Sharing>("sharing",
                    "Who shares computed KV. none: nobody; tree: the branches of one request; "
                    "cache: requests too",
                    FIELD(engine.sharing)),
      Name<Speculative>("speculative",
                        "Tokens drafted for a branch and verified in one step. off: none; ngram: "
                        "what followed the same tokens earlier in its tree; draft: trees of "
                        "tokens by --draft-model. The output is the same",
                        FIELD(engine.speculative)),
      Integer("speculative-rows",
              "Rows to which drafts fill a step; 0: 16, on CUDA 64. Steps of more branches draft "
              "nothing",
              0, 256, FIELD(engine.speculative_rows)),
      Text("draft-model", "PATH", "GGUF file, or Hugging Face folder, of the draft model",
           FIELD(engine.draft_model_path)),
      Make("draft-shape", "grow|N,N,...",
           "Trees of drafts. grow: where the draft model is sure; else children of every token, "
           "level by level",
           FIELD(engine.draft_shape.children), ParseDraftShape, FormatDraftShape),
      Integer("draft-depth", "grow: tokens on a path", 1, 16, FIELD(engine.draft_shape.depth)),
      Integer("draft-width", "grow: tokens of a level that have children", 1, 16,
              FIELD(engine.draft_shape.width)),
      Integer("draft-tokens", "grow: tokens that a branch verifies a step", 1, 256,
              FIELD(engine.draft_shape.max_tokens)),
      Make("draft-adaptive", "on|off",
           "on: nothing is drafted that would bring fewer tokens than its time does otherwise",
           FIELD(engine.draft_shape.adaptive), ParseSwitch,
           [](bool on) { return std::string(on ? "on" : "off"); }),
      Size("kv-memory",
           "Memory of the KV cache; 0: on the CPU a quarter of the free memory, at most 4GiB; on "
           "CUDA what --gpu-memory-fraction leaves",
           0, size_t{1} << 46, FIELD(engine.kv_memory_bytes)),
      Name<KvCacheDType>("kv-dtype",
                         "What KV is stored as. auto: as --dtype on CUDA, on the CPU fp16, or fp32 "
                         "with --cpu-precision f32; fp8: E4M3 with a scale a layer and kv head, "
                         "found at start-up: half the bytes of 16 bits, so that twice the tokens "
                         "fit, a little less exact",
                         FIELD(engine.kv_dtype)),
      Make("page-size", "16|32|64", "Tokens a KV page", FIELD(engine.page_size), ParsePageSize,
           format_int),
      Integer("max-batch-tokens",
              "Tokens a step: decoding branches and prefill chunks together; 0: 512, on CUDA 2048",
              0, 1 << 20, FIELD(engine.max_batch_tokens)),
      Integer("max-live-branches", "Branches that decode at once, over all trees", 1, 1 << 20,
              FIELD(engine.max_live_branches)),
      Integer("max-context", "Tokens a path may hold; 0: as many as the model was trained for", 0,
              kMaxInt, FIELD(engine.max_context)),
      Integer("outbox-capacity", "Events that wait for a slow client before its tree pauses", 1,
              1 << 20, FIELD(engine.outbox_capacity)),
      Time("stall-timeout", "How long a tree may be paused so before it ends",
           FIELD(engine.stall_timeout)),

      Integer("max-nodes", "Prompt nodes a tree", 1, 1 << 16, FIELD(engine.limits.max_nodes)),
      Integer("max-depth", "Prompt nodes on a path", 1, kMaxDepth, FIELD(engine.limits.max_depth)),
      Integer("max-width", "Branches that a tree can have alive at once", 1, 1 << 20,
              FIELD(engine.limits.max_width)),
      Integer("max-n", "Largest n of a node's generation", 1, 1 << 20, FIELD(engine.limits.max_n)),
      Integer("max-tree-tokens", "Prompt tokens plus max_tokens, over all branches of a tree", 1,
              int64_t{1} << 40, FIELD(engine.limits.max_tree_tokens)),
      Integer("max-logprobs", "Largest logprobs of a generation", 0, 1024,
              FIELD(engine.limits.max_logprobs)),
      Integer("max-stop-strings", "Stop strings a generation", 0, 1 << 10,
              FIELD(engine.limits.max_stop_strings)),
      Integer("max-stop-bytes", "Bytes a stop string", 1, 1 << 16,
              FIELD(engine.limits.max_stop_bytes)),
      Integer("max-stop-token-ids", "Stop token ids a generation", 0, 1 << 16,
              FIELD(engine.limits.max_stop_token_ids)),
      Integer("max-logit-bias", "Entries of a logit_bias", 0, 1 << 17,
              FIELD(engine.limits.max_logit_bias)),
      Size("max-text-bytes", "Bytes a text field", 1, size_t{1} << 30,
           FIELD(engine.limits.max_text_bytes)),
      Integer("max-label-bytes", "Bytes a request_id, cache_salt or node id", 1, 1 << 16,
              FIELD(engine.limits.max_label_bytes)),
      Integer("max-messages", "Chat messages a node", 1, 1 << 16,
              FIELD(engine.limits.max_messages)),
      Integer("max-waiting-trees", "Trees that wait for the engine; more are refused", 1, 1 << 20,
              FIELD(engine.limits.max_waiting_trees)),

      Integer("max-sessions", "Sessions open at once; more are refused", 1, 1 << 20,
              FIELD(engine.limits.max_sessions)),
      Integer("max-session-branches", "Branches a session can have at once", 1, 1 << 20,
              FIELD(engine.limits.session.max_branches)),
      Integer("max-session-tokens", "Tokens of a session's branches, each branch once", 1,
              int64_t{1} << 40, FIELD(engine.limits.session.max_tokens)),
      Integer("max-session-depth", "Branches on a session's path", 1, 1 << 16,
              FIELD(engine.limits.session.max_depth)),
      Integer("max-session-commands", "Commands of a session that wait; more are refused", 1,
              1 << 16, FIELD(engine.limits.session.max_queued_commands)),
      Time("session-idle-timeout", "How long an idle session's KV is kept from eviction",
           FIELD(engine.limits.session_idle_timeout)),

      Size("max-message", "Bytes a message from a client", 1 << 10, size_t{1} << 30,
           FIELD(rpc.max_message_bytes)),
      Size("rpc-memory", "Memory that gRPC may hold for all connections", 16u << 20,
           size_t{1} << 40, FIELD(rpc.memory_bytes)),
      Integer("max-streams-per-connection", "Calls at once on a connection; more wait", 1, 1 << 20,
              FIELD(rpc.max_streams_per_connection)),
      Integer("request-threads", "Threads that tokenize requests; 0: half the cores, at least 2", 0,
              1024, FIELD(rpc.request_threads)),
      Time("drain-timeout", "How long running trees may take to finish after SIGTERM",
           FIELD(drain_timeout)),
      Name<LogLevel>("log-level", "What is logged to stderr", FIELD(log_level)),
  };
}

#undef FIELD

}  // namespace

const std::vector<Setting>& AllSettings() {
  static const auto* const settings = new std::vector<Setting>(MakeSettings());
  return *settings;
}

const Setting* FindSetting(std::string_view name) {
  std::string dashed(name);
  std::replace(dashed.begin(), dashed.end(), '_', '-');
  for (const Setting& setting : AllSettings()) {
    if (setting.name == dashed) return &setting;
  }
  return nullptr;
}

}  // namespace espalier
