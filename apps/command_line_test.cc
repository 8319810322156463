#include "apps/command_line.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/error.h"

namespace caravan {
namespace {

/// caravan {run --prompt --threads/-t --json, serve --port --host-list {,} !--no-log, bench
/// {latency}}.
class CommandLine : public ::testing::Test {
 protected:
  CommandLine() {
    app_.require_subcommand(1);
    app_.fallthrough();
    app_.add_flag("--quiet,-q", is_quiet_);
    CLI::App* run = app_.add_subcommand("run");
    run->add_option("--prompt,-p", prompt_);
    run->add_option("--threads,-t", threads_);
    run->add_flag("--json", is_json_);
    CLI::App* serve = app_.add_subcommand("serve");
    serve->add_option("--port", port_)->check(CLI::Range(0, 65535));
    serve->add_option("--host-list", hosts_)->allow_extra_args(false)->delimiter(',');
    serve->add_option("--api-key", key_);
    serve->add_flag("!--no-log,--log", logs_);
    CLI::App* bench = app_.add_subcommand("bench");
    bench->require_subcommand(1);
    bench->add_subcommand("latency")->add_option("--port", port_);
    set_environment_names(app_);
  }
  ~CommandLine() override {
    for (const std::string& name : set_) ::unsetenv(name.c_str());
  }
  void set(const std::string& name, const std::string& value) {
    ::setenv(name.c_str(), value.c_str(), 1);
    set_.push_back(name);
  }
  void parse(std::vector<std::string> args) {
    check_command(app_, args);
    args = with_environment(app_, args);
    try {
      app_.parse(std::vector<std::string>(args.rbegin(), args.rend()));
    } catch (const CLI::ParseError& error) {
      throw_parse_error(app_, args, error);
    }
  }
  /// The message with which parsing fails.
  std::string refusal(const std::vector<std::string>& args) {
    try {
      parse(args);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.what();
    }
    return "accepted";
  }

  CLI::App app_{"test", "caravan"};
  bool is_quiet_ = false, is_json_ = false, logs_ = true;
  std::string prompt_, key_;
  int threads_ = 0, port_ = 1;
  std::vector<std::string> hosts_;
  std::vector<std::string> set_;
};

TEST_F(CommandLine, ReadsTheVariablesOfItsOwnFlagsOnly) {
  set("CARAVAN_PORT", "not a port");
  set("CARAVAN_PROMPT", "from outside, with blanks");
  set("CARAVAN_THREADS", "3");
  set("CARAVAN_QUIET", "1");
  parse({"run", "-t", "2"});
  EXPECT_EQ(prompt_, "from outside, with blanks");
  EXPECT_EQ(threads_, 2) << "the command line wins";
  EXPECT_TRUE(is_quiet_);
  EXPECT_EQ(port_, 1);
}

TEST_F(CommandLine, NamesTheVariableOfABadValue) {
  set("CARAVAN_PORT", "70000");
  const std::string message = refusal({"serve"});
  EXPECT_NE(message.find("--port"), std::string::npos) << message;
  EXPECT_NE(message.find("environment variable CARAVAN_PORT"), std::string::npos) << message;
  EXPECT_NE(message.find("caravan serve --help"), std::string::npos) << message;
  EXPECT_EQ(refusal({"serve", "--port", "70001"}).find("environment"), std::string::npos);
}

TEST_F(CommandLine, IgnoresWhatKubernetesSets) {
  set("CARAVAN_PORT", "tcp://10.96.0.12:80");
  parse({"serve"});
  EXPECT_EQ(port_, 1);
}

TEST_F(CommandLine, IgnoresEmptyVariablesExceptKeys) {
  set("CARAVAN_PORT", "");
  parse({"serve"});
  EXPECT_EQ(port_, 1);
  set("CARAVAN_API_KEY", "");
  EXPECT_NE(refusal({"serve"}).find("CARAVAN_API_KEY is empty"), std::string::npos);
}

TEST_F(CommandLine, FlagsThatTurnSomethingOff) {
  set("CARAVAN_NO_LOG", "1");
  parse({"serve"});
  EXPECT_FALSE(logs_);
  set("CARAVAN_NO_LOG", "false");
  parse({"serve"});
  EXPECT_TRUE(logs_);
  set("CARAVAN_NO_LOG", "maybe");
  EXPECT_NE(refusal({"serve"}).find("CARAVAN_NO_LOG"), std::string::npos);
}

TEST_F(CommandLine, FlagsMayBeSetToFalse) {
  set("CARAVAN_JSON", "0");
  parse({"run"});
  EXPECT_FALSE(is_json_);
  set("CARAVAN_JSON", "true");
  parse({"run"});
  EXPECT_TRUE(is_json_);
}

TEST_F(CommandLine, ListsAreSplitAtCommasAndBlanks) {
  set("CARAVAN_HOST_LIST", "a.example, b.example\tc.example");
  parse({"serve"});
  EXPECT_EQ(hosts_, (std::vector<std::string>{"a.example", "b.example", "c.example"}));
}

TEST_F(CommandLine, FindsNestedCommands) {
  set("CARAVAN_PORT", "5");
  parse({"-q", "bench", "latency"});
  EXPECT_EQ(port_, 5);
}

TEST_F(CommandLine, SuggestsCommandsAndFlags) {
  EXPECT_NE(refusal({"rnu"}).find("unknown command \"rnu\", did you mean run?"), std::string::npos);
  EXPECT_NE(refusal({"bench", "latncy"}).find("did you mean latency?"), std::string::npos);
  EXPECT_NE(refusal({"run", "--promt", "x"}).find("did you mean --prompt?"), std::string::npos);
  EXPECT_NE(refusal({"run", "--promt=x"}).find("did you mean --prompt?"), std::string::npos);
  EXPECT_EQ(refusal({"xyzzyx"}).find("did you mean"), std::string::npos);
  EXPECT_NE(refusal({"-q"}).find("subcommand"), std::string::npos);
  EXPECT_EQ(refusal({"run", "\x1b[2J"}).find('\x1b'), std::string::npos) << "control characters";
}

TEST_F(CommandLine, TheCommandLineWinsOverABadVariable) {
  set("CARAVAN_THREADS", "many");
  parse({"run", "-t", "2"});
  EXPECT_EQ(threads_, 2);
}

TEST_F(CommandLine, NamesTheVariableInErrorsOfTheCommandToo) {
  set("CARAVAN_PROMPT", "x");
  const std::vector<std::string> args = with_environment(app_, {"run"});
  EXPECT_EQ(with_flag_remarks(app_, args, "--prompt x: no"),
            "--prompt x: no (--prompt is from the environment variable CARAVAN_PROMPT)");
}

TEST_F(CommandLine, SaysWhoseAFlagOfAnErrorIs) {
  EXPECT_EQ(
      with_flag_remarks(app_, {"run"}, "lower --port or --threads; --unknown stays"),
      "lower --port or --threads; --unknown stays (--port is a flag of serve, bench latency)");
  EXPECT_EQ(with_flag_remarks(app_, {"serve"}, "lower --port"), "lower --port");
}

}  // namespace
}  // namespace caravan
