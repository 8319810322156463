// libFuzzer target of the safetensors reader: whatever it accepts lies inside the file.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "format/safetensors.h"
#include "tests/fuzz/cpu_budget.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace caravan;
  const CpuBudget budget(size);
  try {
    const SafetensorsHeader header =
        parse_safetensors({reinterpret_cast<const std::byte*>(data), size}, "FILE");
    uint64_t end = header.data_start;
    for (const SafetensorsEntry& entry : header.entries) {
      const auto num_bytes =
          static_cast<uint64_t>(entry.shape.num_elements()) * dtype_size(entry.dtype);
      if (entry.offset != end || entry.num_bytes != num_bytes) std::abort();
      end += num_bytes;
    }
    if (end != size) std::abort();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kCorrupt && error.code() != ErrorCode::kUnsupported) {
      std::abort();
    }
    if (std::string_view(error.what()).find('\n') != std::string_view::npos) std::abort();
  }
  return 0;
}
