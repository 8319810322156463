#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/json.h"

namespace caravan {

/// A JSON value of an untrusted file for an error message: its text, printable and short.
std::string json_text(const boost::json::value& value);

/// Typed, range-checked reads from one JSON object. Every error is kCorrupt and reads
/// "<where>: <prefix><field>: got <value>, expected <what>". Does not own the object.
class JsonFields {
 public:
  /// where: the file; prefix: the path to the object inside it with a final dot, or "".
  JsonFields(const boost::json::object& object, std::string where, std::string prefix = "")
      : object_(object), where_(std::move(where)), prefix_(std::move(prefix)) {}

  /// nullptr when the field is absent or null.
  const boost::json::value* find(std::string_view field) const;

  /// Absent or null: nullopt. A number with a fraction or exponent is not an integer.
  std::optional<int64_t> optional_integer(std::string_view field, int64_t low, int64_t high) const;
  int64_t integer(std::string_view field, int64_t low, int64_t high) const;
  /// Absent: fallback. Null is an error: it is neither true nor false.
  bool boolean(std::string_view field, bool fallback) const;
  bool boolean(std::string_view field) const;
  /// Absent or null: nullopt. Any JSON number.
  std::optional<double> optional_number(std::string_view field) const;
  std::optional<std::string> optional_string(std::string_view field) const;
  std::string string(std::string_view field) const;
  const boost::json::object& object(std::string_view field) const;

  /// Throws the kCorrupt error for `field`; got is the field's value, or "nothing".
  [[noreturn]] void fail(std::string_view field, std::string_view expected) const;

 private:
  const boost::json::object& object_;
  std::string where_;
  std::string prefix_;
};

}  // namespace caravan
