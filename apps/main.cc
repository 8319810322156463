#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/openmp_start.h"
#include "core/error.h"
#include "core/log.h"
#include "core/mapped_file.h"
#include "core/standard_output.h"
#include "core/unfinished_file.h"

namespace caravan {
namespace {

// Exit statuses, from sysexits.h; documented in docs/cli.md.
int exit_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return 64;
    case ErrorCode::kCorrupt:
      return 65;
    case ErrorCode::kNotFound:
      return 66;
    case ErrorCode::kUnsupported:
      return 78;
    case ErrorCode::kInternal:
      return 70;
    case ErrorCode::kOutOfMemory:
      return 71;
    case ErrorCode::kIo:
      return 74;
    case ErrorCode::kPermission:
      return 77;
  }
  return 70;
}

// The arguments with llama.cpp's short names of serve's flags spelled out: CLI11 knows short names
// of one letter only. "--flag=" with nothing behind it, as an unset variable leaves it, becomes the
// flag and an empty value: CLI11 would take the next argument.
std::vector<std::string> arguments(int argc, char** argv) {
  std::vector<std::string> args;
  bool has_flags = true;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--") has_flags = false;
    if (has_flags && arg.starts_with("--") && arg.find('=') == arg.size() - 1) {
      args.push_back(arg.substr(0, arg.size() - 1));
      args.emplace_back();
    } else {
      args.push_back(arg);
    }
  }
  for (auto arg = std::find(args.begin(), args.end(), "serve"); arg != args.end(); ++arg) {
    if (*arg == "-np") *arg = "--parallel";
    if (*arg == "-ctk") *arg = "--kv-cache-dtype";
  }
  return args;
}

/// Calls `work` and says what went wrong; returns the exit status.
template <typename Work>
int status_of(const Work& work) {
  try {
    return work();
  } catch (const Error& e) {
    std::fprintf(stderr, "caravan: error: %s\n", e.what());
    return exit_status(e.code());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "caravan: error: out of host memory\n");
    return exit_status(ErrorCode::kOutOfMemory);
  } catch (const std::system_error& e) {  // also of std::filesystem
    std::fprintf(stderr, "caravan: error: %s\n", e.what());
    return exit_status(os_error_code(e.code().value()));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "caravan: error: internal: %s\n", e.what());
    return exit_status(ErrorCode::kInternal);
  }
}

int run(int argc, char** argv) {
  CLI::App app{"Caravan: inference for GPT-2-family language models.", "caravan"};
  app.set_version_flag("--version", "caravan " CARAVAN_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  bool is_quiet = false;
  app.add_flag("--quiet,-q", is_quiet, "Only warnings and errors on stderr, no progress bars");
  app.parse_complete_callback([&] {
    if (is_quiet) set_log_level(LogLevel::kWarning);
  });
  add_run_command(app);
  add_serve_command(app);
  add_convert_command(app);
  add_build_command(app);
  add_plan_command(app);
  add_inspect_command(app);
  add_tokenize_command(app);
  add_score_command(app);
  add_perplexity_command(app);
  add_lambada_command(app);
  add_rouge_command(app);
  add_summarize_command(app);
  add_compare_command(app);
  add_diverge_command(app);
  add_synth_command(app);
  add_bench_command(app);
  set_environment_names(app);
  std::vector<std::string> args = arguments(argc, argv);
  check_command(app, args);
  args = with_environment(app, std::move(args));
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));  // CLI11 takes the last first
  } catch (const CLI::RuntimeError& e) {
    return e.get_exit_code();  // 1: a command did its work and what it checks did not pass
  } catch (const CLI::Success& e) {
    return app.exit(e);  // prints a help text or the version
  } catch (const CLI::ParseError& e) {
    throw_parse_error(app, args, e);
  } catch (const Error& e) {
    throw Error(e.code(), with_flag_remarks(app, args, e.what()));
  }
  return 0;
}

}  // namespace
}  // namespace caravan

int main(int argc, char** argv) {
  caravan::reserve_standard_descriptors();
  caravan::restart_with_openmp_settings(argv);
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit is a write error like any other
  caravan::tidy_on_termination();
  caravan::end_on_mapping_fault(caravan::exit_status(caravan::ErrorCode::kIo));
  const int status = caravan::status_of([&] { return caravan::run(argc, argv); });
  if (status != 0 && status != 1) return status;
  // A result that did not arrive is no success.
  const int end_status = caravan::status_of([] {
    caravan::close_output();
    return 0;
  });
  return end_status != 0 ? end_status : status;
}
