#pragma once

#include <fmt/core.h>

#include <cerrno>
#include <stdexcept>
#include <string>
#include <utility>

namespace caravan {

/// What kind of thing went wrong; apps/main.cc maps each code to one documented exit status.
enum class ErrorCode {
  kInvalidArgument,  // the caller or a flag is wrong
  kNotFound,         // a file or directory is not there
  kCorrupt,          // a file breaks its own format
  kUnsupported,      // well-formed, but outside what Caravan does
  kOutOfMemory,      // the plan does not fit
  kIo,               // the operating system refused a read or a write
  kPermission,       // the user may not read or write that file
  kInternal,         // a defect of Caravan itself
};

const char* error_code_name(ErrorCode code);

/// The one exception type of the library. The message is one line: what, got, wanted, what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

/// Throws Error(code, message with control characters escaped, so that it stays one line).
[[noreturn]] void throw_error(ErrorCode code, const std::string& message);

/// The code of a system call that failed with `error`: kPermission, kNotFound (a part of the path
/// is not there), kInvalidArgument (the path cannot name what is wanted) or kIo.
ErrorCode os_error_code(int error);

/// Throws Error(os_error_code(error), "what: reason").
[[noreturn]] void throw_os_error(int error, const std::string& what);

/// Text for an error message from untrusted bytes: printable ASCII kept, the rest as \xNN, at most
/// `max_bytes` of the input followed by "...".
std::string printable(std::string_view bytes, size_t max_bytes = 64);

}  // namespace caravan

#define CARAVAN_FAIL(code, ...) \
  ::caravan::throw_error(::caravan::ErrorCode::code, ::fmt::format(__VA_ARGS__))

/// Throws kInvalidArgument with a formatted message when the condition is false.
#define CARAVAN_CHECK(cond, ...)                              \
  do {                                                        \
    if (!(cond)) CARAVAN_FAIL(kInvalidArgument, __VA_ARGS__); \
  } while (false)

/// The same with another ErrorCode, e.g. CARAVAN_CHECK_CODE(n > 0, kCorrupt, "{}: ...", path).
#define CARAVAN_CHECK_CODE(cond, code, ...)       \
  do {                                            \
    if (!(cond)) CARAVAN_FAIL(code, __VA_ARGS__); \
  } while (false)

/// Throws os_error_code(errno) with ": reason" after the message when the condition is false.
#define CARAVAN_CHECK_OS(cond, ...)                                            \
  do {                                                                         \
    if (!(cond)) {                                                             \
      const int caravan_os_error = errno;                                      \
      ::caravan::throw_os_error(caravan_os_error, ::fmt::format(__VA_ARGS__)); \
    }                                                                          \
  } while (false)
