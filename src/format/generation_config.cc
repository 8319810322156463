#include "format/generation_config.h"

#include <filesystem>

#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "format/json_fields.h"

namespace caravan {

namespace {

constexpr size_t kMaxBytes = size_t{1} << 20;

struct Range {
  const char* field;
  double low;
  double high;
  bool excludes_low;
  const char* expected;
};

std::optional<double> read_number(const boost::json::object& config, const std::string& path,
                                  const Range& range) {
  const boost::json::value* value = config.if_contains(range.field);
  if (value == nullptr || value->is_null()) return std::nullopt;
  if (value->is_number()) {
    const auto number = value->to_number<double>();
    const bool is_above = range.excludes_low ? number > range.low : number >= range.low;
    if (is_above && number <= range.high) return number;
  }
  log_warning("{}: {}: got {}, expected {}: ignored", path, range.field, json_text(*value),
              range.expected);
  return std::nullopt;
}

}  // namespace

GenerationDefaults load_generation_defaults(const std::string& directory) {
  GenerationDefaults defaults;
  const std::string path = directory + "/generation_config.json";
  std::error_code unreadable;
  if (!std::filesystem::exists(path, unreadable)) return defaults;
  boost::json::value file;
  try {
    file = parse_json_file(path, kMaxBytes);
  } catch (const Error&) {
    return defaults;
  }
  if (!file.is_object()) return defaults;
  const boost::json::object& config = file.get_object();

  const auto read = [&](const Range& range) { return read_number(config, path, range); };
  const auto narrow = [](std::optional<double> number) {
    return number ? std::optional(static_cast<float>(*number)) : std::nullopt;
  };
  defaults.temperature =
      narrow(read({"temperature", 0, 100, false, "a number from 0 (greedy) to 100"}));
  defaults.top_p = narrow(read({"top_p", 0, 1, true, "a number above 0, at most 1"}));
  defaults.min_p = narrow(read({"min_p", 0, 1, false, "a number from 0 to 1"}));
  defaults.repetition_penalty =
      narrow(read({"repetition_penalty", 0, 1e9, true, "a number above 0"}));
  if (const auto top_k = read({"top_k", -1, 1 << 30, false, "a whole number, 0 (all) or more"})) {
    defaults.top_k = *top_k < 0 ? 0 : static_cast<int32_t>(*top_k);
  }
  if (const boost::json::value* samples = config.if_contains("do_sample")) {
    if (samples->is_bool() && !samples->get_bool()) {
      defaults.temperature = 0.0f;
    } else if (samples->is_bool() && !defaults.temperature) {
      defaults.temperature = 1.0f;
    }
  }
  return defaults;
}

}  // namespace caravan
