#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

namespace caravan {

/// What a JSON text may ask for before it is refused. Time and memory are linear in its size
/// whatever its keys are.
struct JsonLimits {
  size_t max_depth = 32;
  size_t max_members = size_t{1} << 22;  // of one object; a vocabulary has 50 thousand
};

/// Strict JSON (RFC 8259) with two courtesies: a UTF-8 byte order mark before it is skipped, and
/// half of a surrogate pair ("\ud83d"), which no UTF-8 can hold, becomes U+FFFD. Duplicate keys are
/// refused. `where` names the source in messages, usually the file path.
/// Errors: kCorrupt "<where>: offset N: <reason>".
boost::json::value parse_json(std::string_view text, const std::string& where,
                              const JsonLimits& limits = {});

/// The same for a file of at most max_bytes.
boost::json::value parse_json_file(const std::string& path, size_t max_bytes);

/// The text after a UTF-8 byte order mark, if there is one.
std::string_view skip_byte_order_mark(std::string_view text);

}  // namespace caravan
