#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

namespace caravan {

/// Strict JSON (RFC 8259; duplicate keys are refused). `where` names the source in messages,
/// usually the file path. Errors: kCorrupt "<where>: offset N: <reason>".
boost::json::value parse_json(std::string_view text, const std::string& where,
                              size_t max_depth = 32);

/// The same for a file of at most max_bytes.
boost::json::value parse_json_file(const std::string& path, size_t max_bytes);

}  // namespace caravan
