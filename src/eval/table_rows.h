#pragma once

#include <functional>
#include <string>

#include "core/json.h"

namespace caravan {

/// Whether for_each_row takes the file for CSV: its name ends in .csv or .csv.gz.
bool is_csv_name(const std::string& path);

/// Calls `on_row` with each row of a table and "FILE:LINE" of its first line, until it returns
/// false. The table is JSON Lines, or CSV: RFC 4180 with commas, a first line of names, line feeds
/// with or without carriage returns, empty lines skipped; a row is then an object of strings. Both
/// may be gzip; "-" is standard input. One row is in memory at a time.
/// Errors: those of TextInput; kCorrupt for a line that is not a JSON object, CSV that is not
/// UTF-8, has a quote without an end or text after one, names that are not distinct, or a row of
/// more or fewer fields than names; and for a row above kMaxJsonLineBytes.
void for_each_row(
    const std::string& path,
    const std::function<bool(const boost::json::object& row, const std::string& where)>& on_row);

}  // namespace caravan
