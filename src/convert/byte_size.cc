#include "convert/byte_size.h"

#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "core/error.h"

namespace caravan {

int64_t parse_byte_size(std::string_view text, std::string_view flag) {
  const std::string number(text);
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  std::string unit;
  for (const char* c = end; *c != '\0'; ++c) {
    if (*c != ' ') unit.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(*c))));
  }
  constexpr std::array<std::pair<std::string_view, double>, 14> kUnits = {
      {{"", 1.0},
       {"b", 1.0},
       {"k", 1e3},
       {"kb", 1e3},
       {"m", 1e6},
       {"mb", 1e6},
       {"g", 1e9},
       {"gb", 1e9},
       {"t", 1e12},
       {"tb", 1e12},
       {"kib", 1024.0},
       {"mib", 1048576.0},
       {"gib", 1073741824.0},
       {"tib", 1099511627776.0}}};
  for (const auto& [name, factor] : kUnits) {
    if (unit != name || end == number.c_str()) continue;
    const double bytes = value * factor;
    if (!std::isfinite(bytes) || bytes < 1 || bytes > 9e18) break;
    return static_cast<int64_t>(bytes);
  }
  CARAVAN_FAIL(kInvalidArgument, "{}: got \"{}\", wanted a size such as 10GB, 24GiB or 500000000",
               flag, printable(text));
}

std::string group_digits(int64_t value) {
  const std::string digits = std::to_string(value);
  const size_t first = value < 0 ? 1 : 0;
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > first && (digits.size() - i) % 3 == 0) grouped.push_back(',');
    grouped.push_back(digits[i]);
  }
  return grouped;
}

std::string format_bytes(int64_t num_bytes) {
  const std::string exact = fmt::format("{} B", group_digits(num_bytes));
  const auto value = static_cast<double>(num_bytes);
  if (num_bytes >= 1'000'000'000) return fmt::format("{} ({:.2f} GB)", exact, value / 1e9);
  if (num_bytes >= 1'000'000) return fmt::format("{} ({:.2f} MB)", exact, value / 1e6);
  return exact;
}

}  // namespace caravan
