#include "core/jsonl.h"

#include <limits>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/text_input.h"

namespace caravan {

void for_each_json_line_while(
    const std::string& path,
    const std::function<bool(const boost::json::object& row, const std::string& where)>& on_row) {
  TextInput in(path);
  std::string line;
  for (int64_t number = 1; in.read_line(line, kMaxJsonLineBytes); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    CARAVAN_CHECK_CODE(line.size() <= kMaxJsonLineBytes, kCorrupt,
                       "{}: the line has more than {} bytes; is this JSON Lines?", where,
                       kMaxJsonLineBytes);
    const boost::json::value value = parse_json(line, where);
    CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected a JSON object", where);
    if (!on_row(value.get_object(), where)) return;
  }
}

void for_each_json_line(
    const std::string& path,
    const std::function<void(const boost::json::object& row, const std::string& where)>& on_row) {
  for_each_json_line_while(path, [&](const boost::json::object& row, const std::string& where) {
    on_row(row, where);
    return true;
  });
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
