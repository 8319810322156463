#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace caravan {

using Sha256Digest = std::array<uint8_t, 32>;

/// SHA-256 of a short text. Source: FIPS 180-4, section 6.2.
Sha256Digest sha256(std::string_view text);

}  // namespace caravan
