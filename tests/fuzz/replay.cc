// Runs a fuzz target without libFuzzer: every file of a corpus folder, then mutations of them from
// a fixed seed, until a number of runs or of seconds is reached. Each input ends at an inaccessible
// page, so that one read past its end kills the process in every build.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "tests/model/checkpoint/guarded_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<std::byte>;
using Random = std::mt19937_64;

constexpr uint64_t kSeed = 20240501;
constexpr int64_t kMutations = 100'000;
constexpr std::chrono::seconds kTimeLimit(8);
constexpr size_t kMaxInputBytes = 1 << 16;

std::atomic<int64_t> g_run = 0;

// Says which input it was; the run repeats from the seed.
void ReportCrash(int signal) {
  char text[96];
  const int length =
      std::snprintf(text, sizeof(text), "signal %d at run %lld of seed %llu\n", signal,
                    static_cast<long long>(g_run.load()), static_cast<unsigned long long>(kSeed));
  if (write(STDERR_FILENO, text, static_cast<size_t>(length)) < 0) _exit(1);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

size_t Below(Random& random, size_t limit) {
  return std::uniform_int_distribution<size_t>(0, limit - 1)(random);
}

void OverwriteNumber(Input& input, Random& random) {
  constexpr uint64_t kNumbers[] = {0,
                                   1,
                                   2,
                                   31,
                                   32,
                                   255,
                                   256,
                                   65535,
                                   1 << 20,
                                   0x7fffffff,
                                   0x80000000,
                                   0xffffffff,
                                   uint64_t{1} << 61,
                                   uint64_t{1} << 62,
                                   std::numeric_limits<int64_t>::max(),
                                   std::numeric_limits<uint64_t>::max()};
  const uint64_t number = kNumbers[Below(random, std::size(kNumbers))];
  const size_t width = size_t{1} << Below(random, 4);
  if (input.size() < width) return;
  std::memcpy(input.data() + Below(random, input.size() - width + 1), &number, width);
}

void CopyChunk(Input& input, const Input& from, Random& random) {
  if (from.empty()) return;
  const size_t begin = Below(random, from.size());
  const size_t count = 1 + Below(random, std::min<size_t>(from.size() - begin, 64));
  const Input chunk(from.begin() + begin, from.begin() + begin + count);
  input.insert(input.begin() + Below(random, input.size() + 1), chunk.begin(), chunk.end());
}

void EraseChunk(Input& input, Random& random) {
  if (input.empty()) return;
  const size_t begin = Below(random, input.size());
  const size_t count = 1 + Below(random, std::min<size_t>(input.size() - begin, 64));
  input.erase(input.begin() + begin, input.begin() + begin + count);
}

Input Mutate(const std::vector<Input>& corpus, Random& random) {
  Input input = corpus[Below(random, corpus.size())];
  for (size_t i = 1 + Below(random, 4); i > 0; --i) {
    switch (Below(random, 6)) {
      case 0:
        if (!input.empty()) input[Below(random, input.size())] ^= std::byte(1 << Below(random, 8));
        break;
      case 1:
        if (!input.empty()) input[Below(random, input.size())] = std::byte(Below(random, 256));
        break;
      case 2:
        OverwriteNumber(input, random);
        break;
      case 3:
        CopyChunk(input, corpus[Below(random, corpus.size())], random);
        break;
      case 4:
        EraseChunk(input, random);
        break;
      default:
        input.resize(Below(random, input.size() + 1));
    }
  }
  if (input.size() > kMaxInputBytes) input.resize(kMaxInputBytes);
  return input;
}

void Run(const Input& input) {
  const espalier::GuardedBytes guarded(input);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(guarded.bytes().data()), input.size());
  ++g_run;
}

Input ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto bytes = std::as_bytes(std::span<const char>(text));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER\n", argv[0]);
    return EXIT_FAILURE;
  }
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::ranges::sort(paths);
  if (paths.empty()) {
    std::fprintf(stderr, "no files in %s\n", argv[1]);
    return EXIT_FAILURE;
  }
  for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) {
    std::signal(signal, ReportCrash);
  }
  std::vector<Input> corpus;
  for (const auto& path : paths) corpus.push_back(ReadFile(path));
  for (const Input& input : corpus) Run(input);

  Random random(kSeed);
  const auto stop = std::chrono::steady_clock::now() + kTimeLimit;
  while (g_run < kMutations && std::chrono::steady_clock::now() < stop) {
    Run(Mutate(corpus, random));
  }
  std::printf("%lld runs from %zu files, seed %llu\n", static_cast<long long>(g_run.load()),
              corpus.size(), static_cast<unsigned long long>(kSeed));
  return EXIT_SUCCESS;
}
