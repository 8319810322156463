#pragma once

#include <fmt/core.h>

#include <string_view>
#include <utility>

namespace caravan {

/// Results go to standard output through these, so that a disk that is full or a reader that is
/// gone ends the command. Errors: kIo, "standard output: write failed".
void write_output(std::string_view text);
/// Everything that was written is with the operating system.
void flush_output();

template <typename... Args>
void print_output(fmt::format_string<Args...> format, Args&&... args) {
  write_output(fmt::format(format, std::forward<Args>(args)...));
}

/// Descriptors 0 to 2 that are closed would be given to the next files that are opened, and results
/// or log lines would land in them. Opens them so that using them fails. Call first in main().
void reserve_standard_descriptors();

/// Writes what is buffered and closes standard output. Errors: kIo when anything that was written
/// since the start is lost. Call last in main().
void close_output();

}  // namespace caravan
