#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// Writes JSON as text, piece by piece: a large answer needs no tree beside it. Texts must be
/// UTF-8. Commas come by themselves; that objects and arrays end, and that members have names, is
/// the caller's part.
class JsonWriter {
 public:
  JsonWriter& begin_object();
  JsonWriter& end_object();
  JsonWriter& begin_array();
  JsonWriter& end_array();
  JsonWriter& key(std::string_view name);

  JsonWriter& text(std::string_view value);
  JsonWriter& integer(int64_t value);
  /// The shortest text that reads as this number again. Requires: finite.
  JsonWriter& number(float value);
  JsonWriter& null();
  JsonWriter& ids(const std::vector<int32_t>& values);
  /// A value that is JSON already.
  JsonWriter& raw(std::string_view json);
  /// Several values of an array, with commas between; none: "".
  JsonWriter& raw_items(std::string_view json);

  void reserve(size_t num_bytes) { out_.reserve(num_bytes); }
  size_t size() const { return out_.size(); }
  const std::string& str() const { return out_; }
  std::string take();

 private:
  void begin_value();

  std::string out_;
  bool needs_comma_ = false;
};

}  // namespace caravan
