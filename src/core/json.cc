// Boost.JSON finds the members of an object by FNV-1a with an address for salt: the low bits of an
// address are known, and keys that share a bucket can be made. Its digest is replaced by a keyed
// one before the library is compiled, which happens here and nowhere else.
#define BOOST_JSON_DETAIL_DIGEST_HPP
#include <array>
#include <bit>
#include <cstddef>

#include "core/siphash.h"
namespace boost::json::detail {
template <typename Iterator>
std::size_t digest(Iterator begin, Iterator end, std::size_t salt) noexcept {
  caravan::HashKey key = caravan::process_hash_key();
  key.low ^= salt;
  caravan::SipHash hash(key);
  std::array<std::byte, 8> word;
  std::size_t size = 0;
  for (; begin != end; ++begin) {
    word[size % word.size()] = static_cast<std::byte>(*begin);
    if (++size % word.size() == 0) hash.add(std::bit_cast<std::uint64_t>(word));
  }
  const std::size_t rest = size % word.size();
  return hash.finish(std::span(word).first(rest), size - rest).low;
}
}  // namespace boost::json::detail
#include <boost/json/src.hpp>

#include "core/json.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "core/error.h"
#include "core/keyed_hash.h"
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

  explicit DuplicateKeyHandler(size_t max_members) : max_members_(max_members) {}

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
    if (!keys_.back().insert(key_).second) {
      problem_ = fmt::format("the key \"{}\" appears twice in one object", printable(key_));
    } else if (keys_.back().size() > max_members_) {
      problem_ = fmt::format("an object of more than {} members", max_members_);
    }
    key_.clear();
    if (problem_.empty()) return true;
    error = boost::json::error::extra_data;
    return false;
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

  const std::string& problem() const { return problem_; }

 private:
  size_t max_members_;
  std::vector<KeyedSet<std::string>> keys_;
  std::string key_;
  std::string problem_;
};

/// The code unit of "\uXXXX" at `at`, or -1.
int32_t escaped_unit(std::string_view text, size_t at) {
  constexpr size_t kSize = 6;
  if (text.size() - at < kSize || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int32_t unit = 0;
  const char* const end = text.data() + at + kSize;
  const auto [last, error] = std::from_chars(end - 4, end, unit, 16);
  return error == std::errc() && last == end && unit >= 0 ? unit : -1;
}

bool is_high_surrogate(int32_t unit) { return unit >= 0xd800 && unit < 0xdc00; }
bool is_low_surrogate(int32_t unit) { return unit >= 0xdc00 && unit < 0xe000; }

/// Writes \ufffd over each surrogate without its other half. `text` when there is none, else
/// `buffer`. Offsets stay.
std::string_view mend_surrogates(std::string_view text, std::string& buffer) {
  for (size_t at = text.find('\\'); at != std::string_view::npos; at = text.find('\\', at)) {
    const int32_t unit = escaped_unit(text, at);
    if (unit < 0) {
      at = std::min(at + 2, text.size());  // "\\" is two characters too
      continue;
    }
    at += 6;
    if (is_high_surrogate(unit) && is_low_surrogate(escaped_unit(text, at))) {
      at += 6;
    } else if (is_high_surrogate(unit) || is_low_surrogate(unit)) {
      if (buffer.empty()) {
        buffer = text;
        text = buffer;
      }
      buffer.replace(at - 4, 4, "fffd");
    }
  }
  return text;
}

}  // namespace

std::string_view skip_byte_order_mark(std::string_view text) {
  constexpr std::string_view kMark = "\xef\xbb\xbf";
  return text.substr(text.starts_with(kMark) ? kMark.size() : 0);
}

boost::json::value parse_json(std::string_view text, const std::string& where,
                              const JsonLimits& limits) {
  CARAVAN_CHECK_CODE(!text.starts_with("\xff\xfe") && !text.starts_with("\xfe\xff"), kCorrupt,
                     "{}: UTF-16 text, expected UTF-8: convert it", where);
  const size_t skipped = text.size() - skip_byte_order_mark(text).size();
  text.remove_prefix(skipped);
  std::string buffer;
  text = mend_surrogates(text, buffer);

  boost::json::parse_options options;
  options.max_depth = limits.max_depth;
  boost::json::basic_parser<DuplicateKeyHandler> checker(options, limits.max_members);
  boost::json::error_code error;
  const size_t checked = skipped + checker.write_some(false, text.data(), text.size(), error);
  CARAVAN_CHECK_CODE(checker.handler().problem().empty(), kCorrupt, "{}: offset {}: {}", where,
                     checked, checker.handler().problem());
  CARAVAN_CHECK_CODE(!error, kCorrupt, "{}: offset {}: not valid JSON: {}", where, checked,
                     error.message());

  boost::json::parser parser({}, options);
  const size_t used = parser.write_some(text.data(), text.size(), error);
  CARAVAN_CHECK_CODE(!error, kCorrupt, "{}: offset {}: not valid JSON: {}", where, skipped + used,
                     error.message());
  const size_t rest = text.find_first_not_of(" \t\r\n", used);
  CARAVAN_CHECK_CODE(rest == std::string_view::npos, kCorrupt,
                     "{}: offset {}: text after the end of the JSON value", where, skipped + rest);
  return parser.release();
}

boost::json::value parse_json_file(const std::string& path, size_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path);
}

}  // namespace caravan
