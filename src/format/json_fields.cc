#include "format/json_fields.h"

#include <algorithm>

#include "core/error.h"
#include "core/json_text.h"

namespace caravan {

namespace {

bool is_short_list(const boost::json::value& value) {
  constexpr size_t kMaxItems = 8;
  return value.is_array() && value.get_array().size() <= kMaxItems &&
         std::none_of(value.get_array().begin(), value.get_array().end(),
                      [](const boost::json::value& item) { return item.is_structured(); });
}

}  // namespace

std::string json_text(const boost::json::value& value) {
  // Other containers are named, not printed: a hostile one may be megabytes long.
  if (value.is_object()) return "an object";
  if (value.is_array() && !is_short_list(value)) return "an array";
  if (value.is_string()) return fmt::format("\"{}\"", printable(value.get_string()));
  return printable(to_json_text(value));
}

const boost::json::value* JsonFields::find(std::string_view field) const {
  const boost::json::value* value = object_.if_contains(field);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void JsonFields::fail(std::string_view field, std::string_view expected) const {
  const boost::json::value* value = object_.if_contains(field);
  CARAVAN_FAIL(kCorrupt, "{}: {}{}: got {}, expected {}", where_, prefix_, printable(field),
               value == nullptr ? "nothing" : json_text(*value), expected);
}

std::optional<int64_t> JsonFields::optional_integer(std::string_view field, int64_t low,
                                                    int64_t high) const {
  const boost::json::value* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (const int64_t* n = value->if_int64(); n != nullptr && *n >= low && *n <= high) return *n;
  fail(field, fmt::format("an integer from {} to {}", low, high));
}

int64_t JsonFields::integer(std::string_view field, int64_t low, int64_t high) const {
  const std::optional<int64_t> n = optional_integer(field, low, high);
  if (!n) fail(field, fmt::format("an integer from {} to {}", low, high));
  return *n;
}

bool JsonFields::boolean(std::string_view field, bool fallback) const {
  return object_.contains(field) ? boolean(field) : fallback;
}

bool JsonFields::boolean(std::string_view field) const {
  const boost::json::value* value = find(field);
  if (value == nullptr || !value->is_bool()) fail(field, "true or false");
  return value->get_bool();
}

std::optional<double> JsonFields::optional_number(std::string_view field) const {
  const boost::json::value* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) fail(field, "a number");
  return value->to_number<double>();
}

std::optional<std::string> JsonFields::optional_string(std::string_view field) const {
  const boost::json::value* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(field, "a string");
  return std::string(value->get_string());
}

std::string JsonFields::string(std::string_view field) const {
  std::optional<std::string> text = optional_string(field);
  if (!text) fail(field, "a string");
  return *std::move(text);
}

const boost::json::object& JsonFields::object(std::string_view field) const {
  const boost::json::value* value = find(field);
  if (value == nullptr || !value->is_object()) fail(field, "an object");
  return value->get_object();
}

}  // namespace caravan
