#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "core/json.h"

namespace caravan {

/// Typed access to parsed JSON. `where` names file and place for messages ("/m/vocab.json:
/// [\"a\"]"); each function throws kCorrupt "<where>: got <what>, expected <what>" when the type is
/// another.

const boost::json::object& expect_object(const boost::json::value& value, const std::string& where);
const boost::json::array& expect_array(const boost::json::value& value, const std::string& where);
std::string_view expect_string(const boost::json::value& value, const std::string& where);
bool expect_bool(const boost::json::value& value, const std::string& where);
/// A non-negative integer.
int64_t expect_id(const boost::json::value& value, const std::string& where);

/// The field of an object, or nullptr when it is absent or null.
const boost::json::value* find_field(const boost::json::object& object, std::string_view key);
/// A boolean field, or `fallback` when it is absent or null.
bool bool_field(const boost::json::object& object, std::string_view key, bool fallback,
                const std::string& where);

/// What a value is, in words: "null", "true", "the number 5", "the string \"x\"", "an array".
std::string describe(const boost::json::value& value);

/// kUnsupported when the object has a key that is not listed: it might change the result.
void check_keys(const boost::json::object& object, std::initializer_list<std::string_view> known,
                const std::string& where);

}  // namespace caravan
