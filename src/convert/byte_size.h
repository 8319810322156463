#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace caravan {

/// "10GB", "24GiB", "512 MiB", "4096" (bytes), "1.5e9": decimal and binary units as written, any
/// case. Errors: kInvalidArgument naming `flag` when the text is not a size or is not positive.
int64_t parse_byte_size(std::string_view text, std::string_view flag);

/// "10,094,739,456 B (10.09 GB)": the exact figure first; small sizes have no second part.
std::string format_bytes(int64_t num_bytes);

/// 5047369728 -> "5,047,369,728".
std::string group_digits(int64_t value);

}  // namespace caravan
