#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/json.h"

namespace caravan {

/// Longest line that for_each_json_line accepts. An article has thousands of bytes.
inline constexpr size_t kMaxJsonLineBytes = size_t{64} << 20;

/// Calls `on_row` with each non-empty line of a JSON Lines file ("-": standard input; gzip is
/// inflated) and "FILE:LINE" for messages. One line is in memory at a time.
/// Errors: those of TextInput; kCorrupt for a line that is not a JSON object or is longer than
/// kMaxJsonLineBytes.
void for_each_json_line(
    const std::string& path,
    const std::function<void(const boost::json::object& row, const std::string& where)>& on_row);

/// The same until `on_row` returns false.
void for_each_json_line_while(
    const std::string& path,
    const std::function<bool(const boost::json::object& row, const std::string& where)>& on_row);

/// An array of token ids, the member `name` of a row. Errors: kCorrupt naming `where` and `name`
/// when it is not an array of int32, none negative.
std::vector<int32_t> token_ids_of(const boost::json::value& ids, const std::string& where,
                                  const char* name = "ids");

/// A member that must be a string when it is there; "" when it is not. Errors: kCorrupt.
std::string string_of(const boost::json::object& row, const char* name, const std::string& where);

}  // namespace caravan
