// libFuzzer target of the Parquet reader: footer, pages, levels, dictionaries, decompression.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "format/parquet.h"
#include "tests/fuzz/cpu_budget.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace caravan;
  const CpuBudget budget(size, 5);
  // A few bytes can stand for a million nulls, which are no defect but take their time.
  constexpr int64_t kMaxRows = 10'000;
  try {
    const ParquetFile file =
        ParquetFile::parse({reinterpret_cast<const std::byte*>(data), size}, "FILE");
    for (size_t i = 0; i < file.columns().size() && i < 4; ++i) {
      if (!file.columns()[i].is_string) continue;
      size_t sum = 0;
      file.read_strings(i, [&](int64_t row, std::optional<std::string_view> value) {
        if (row < 0 || row >= file.num_rows()) std::abort();
        for (const char c : value.value_or("")) sum += static_cast<unsigned char>(c);
        return row < kMaxRows && sum < (size_t{1} << 32);
      });
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorrupt && error.code() != ErrorCode::kUnsupported) {
      std::abort();
    }
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}
