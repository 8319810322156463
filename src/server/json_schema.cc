#include "server/json_schema.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "server/api_error.h"
#include "tokenizer/json_fields.h"

namespace caravan {

namespace json = boost::json;

namespace {

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

const json::value* keyword(const json::object& schema, std::string_view name) {
  return schema.if_contains(name);
}

bool is_whole(double number) { return std::isfinite(number) && std::floor(number) == number; }

bool has_type(const json::value& value, std::string_view type) {
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_bool();
  if (type == "integer") {
    return value.is_int64() || value.is_uint64() ||
           (value.is_double() && is_whole(value.get_double()));
  }
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  if (type == "array") return value.is_array();
  return type == "object" && value.is_object();
}

bool has_schema_type(const json::value& value, const json::object& schema) {
  const json::value* type = keyword(schema, "type");
  if (type == nullptr) return true;
  if (type->is_string()) return has_type(value, view(type->get_string()));
  for (const json::value& each : type->get_array()) {
    if (has_type(value, view(each.get_string()))) return true;
  }
  return false;
}

/// "an integer", or "an integer or null" without the null: clients seldom mean it.
std::string type_words(const json::object& schema) {
  if (const json::value* title = keyword(schema, "title"))
    return json::value_to<std::string>(*title);
  const auto words = [](std::string_view type) {
    const bool has_vowel = type == "integer" || type == "array" || type == "object";
    return fmt::format("{} {}", has_vowel ? "an" : "a", type);
  };
  const json::value* type = keyword(schema, "type");
  if (type == nullptr) return "another value";
  if (type->is_string()) return words(view(type->get_string()));
  std::string all;
  for (const json::value& each : type->get_array()) {
    if (view(each.get_string()) == "null") continue;
    all += (all.empty() ? "" : " or ") + words(view(each.get_string()));
  }
  return all;
}

/// Of an enum, without the null.
std::string choice_words(const json::array& allowed) {
  std::string words;
  for (const json::value& each : allowed) {
    if (!each.is_null()) words += (words.empty() ? "" : ", ") + json::serialize(each);
  }
  return (allowed.size() > 2 ? "one of " : "") + words;
}

[[noreturn]] void refuse(const std::string& path, const std::string& got,
                         const std::string& wanted) {
  throw_bad_request(path, fmt::format("{}: got {}, expected {}",
                                      path.empty() ? "request body" : path, got, wanted));
}

int64_t limit(const json::object& schema, std::string_view name, int64_t fallback) {
  const json::value* value = keyword(schema, name);
  return value == nullptr ? fallback : value->to_number<int64_t>();
}

/// A number of the schema as text: integers exactly.
std::string number_text(const json::value& value) {
  if (value.is_int64()) return fmt::format("{}", value.get_int64());
  return fmt::format("{}", value.to_number<double>());
}

/// An integer beyond int64 is a uint64 or a double to the parser; the double -2^63 may stand for
/// one.
constexpr double kTwoTo63 = 9223372036854775808.0;

/// value < bound, exactly for integers.
bool is_less(const json::value& value, const json::value& bound) {
  if (value.is_int64() && bound.is_int64()) return value.get_int64() < bound.get_int64();
  if (value.is_uint64() && bound.is_int64()) return false;
  if (value.is_double() && bound.is_int64() && value.get_double() <= -kTwoTo63) return true;
  return value.to_number<double>() < bound.to_number<double>();
}
bool is_greater(const json::value& value, const json::value& bound) {
  if (value.is_int64() && bound.is_int64()) return value.get_int64() > bound.get_int64();
  if (value.is_uint64() && bound.is_int64()) return true;
  if (value.is_double() && bound.is_int64() && value.get_double() >= kTwoTo63) return true;
  return value.to_number<double>() > bound.to_number<double>();
}

void validate_number(const json::value& value, const json::object& schema,
                     const std::string& path) {
  if (value.is_double() && !std::isfinite(value.get_double())) {
    refuse(path, "a number beyond the range of doubles", "a finite number");
  }
  const json::value* minimum = keyword(schema, "minimum");
  const json::value* above = keyword(schema, "exclusiveMinimum");
  const json::value* maximum = keyword(schema, "maximum");
  const bool fits = (minimum == nullptr || !is_less(value, *minimum)) &&
                    (above == nullptr || is_greater(value, *above)) &&
                    (maximum == nullptr || !is_greater(value, *maximum));
  if (fits) return;
  std::string wanted = "a number";
  if (minimum != nullptr) wanted = "at least " + number_text(*minimum);
  if (above != nullptr) wanted = "more than " + number_text(*above);
  if (maximum != nullptr) {
    wanted += (minimum == nullptr && above == nullptr ? " of at most " : " and at most ") +
              number_text(*maximum);
  }
  refuse(path, describe(value), wanted);
}

void validate_array(const json::array& array, const json::object& schema, const std::string& path) {
  const auto size = static_cast<int64_t>(array.size());
  const int64_t least = limit(schema, "minItems", 0);
  const int64_t most = limit(schema, "maxItems", INT64_MAX);
  if (size < least) refuse(path, "an empty array", fmt::format("at least {} items", least));
  if (size > most) {
    refuse(path, fmt::format("an array of {} items", size), fmt::format("at most {}", most));
  }
  const json::value* items = keyword(schema, "items");
  if (items == nullptr) return;
  for (size_t i = 0; i < array.size(); ++i) {
    // Token ids come by the thousand: their names are only made when they are wrong.
    if (array[i].is_int64()) {
      try {
        validate_json(array[i], items->get_object(), path);
        continue;
      } catch (const ApiError&) {
      }
    }
    validate_json(array[i], items->get_object(), fmt::format("{}[{}]", path, i));
  }
}

/// Of `additionalProperties`: members of other names are absent, or null, which is the same.
bool is_null_only(const json::object& schema) {
  const json::value* type = keyword(schema, "type");
  return type != nullptr && type->is_string() && view(type->get_string()) == "null";
}

void validate_object(const json::object& object, const json::object& schema,
                     const std::string& path) {
  const std::string prefix = path.empty() ? "" : path + ".";
  if (const json::value* required = keyword(schema, "required")) {
    for (const json::value& name : required->get_array()) {
      if (object.contains(name.get_string())) continue;
      const std::string field = prefix + json::value_to<std::string>(name);
      throw_bad_request(field, fmt::format("{}: this field is required", field),
                        "missing_required_parameter");
    }
  }
  const int64_t most = limit(schema, "maxProperties", INT64_MAX);
  if (static_cast<int64_t>(object.size()) > most) {
    refuse(path, fmt::format("an object of {} members", object.size()),
           fmt::format("at most {}", most));
  }
  const json::value* properties = keyword(schema, "properties");
  const json::value* others = keyword(schema, "additionalProperties");
  for (const auto& member : object) {
    const std::string field = prefix + printable({member.key().data(), member.key().size()});
    const json::value* known =
        properties == nullptr ? nullptr : properties->get_object().if_contains(member.key());
    if (known != nullptr) {
      validate_json(member.value(), known->get_object(), field);
    } else if (others == nullptr) {
      continue;
    } else if (!is_null_only(others->get_object())) {
      validate_json(member.value(), others->get_object(), field);
    } else if (!member.value().is_null()) {
      throw_bad_request(field, fmt::format("Unrecognized request argument supplied: {}", field),
                        "unknown_parameter");
    }
  }
}

/// Whether the types of the value and of its first item are right.
bool has_types(const json::value& value, const json::object& schema) {
  if (!has_schema_type(value, schema)) return false;
  const json::value* items = keyword(schema, "items");
  if (!value.is_array() || value.get_array().empty() || items == nullptr) return true;
  return has_types(value.get_array().front(), items->get_object());
}

/// Whether this alternative is the one that the value was meant for: its types are right, and its
/// required members are there.
bool is_meant(const json::value& value, const json::object& schema) {
  if (!has_types(value, schema)) return false;
  const json::value* required = keyword(schema, "required");
  if (!value.is_object() || required == nullptr) return true;
  const json::object& object = value.get_object();
  return std::all_of(required->get_array().begin(), required->get_array().end(),
                     [&](const json::value& name) {
                       const json::value* member = object.if_contains(name.get_string());
                       return member != nullptr && !member->is_null();
                     });
}

void validate_any(const json::value& value, const json::array& alternatives,
                  const std::string& path) {
  std::string wanted;
  for (const json::value& alternative : alternatives) {
    const json::object& schema = alternative.get_object();
    if (is_meant(value, schema)) return validate_json(value, schema, path);
    const std::string words = type_words(schema);
    if (words != "a null") wanted += (wanted.empty() ? "" : ", or ") + words;
  }
  refuse(path, describe(value), wanted);
}

}  // namespace

size_t num_code_points(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

void validate_json(const json::value& value, const json::object& schema, const std::string& path) {
  if (const json::value* alternatives = keyword(schema, "anyOf")) {
    return validate_any(value, alternatives->get_array(), path);
  }
  if (!has_schema_type(value, schema)) refuse(path, describe(value), type_words(schema));
  if (const json::value* values = keyword(schema, "enum")) {
    const json::array& allowed = values->get_array();
    const bool is_allowed =
        std::any_of(allowed.begin(), allowed.end(), [&](const json::value& each) {
          return each == value || (each.is_number() && value.is_number() && !is_less(value, each) &&
                                   !is_greater(value, each));
        });
    if (!is_allowed) refuse(path, describe(value), choice_words(allowed));
  }
  if (value.is_number()) validate_number(value, schema, path);
  if (value.is_string()) {
    const auto length = static_cast<int64_t>(num_code_points(view(value.get_string())));
    const int64_t least = limit(schema, "minLength", 0);
    const int64_t most = limit(schema, "maxLength", INT64_MAX);
    if (length < least)
      refuse(path, "an empty string", fmt::format("at least {} characters", least));
    if (length > most) {
      refuse(path, fmt::format("a string of {} characters", length),
             fmt::format("at most {}", most));
    }
  }
  if (value.is_array()) validate_array(value.get_array(), schema, path);
  if (value.is_object()) validate_object(value.get_object(), schema, path);
}

}  // namespace caravan
