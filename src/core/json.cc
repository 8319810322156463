#include "core/json.h"

#include <boost/json/src.hpp>
#include <unordered_set>

#include "core/error.h"
#include "core/mapped_file.h"

namespace caravan {

namespace {

/// Boost.JSON keeps the last of two equal keys; this handler refuses them instead. It sees the same
/// text through a second, allocation-light pass.
class DuplicateKeyHandler {
 public:
  static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_key_size = static_cast<std::size_t>(-1);
  static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);
  using error_code = boost::json::error_code;
  using string_view = boost::json::string_view;

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }
  bool on_object_begin(error_code&) {
    keys_.emplace_back();
    return true;
  }
  bool on_object_end(std::size_t, error_code&) {
    keys_.pop_back();
    return true;
  }
  bool on_array_begin(error_code&) { return true; }
  bool on_array_end(std::size_t, error_code&) { return true; }
  bool on_key_part(string_view part, std::size_t, error_code&) {
    key_.append(part.data(), part.size());
    return true;
  }
  bool on_key(string_view part, std::size_t, error_code& error) {
    key_.append(part.data(), part.size());
    const bool is_new = keys_.back().insert(key_).second;
    if (!is_new) {
      duplicate_ = key_;
      error = boost::json::error::extra_data;
    }
    key_.clear();
    return is_new;
  }
  bool on_string_part(string_view, std::size_t, error_code&) { return true; }
  bool on_string(string_view, std::size_t, error_code&) { return true; }
  bool on_number_part(string_view, error_code&) { return true; }
  bool on_int64(int64_t, string_view, error_code&) { return true; }
  bool on_uint64(uint64_t, string_view, error_code&) { return true; }
  bool on_double(double, string_view, error_code&) { return true; }
  bool on_bool(bool, error_code&) { return true; }
  bool on_null(error_code&) { return true; }
  bool on_comment_part(string_view, error_code&) { return true; }
  bool on_comment(string_view, error_code&) { return true; }

  const std::string& duplicate() const { return duplicate_; }

 private:
  std::vector<std::unordered_set<std::string>> keys_;
  std::string key_;
  std::string duplicate_;
};

}  // namespace

boost::json::value parse_json(std::string_view text, const std::string& where, size_t max_depth) {
  boost::json::parse_options options;
  options.max_depth = max_depth;
  boost::json::basic_parser<DuplicateKeyHandler> checker(options);
  boost::json::error_code error;
  const size_t checked = checker.write_some(false, text.data(), text.size(), error);
  CARAVAN_CHECK_CODE(checker.handler().duplicate().empty(), kCorrupt,
                     "{}: offset {}: the key \"{}\" appears twice in one object", where, checked,
                     printable(checker.handler().duplicate()));
  CARAVAN_CHECK_CODE(!error, kCorrupt, "{}: offset {}: not valid JSON: {}", where, checked,
                     error.message());

  boost::json::parser parser({}, options);
  const size_t used = parser.write_some(text.data(), text.size(), error);
  CARAVAN_CHECK_CODE(!error, kCorrupt, "{}: offset {}: not valid JSON: {}", where, used,
                     error.message());
  const size_t rest = text.find_first_not_of(" \t\r\n", used);
  CARAVAN_CHECK_CODE(rest == std::string_view::npos, kCorrupt,
                     "{}: offset {}: text after the end of the JSON value", where, rest);
  return parser.release();
}

boost::json::value parse_json_file(const std::string& path, size_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path);
}

}  // namespace caravan
