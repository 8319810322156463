#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace caravan {

/// Names the environment variable of every flag of every command: CARAVAN_ and the long name in
/// capitals, '-' as '_'. The help texts print them.
void set_environment_names(CLI::App& app);

/// Adds to `args` (in order, without the program's name) what the environment sets: variables of
/// the flags of the command that `args` name, and of the program's own, where the flag itself is
/// not among them. Variables of other commands' flags are not looked at. Those that Kubernetes sets
/// for a Service ("tcp://10.96.0.12:80") and empty ones are ignored with a warning. Errors:
/// kInvalidArgument for an empty CARAVAN_API_KEY.
std::vector<std::string> with_environment(const CLI::App& app, std::vector<std::string> args);

/// Throws kInvalidArgument when the first word of `args` is no command: "unknown command \"rnu\",
/// did you mean run?".
void check_command(const CLI::App& app, const std::vector<std::string>& args);

/// CLI11's error as Caravan's: one line that names the variable a bad value came from, and the flag
/// that may have been meant. `args` as given by with_environment().
/// Errors: kInvalidArgument, always.
[[noreturn]] void throw_parse_error(const CLI::App& app, const std::vector<std::string>& args,
                                    const CLI::ParseError& error);

/// `message` of an error of the command that `args` name, with a remark on each flag in it that is
/// not the command's own, "... (--max-input-len is a flag of build and plan)", and on each that the
/// environment set.
std::string with_flag_remarks(const CLI::App& app, const std::vector<std::string>& args,
                              const std::string& message);

/// The name that is most like `word`, or "" when none is.
std::string closest_name(const std::string& word, const std::vector<std::string>& names);

}  // namespace caravan
