#include "core/jsonl.h"

#include <fstream>
#include <iostream>
#include <limits>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"

namespace caravan {

namespace {

/// The next line without its end, or false at the end of the input. Stops with kMaxJsonLineBytes +
/// 1 bytes in a longer line.
bool read_line(std::istream& in, std::string& line) {
  constexpr int kEnd = std::char_traits<char>::eof();
  line.clear();
  for (int c = in.get(); c != '\n'; c = in.get()) {
    if (c == kEnd) return !line.empty();
    line.push_back(static_cast<char>(c));
    if (line.size() > kMaxJsonLineBytes) break;
  }
  return true;
}

}  // namespace

void for_each_json_line(
    const std::string& path,
    const std::function<void(const boost::json::object& row, const std::string& where)>& on_row) {
  std::ifstream file;
  if (path != "-") {
    file.open(path);
    CARAVAN_CHECK_CODE(file.is_open(), kNotFound, "{}: cannot open", path);
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::string line;
  for (int64_t number = 1; read_line(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    CARAVAN_CHECK_CODE(line.size() <= kMaxJsonLineBytes, kCorrupt,
                       "{}: the line has more than {} bytes; is this JSON Lines?", where,
                       kMaxJsonLineBytes);
    const boost::json::value value = parse_json(line, where);
    CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected a JSON object", where);
    on_row(value.get_object(), where);
  }
  CARAVAN_CHECK_CODE(!in.bad(), kIo, "{}: read failed", path);
}

std::vector<int32_t> token_ids_of(const boost::json::value& ids, const std::string& where,
                                  const char* name) {
  CARAVAN_CHECK_CODE(ids.is_array(), kCorrupt, "{}: \"{}\" is not an array of token ids", where,
                     name);
  std::vector<int32_t> out;
  out.reserve(ids.get_array().size());
  for (const boost::json::value& id : ids.get_array()) {
    const int64_t* number = id.if_int64();
    CARAVAN_CHECK_CODE(
        number != nullptr && *number >= 0 && *number <= std::numeric_limits<int32_t>::max(),
        kCorrupt, "{}: \"{}\"[{}] is {}, expected a token id", where, name, out.size(),
        printable(to_json_text(id)));
    out.push_back(static_cast<int32_t>(*number));
  }
  return out;
}

std::string string_of(const boost::json::object& row, const char* name, const std::string& where) {
  const boost::json::value* value = row.if_contains(name);
  if (value == nullptr) return {};
  CARAVAN_CHECK_CODE(value->is_string(), kCorrupt, "{}: \"{}\" is not a string", where, name);
  return {value->get_string().data(), value->get_string().size()};
}

}  // namespace caravan
