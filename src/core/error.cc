#include "core/error.h"

#include <system_error>

namespace caravan {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kCorrupt:
      return "corrupt file";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kOutOfMemory:
      return "out of memory";
    case ErrorCode::kIo:
      return "input/output error";
    case ErrorCode::kPermission:
      return "permission denied";
    case ErrorCode::kInternal:
      return "internal error";
  }
  return "unknown error";
}

ErrorCode os_error_code(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
      return ErrorCode::kPermission;
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
      return ErrorCode::kNotFound;
    case EISDIR:
    case ENAMETOOLONG:
      return ErrorCode::kInvalidArgument;
    default:
      return ErrorCode::kIo;
  }
}

void throw_os_error(int error, const std::string& what) {
  // Not strerror(): threads throw too.
  throw_error(os_error_code(error), what + ": " + std::generic_category().message(error));
}

std::string printable(std::string_view bytes, size_t max_bytes) {
  std::string out;
  for (size_t i = 0; i < bytes.size() && i < max_bytes; ++i) {
    const auto c = static_cast<unsigned char>(bytes[i]);
    if (c >= 0x20 && c < 0x7f) {
      out.push_back(static_cast<char>(c));
    } else {
      out += fmt::format("\\x{:02x}", c);
    }
  }
  if (bytes.size() > max_bytes) out += "...";
  return out;
}

void throw_error(ErrorCode code, const std::string& message) {
  std::string line;
  line.reserve(message.size());
  for (const char c : message) {
    const auto u = static_cast<unsigned char>(c);
    if (u < 0x20 || u == 0x7f) {
      line += fmt::format("\\x{:02x}", u);
    } else {
      line.push_back(c);
    }
  }
  throw Error(code, line);
}

}  // namespace caravan
