#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/json.h"

namespace caravan {

/// Calls `on_row` with each non-empty line of a JSON Lines file ("-": standard input) and
/// "FILE:LINE" for messages. Errors: kNotFound, kIo; kCorrupt for a line that is not a JSON object.
void for_each_json_line(
    const std::string& path,
    const std::function<void(const boost::json::object& row, const std::string& where)>& on_row);

/// {"ids": [...]} of a row. Errors: kCorrupt naming `where` when it is not an array of int32.
std::vector<int32_t> token_ids_of(const boost::json::value& ids, const std::string& where);

/// A member that must be a string when it is there; "" when it is not. Errors: kCorrupt.
std::string string_of(const boost::json::object& row, const char* name, const std::string& where);

}  // namespace caravan
