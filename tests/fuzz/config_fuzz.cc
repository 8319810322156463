// libFuzzer target of config.json and of weight indices. The first byte says which.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/error.h"
#include "core/log.h"
#include "format/model_config.h"
#include "format/model_dir.h"
#include "format/tensor_source.h"
#include "tests/fuzz/cpu_budget.h"

namespace caravan {
namespace {

void require(bool is_true) {
  if (!is_true) std::abort();
}

void fuzz_config(std::string_view text) {
  const ModelConfig config = parse_model_config(text, "DIR/config.json");
  require(config.hidden_size % config.num_heads == 0);
  require(config.num_parameters() > 0);
  require(config.attention_scale(config.num_layers - 1) > 0.0f);
  // What is read can be written and is read back as the same.
  const std::string written = to_hf_config_json(config, config.torch_dtype);
  require(to_hf_config_json(parse_model_config(written, "FILE"), config.torch_dtype) == written);
  parse_model_dir(text, config, "DIR");
}

void fuzz_index(std::string_view text) {
  for (const auto& [name, shard] : parse_weight_index(text, "FILE")) {
    require(!shard.empty() && shard[0] != '.' && shard.find('/') == std::string::npos);
  }
}

}  // namespace
}  // namespace caravan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace caravan;
  const CpuBudget budget(size);
  set_log_level(LogLevel::kOff);
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 4 == 0) {
      fuzz_index(rest);
    } else {
      fuzz_config(rest);
    }
  } catch (const Error& error) {
    require(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kUnsupported);
    require(std::string_view(error.what()).find('\n') == std::string_view::npos);
  }
  return 0;
}
