// Times of the tokenizer: loading, text, and inputs that make a careless one quadratic.
//
//   tokenizer_bench MODEL_DIR [TEXT_FILE...]
//
// One thread; the best and the median of the runs in CPU time, which other processes disturb less
// than wall time; MB = 10^6 bytes.

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/mapped_file.h"
#include "tokenizer/tokenizer.h"

namespace caravan {
namespace {

struct Timing {
  double best_ms;
  double median_ms;
};

Timing time_runs(int num_runs, const std::function<void()>& work) {
  std::vector<double> ms;
  work();
  for (int i = 0; i < num_runs; ++i) {
    const std::clock_t start = std::clock();
    work();
    ms.push_back(static_cast<double>(std::clock() - start) * 1e3 / CLOCKS_PER_SEC);
  }
  std::sort(ms.begin(), ms.end());
  return {ms.front(), ms[ms.size() / 2]};
}

void bench_encode(const Tokenizer& tokenizer, const std::string& name, const std::string& text,
                  int num_runs, Tokenizer::EncodeOptions options) {
  size_t num_tokens = 0;
  const Timing t =
      time_runs(num_runs, [&] { num_tokens = tokenizer.encode(text, options).size(); });
  const double megabytes = static_cast<double>(text.size()) * 1e-6;
  std::printf("encode %-28s %9zu B %8zu tokens  best %8.2f ms %7.1f MB/s  median %8.2f ms\n",
              name.c_str(), text.size(), num_tokens, t.best_ms, megabytes / t.best_ms * 1e3,
              t.median_ms);
}

std::string repeat(const std::string& unit, size_t num_bytes) {
  std::string text;
  while (text.size() < num_bytes) text += unit;
  text.resize(num_bytes);
  return text;
}

void run(int argc, char** argv) {
  constexpr size_t kMiB = size_t{1} << 20;
  const std::string directory = argv[1];
  const Timing load = time_runs(10, [&] { Tokenizer::from_directory(directory); });
  std::printf("load   best %.2f ms  median %.2f ms\n", load.best_ms, load.median_ms);

  const Tokenizer tokenizer = Tokenizer::from_directory(directory);
  for (int i = 2; i < argc; ++i) {
    const std::string path = argv[i];
    const std::string name = path.substr(path.rfind('/') + 1);
    const std::string text = repeat(read_text_file(path, 64 * kMiB), 8 * kMiB);
    bench_encode(tokenizer, name, text, 10, {});
    bench_encode(tokenizer, name + " +special", text, 10, {.parse_special = true});
    const std::vector<int32_t> ids = tokenizer.encode(text);
    const Timing t = time_runs(10, [&] { tokenizer.decode(ids); });
    std::printf("decode %-28s best %.2f ms %.1f MB/s\n", name.c_str(), t.best_ms,
                static_cast<double>(text.size()) * 1e-3 / t.best_ms);
  }
  const std::pair<const char*, std::string> kHardInputs[] = {
      {"1 MiB of \"a\"", repeat("a", kMiB)},
      {"1 MiB of \"ab\"", repeat("ab", kMiB)},
      {"1 MiB of spaces", repeat(" ", kMiB)},
      {"1 MiB of newlines", repeat("\n", kMiB)},
      {"1 MiB of \"!\"", repeat("!", kMiB)},
      {"1 MiB of 0xFF", repeat("\xFF", kMiB)},
      {"1 MiB of U+4E00", repeat("\xE4\xB8\x80", kMiB)},
      {"1 MiB of \" a\"", repeat(" a", kMiB)},
  };
  for (const auto& [name, text] : kHardInputs) bench_encode(tokenizer, name, text, 5, {});
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: tokenizer_bench MODEL_DIR [TEXT_FILE...]\n");
    return 64;
  }
  try {
    caravan::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "tokenizer_bench: error: %s\n", e.what());
    return 1;
  }
  return 0;
}
