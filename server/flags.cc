#include "server/flags.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/settings.h"

namespace espalier {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfigBytes = 1 << 20;

absl::Status In(std::string_view place, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(std::string(place), ": ", status.message()));
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string content(kMaxConfigBytes + 1, '\0');
  if (file) file.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.is_open() || file.bad()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  content.resize(file.gcount());
  if (content.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": more than ", kMaxConfigBytes, " bytes"));
  }
  return content;
}

absl::StatusOr<std::string> SettingText(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return value.dump();
  return absl::InvalidArgumentError(
      absl::StrCat("is ", value.type_name(), "; a string or a whole number is expected"));
}

}  // namespace

absl::Status ApplyConfigFile(const std::string& path, ServerOptions* options) {
  absl::StatusOr<std::string> content = ReadSmallFile(path);
  if (!content.ok()) return content.status();
  Json root;
  try {
    root = Json::parse(*content, /*cb=*/nullptr, /*allow_exceptions=*/true,
                       /*ignore_comments=*/true);
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  for (const auto& [key, value] : root.items()) {
    const std::string place = absl::StrCat(path, ": ", key);
    // Only the underscored form, so that a key can be written in one way.
    const Setting* setting = key.find('-') == std::string::npos ? FindSetting(key) : nullptr;
    if (setting == nullptr) return In(place, absl::InvalidArgumentError("unknown key"));
    absl::StatusOr<std::string> text = SettingText(value);
    if (!text.ok()) return In(place, text.status());
    if (absl::Status status = setting->set(*text, options); !status.ok()) return In(place, status);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<ServerOptions>> ParseCommandLine(int argc, const char* const* argv) {
  ServerOptions options;
  CLI::App app("Inference server for tree-structured generation with large language models");
  app.set_version_flag("--version", ESPALIER_VERSION);
  std::string config_path;
  app.add_option("--config", config_path, "JSON file of settings: flags' names with underscores")
      ->type_name("FILE");
  app.add_option("--probe", options.probe,
                 "Only ask the server at this address whether it serves: exit status 0 if it does")
      ->type_name("HOST:PORT");
  std::vector<std::pair<const Setting*, std::string>> given;
  for (const Setting& setting : AllSettings()) {
    app.add_option_function<std::string>(
           "--" + setting.name,
           [&given, &setting](const std::string& text) { given.emplace_back(&setting, text); },
           setting.help)
        ->type_name(setting.value)
        ->take_last()
        ->default_str(setting.get(options));
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help_or_version) {
    app.exit(help_or_version);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }

  if (!options.probe.empty()) return options;
  if (!config_path.empty()) {
    if (absl::Status status = ApplyConfigFile(config_path, &options); !status.ok()) return status;
  }
  for (const auto& [setting, text] : given) {
    if (absl::Status status = setting->set(text, &options); !status.ok()) {
      return In("--" + setting->name, status);
    }
  }
  if (options.engine.model_path.empty()) {
    return absl::InvalidArgumentError("--model: not set");
  }
  return options;
}

}  // namespace espalier
