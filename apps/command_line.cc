#include "apps/command_line.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <set>

#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

std::string variable_of(const std::string& long_name) {
  std::string variable = "CARAVAN_";
  for (const char c : long_name) {
    variable.push_back(c == '-' ? '_' : static_cast<char>(std::toupper(c)));
  }
  return variable;
}

std::string variable_name(const CLI::Option& option) {
  const auto& names = option.get_lnames();
  if (names.empty() || names.front() == "help" || names.front() == "version") return "";
  return variable_of(names.front());
}

const CLI::App* find_command(const CLI::App& app, const std::string& name) {
  const auto found = app.get_subcommands([&](const CLI::App* c) { return c->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

/// The program, the command that `args` name and the command within it: {caravan, bench, serve}.
/// `end`, if given: the place behind the last name in `args`.
std::vector<const CLI::App*> chosen_commands(const CLI::App& app,
                                             const std::vector<std::string>& args,
                                             size_t* end = nullptr) {
  std::vector<const CLI::App*> chosen = {&app};
  size_t place = 0;
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i].starts_with("-") && chosen.size() == 1) continue;  // the program's flags
    const CLI::App* command = find_command(*chosen.back(), args[i]);
    if (command == nullptr) break;
    chosen.push_back(command);
    place = i + 1;
  }
  if (end != nullptr) *end = place;
  return chosen;
}

std::string full_name(const std::vector<const CLI::App*>& commands) {
  std::string name;
  for (const CLI::App* command : commands) {
    if (!name.empty()) name += " ";
    name += command->get_name();
  }
  return name;
}

bool is_given(const CLI::Option& option, const std::vector<std::string>& args) {
  return std::any_of(args.begin(), args.end(), [&](const std::string& arg) {
    for (const std::string& name : option.get_lnames()) {
      if (arg == "--" + name || arg.starts_with("--" + name + "=")) return true;
    }
    for (const std::string& name : option.get_snames()) {
      if (arg.starts_with("-" + name)) return true;
    }
    return false;
  });
}

/// The value of the option's variable; unset where it has none or a foreign one.
const char* environment_value(const CLI::Option& option) {
  const std::string variable = variable_name(option);
  if (variable.empty()) return nullptr;
  const char* value = std::getenv(variable.c_str());
  if (value == nullptr) return nullptr;
  const std::string text = value;
  CARAVAN_CHECK(!text.empty() || variable != "CARAVAN_API_KEY",
                "CARAVAN_API_KEY is empty, expected a key; unset it to serve without one");
  const bool is_of_kubernetes = text.starts_with("tcp://") || text.starts_with("udp://");
  if (text.empty() || is_of_kubernetes) {
    log_warning("{}=\"{}\" is ignored: {}", variable, printable(text),
                text.empty() ? "it is empty" : "Kubernetes sets such for a Service");
    ::unsetenv(variable.c_str());  // CLI11 looks too
    return nullptr;
  }
  return value;
}

std::vector<std::string> long_names(const std::vector<const CLI::App*>& commands) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands) {
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
  }
  return names;
}

/// Insertions, deletions, replacements and swaps of neighbours that make one of the other.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min(
          {d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

std::string suggestion(const std::string& word, const std::vector<std::string>& names) {
  const std::string name = closest_name(word, names);
  return name.empty() ? "" : ", did you mean " + name + "?";
}

/// The commands below `command` that have the flag, as a user writes them: "bench latency".
void find_commands_with(const CLI::App& command, const std::string& prefix, const std::string& flag,
                        std::vector<std::string>& found) {
  for (const CLI::App* below : command.get_subcommands([](const CLI::App*) { return true; })) {
    const std::string name = prefix + below->get_name();
    if (below->get_option_no_throw(flag) != nullptr) found.push_back(name);
    find_commands_with(*below, name + " ", flag, found);
  }
}

}  // namespace

std::string closest_name(const std::string& word, const std::vector<std::string>& names) {
  if (word.size() > 64) return "";
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& name : names) {
    const size_t distance = edit_distance(word, name);
    if (distance < best_distance) {
      best_distance = distance;
      best = name;
    }
  }
  return best;
}

void set_environment_names(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string variable = variable_name(*option);
    if (!variable.empty()) option->envname(variable);
  }
  for (CLI::App* command : app.get_subcommands({})) set_environment_names(*command);
}

std::vector<std::string> with_environment(const CLI::App& app, std::vector<std::string> args) {
  size_t end = 0;
  const std::vector<const CLI::App*> commands = chosen_commands(app, args, &end);
  std::vector<std::string> added;
  std::set<std::string> own;
  for (const CLI::App* command : commands) {
    for (const CLI::Option* option : command->get_options()) {
      own.insert(variable_name(*option));
      if (is_given(*option, args)) {
        ::unsetenv(variable_name(*option).c_str());  // CLI11 would read it all the same
        continue;
      }
      const char* value = environment_value(*option);
      if (value == nullptr) continue;
      std::string text = value;
      if (option->get_delimiter() != '\0') {  // a list
        std::replace_if(
            text.begin(), text.end(), [](unsigned char c) { return std::isspace(c) != 0; },
            option->get_delimiter());
      }
      // A flag too: "--no-request-log=1" is off, as the flag alone.
      added.push_back("--" + option->get_lnames().front() + "=" + text);
    }
  }
  // CLI11 reads the variables of every command that has options, chosen or not.
  const auto forget = [&](const CLI::App& command, const auto& self) -> void {
    for (const CLI::Option* option : command.get_options()) {
      const std::string variable = variable_name(*option);
      if (!variable.empty() && !own.contains(variable)) ::unsetenv(variable.c_str());
    }
    for (const CLI::App* below : command.get_subcommands([](const CLI::App*) { return true; })) {
      self(*below, self);
    }
  };
  forget(app, forget);
  args.insert(args.begin() + static_cast<std::ptrdiff_t>(end), added.begin(), added.end());
  return args;
}

void check_command(const CLI::App& app, const std::vector<std::string>& args) {
  size_t end = 0;
  const std::vector<const CLI::App*> commands = chosen_commands(app, args, &end);
  std::vector<std::string> names;
  for (const CLI::App* command :
       commands.back()->get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  if (names.empty()) return;
  while (end < args.size() && args[end].starts_with("-")) ++end;
  if (end == args.size()) return;
  CARAVAN_FAIL(kInvalidArgument, "unknown command \"{}\"{}; {} --help lists them",
               printable(args[end]), suggestion(args[end], names), full_name(commands));
}

std::string with_flag_remarks(const CLI::App& app, const std::vector<std::string>& args,
                              const std::string& message) {
  const std::vector<std::string> own = long_names(chosen_commands(app, args));
  std::set<std::string> seen(own.begin(), own.end());
  std::set<std::string> named;
  std::string remarks;
  for (size_t i = message.find("--"); i != std::string::npos; i = message.find("--", i + 2)) {
    size_t end = i + 2;
    while (end < message.size() && (std::isalnum(static_cast<unsigned char>(message[end])) != 0 ||
                                    message[end] == '-' || message[end] == '_')) {
      ++end;
    }
    const std::string flag = message.substr(i, end - i);
    const bool is_set_outside = std::any_of(args.begin(), args.end(), [&](const std::string& arg) {
      const char* value = std::getenv(variable_of(flag.substr(2)).c_str());
      return value != nullptr && arg == flag + "=" + value;
    });
    if (is_set_outside && named.insert(flag).second) {
      remarks += fmt::format(" ({} is from the environment variable {})", flag,
                             variable_of(flag.substr(2)));
    }
    if (flag.size() < 4 || !seen.insert(flag).second) continue;
    std::vector<std::string> commands;
    find_commands_with(app, "", flag, commands);
    if (commands.empty() || commands.size() > 6) continue;
    remarks += fmt::format(" ({} is a flag of {})", flag, fmt::join(commands, ", "));
  }
  return message + remarks;
}

void throw_parse_error(const CLI::App& app, const std::vector<std::string>& args,
                       const CLI::ParseError& error) {
  const std::vector<const CLI::App*> commands = chosen_commands(app, args);
  std::string message = error.what();
  std::replace(message.begin(), message.end(), '\n', ' ');
  for (const CLI::App* command : commands) {
    for (const CLI::Option* option : command->get_options()) {
      const std::string variable = variable_name(*option);
      if (variable.empty() || message.find(option->get_name()) == std::string::npos) continue;
      const char* value = std::getenv(variable.c_str());
      const std::string added =
          "--" + option->get_lnames().front() + "=" + (value == nullptr ? "" : value);
      if (value != nullptr && std::find(args.begin(), args.end(), added) != args.end()) {
        message += " (from the environment variable " + variable + ")";
      }
    }
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> names = long_names(commands);
    for (const std::string& arg : args) {
      const std::string name = arg.substr(0, arg.find('='));
      if (!name.starts_with("--") || std::find(names.begin(), names.end(), name) != names.end() ||
          message.find(name) == std::string::npos) {
        continue;
      }
      message += suggestion(name, names);
      break;
    }
  }
  CARAVAN_FAIL(kInvalidArgument, "{}; see {} --help", message, full_name(commands));
}

}  // namespace caravan
