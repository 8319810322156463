#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

namespace caravan {

/// The number as people write it: the fewest digits that read back as `number`, "1.49" and "1e-05";
/// whole numbers keep ".0", so that they read back as doubles. JSON has no NaN and no infinity:
/// null.
std::string json_number(double number);

/// Appends `text` in quotes, with the escapes that JSON demands. The bytes from 0x80 on are kept.
void append_json_string(std::string& out, std::string_view text);

/// `value` on one line. Use it for whatever Caravan writes: Boost's serializer prints 14.9
/// as 1.49E1 and an infinity as 1e99999.
void append_json_text(std::string& out, const boost::json::value& value);
std::string to_json_text(const boost::json::value& value);
std::string to_json_text(const boost::json::object& object);

}  // namespace caravan
