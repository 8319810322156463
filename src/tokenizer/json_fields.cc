#include "tokenizer/json_fields.h"

#include <algorithm>

#include "core/error.h"

namespace caravan {

namespace json = boost::json;

const json::object& expect_object(const json::value& value, const std::string& where) {
  CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: got {}, expected an object", where,
                     describe(value));
  return value.get_object();
}

const json::array& expect_array(const json::value& value, const std::string& where) {
  CARAVAN_CHECK_CODE(value.is_array(), kCorrupt, "{}: got {}, expected an array", where,
                     describe(value));
  return value.get_array();
}

std::string_view expect_string(const json::value& value, const std::string& where) {
  CARAVAN_CHECK_CODE(value.is_string(), kCorrupt, "{}: got {}, expected a string", where,
                     describe(value));
  return {value.get_string().data(), value.get_string().size()};
}

bool expect_bool(const json::value& value, const std::string& where) {
  CARAVAN_CHECK_CODE(value.is_bool(), kCorrupt, "{}: got {}, expected true or false", where,
                     describe(value));
  return value.get_bool();
}

int64_t expect_id(const json::value& value, const std::string& where) {
  // Boost.JSON holds an integer as int64 when it fits, else as uint64 or double.
  CARAVAN_CHECK_CODE(value.is_int64() && value.get_int64() >= 0, kCorrupt,
                     "{}: got {}, expected an id, 0 or more", where, describe(value));
  return value.get_int64();
}

const json::value* find_field(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool bool_field(const json::object& object, std::string_view key, bool fallback,
                const std::string& where) {
  const json::value* value = find_field(object, key);
  return value == nullptr ? fallback : expect_bool(*value, fmt::format("{}.{}", where, key));
}

std::string describe(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return value.get_bool() ? "true" : "false";
    case json::kind::int64:
      return fmt::format("the number {}", value.get_int64());
    case json::kind::uint64:
      return fmt::format("the number {}", value.get_uint64());
    case json::kind::double_:
      return fmt::format("the number {}", value.get_double());
    case json::kind::string: {
      const json::string& text = value.get_string();
      return fmt::format("the string \"{}\"", printable({text.data(), text.size()}));
    }
    case json::kind::array:
      return "an array";
    case json::kind::object:
      return "an object";
  }
  return "an unknown value";
}

void check_keys(const json::object& object, std::initializer_list<std::string_view> known,
                const std::string& where) {
  for (const auto& member : object) {
    const std::string_view key(member.key().data(), member.key().size());
    CARAVAN_CHECK_CODE(std::find(known.begin(), known.end(), key) != known.end(), kUnsupported,
                       "{}: the field \"{}\" is not known and might change the token ids", where,
                       printable(key));
  }
}

}  // namespace caravan
