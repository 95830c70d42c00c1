#include "server/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "server/settings.h"

namespace espalier {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class FlagsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            ("espalier_flags_" + std::to_string(getpid()) + "_" + info->name() + ".json");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::string WriteConfig(const std::string& content) {
    std::ofstream(path_, std::ios::binary) << content;
    return path_;
  }

  static absl::StatusOr<std::optional<ServerOptions>> Parse(std::vector<std::string> args) {
    args.insert(args.begin(), "espalier-server");
    std::vector<const char*> argv;
    for (const std::string& arg : args) argv.push_back(arg.c_str());
    return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
  }

  static std::string ErrorOf(const std::vector<std::string>& args) {
    const auto options = Parse(args);
    EXPECT_FALSE(options.ok());
    return std::string(options.status().message());
  }

  std::filesystem::path path_;
};

TEST_F(FlagsTest, OnlyTheModelIsRequired) {
  EXPECT_THAT(ErrorOf({}), HasSubstr("--model"));
  const auto options = Parse({"--model", "m.gguf"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ((*options)->engine.model_path, "m.gguf");
  EXPECT_EQ((*options)->rpc.host, "127.0.0.1");
  EXPECT_EQ((*options)->rpc.port, 50051);
  EXPECT_EQ((*options)->engine.sharing, Sharing::kCache);
}

TEST_F(FlagsTest, FlagWinsOverFileAndFileOverDefault) {
  const std::string config = WriteConfig(R"({
    // comments are fine
    "model": "from_file.gguf", "port": 7, "kv_memory": "512MiB", "stall_timeout": "5s"
  })");
  // In either order of --config and the flag; the last of several.
  for (const auto& args : {std::vector<std::string>{"--port", "8", "--config", config},
                           std::vector<std::string>{"--config", config, "--port=8"},
                           std::vector<std::string>{"--port=9", "--config", config, "--port=8"}}) {
    const auto options = Parse(args);
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_EQ((*options)->rpc.port, 8);
    EXPECT_EQ((*options)->engine.model_path, "from_file.gguf");
    EXPECT_EQ((*options)->engine.kv_memory_bytes, size_t{512} << 20);
    EXPECT_EQ((*options)->engine.stall_timeout, absl::Seconds(5));
    EXPECT_EQ((*options)->engine.page_size, 16);
  }
}

TEST_F(FlagsTest, BadFilesNameTheFileAndTheKey) {
  const struct {
    const char* content;
    const char* expected;
  } cases[] = {
      {R"({"modle": "x"})", "modle: unknown key"},
      {R"({"kv-memory": "1GiB"})", "kv-memory: unknown key"},
      {R"({"kv_memory": "1GB"})", "kv_memory: \"1GB\" is not a size"},
      {R"({"port": 65536})", "port: 65536 is not between 0 and 65535"},
      {R"({"port": 1.5})", "port: is number"},
      {R"({"port": true})", "port: is boolean"},
      {R"({"limits": {"max_nodes": 1}})", "limits: unknown key"},
      {R"({"max_nodes": null})", "max_nodes: is null"},
      {R"({"kv_dtype": "fp16"})", "kv_dtype: \"fp16\" is not one of auto, fp8"},
      {R"(["model"])", "not a JSON object"},
      {R"({"port": 1,})", "parse error"},
      {"", "parse error"},
      {"{\"model\": \"\xff\"}", "parse error"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.content);
    const std::string config = WriteConfig(c.content);
    EXPECT_THAT(ErrorOf({"--model", "m", "--config", config}),
                AllOf(HasSubstr(config), HasSubstr(c.expected)));
  }
}

TEST_F(FlagsTest, MissingAndHugeFilesAreRefused) {
  EXPECT_THAT(ErrorOf({"--config", "/no/such/file.json"}),
              AllOf(HasSubstr("/no/such/file.json"), HasSubstr("No such file")));
  const std::string config = WriteConfig(std::string((1 << 20) + 1, ' '));
  EXPECT_THAT(ErrorOf({"--config", config}), HasSubstr("more than 1048576 bytes"));
}

TEST_F(FlagsTest, BadFlagsAreNamed) {
  EXPECT_THAT(ErrorOf({"--model", "m", "--port", "http"}), HasSubstr("--port: \"http\""));
  EXPECT_THAT(ErrorOf({"--model", "m", "--port", "-1"}), HasSubstr("--port: -1"));
  EXPECT_THAT(ErrorOf({"--model", "m", "--page-size", "17"}),
              AllOf(HasSubstr("--page-size"), HasSubstr("16, 32, 64")));
  EXPECT_THAT(ErrorOf({"--model", "m", "--device", "tpu"}), HasSubstr("auto, cpu, cuda"));
  EXPECT_THAT(ErrorOf({"--model", "m", "--kv-dtype", "e5m2"}),
              AllOf(HasSubstr("--kv-dtype: \"e5m2\""), HasSubstr("auto, fp8")));
  EXPECT_THAT(ErrorOf({"--model", "m", "--gpu-memory-fraction", "1.5"}),
              HasSubstr("--gpu-memory-fraction: \"1.5\""));
  EXPECT_THAT(ErrorOf({"--model", "m", "--no-such-flag", "1"}), HasSubstr("--no-such-flag"));
  EXPECT_THAT(ErrorOf({"--model", "m", "--port"}), HasSubstr("--port"));
  EXPECT_THAT(ErrorOf({"--model", "m", "stray"}), HasSubstr("stray"));
}

TEST_F(FlagsTest, HelpIsNoError) {
  testing::internal::CaptureStdout();
  const auto options = Parse({"--help"});
  const std::string help = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(options.ok());
  EXPECT_FALSE(options->has_value());
  for (const Setting& setting : AllSettings()) EXPECT_THAT(help, HasSubstr("--" + setting.name));
}

// A setting whose `set` went to another's field would leave its own `get` as it was.
TEST_F(FlagsTest, EverySettingSetsItsOwnFieldOnly) {
  for (const Setting& setting : AllSettings()) {
    SCOPED_TRACE(setting.name);
    const ServerOptions defaults;
    int accepted = 0;
    for (const char* candidate : {"7", "32", "16", "64MiB", "7s", "cpu", "cuda", "f32", "f16",
                                  "none", "error", "off", "0.5", "node", "ngram", "fp8"}) {
      ServerOptions options;
      if (!setting.set(candidate, &options).ok()) continue;
      if (setting.get(options) == setting.get(defaults)) continue;
      ++accepted;
      for (const Setting& other : AllSettings()) {
        if (&other == &setting) continue;
        EXPECT_EQ(other.get(options), other.get(defaults)) << other.name << " changed as well";
      }
      // What a setting shows, it reads.
      ServerOptions again;
      ASSERT_TRUE(setting.set(setting.get(options), &again).ok());
      EXPECT_EQ(setting.get(again), setting.get(options));
    }
    EXPECT_GT(accepted, 0) << "no candidate changed it";
  }
}

TEST_F(FlagsTest, NamesAreUnique) {
  std::set<std::string> names;
  for (const Setting& setting : AllSettings()) {
    EXPECT_TRUE(names.insert(setting.name).second) << setting.name;
    EXPECT_EQ(FindSetting(setting.name), &setting);
    std::string key = setting.name;
    std::replace(key.begin(), key.end(), '-', '_');
    EXPECT_EQ(FindSetting(key), &setting);
  }
}

TEST_F(FlagsTest, TheExampleConfigurationsAreValid) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(ESPALIER_SOURCE_DIR "/configs")) {
    if (entry.path().extension() != ".json") continue;
    SCOPED_TRACE(entry.path());
    ServerOptions options;
    const absl::Status status = ApplyConfigFile(entry.path(), &options);
    EXPECT_TRUE(status.ok()) << status;
    ++found;
  }
  EXPECT_GT(found, 0);
}

}  // namespace
}  // namespace espalier
