#include "server/watchdog.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <mutex>

#include "core/error.h"
#include "core/log.h"
#include "server/process_signals.h"

namespace caravan {
namespace {

using Clock = std::chrono::steady_clock;

/// An engine whose figures the test sets, and what the watchdog did about them.
struct Watched {
  std::atomic<double> stalled_ms{0};
  std::atomic<bool> has_failed{false};
  std::mutex mutex;
  std::string reason;
  std::atomic<int> num_trips{0};
  std::atomic<int> num_exits{0};
  Clock::time_point exit_time{};

  WatchdogOptions options(double limit_s, double grace_s) {
    return {.limit_s = limit_s,
            .grace_s = grace_s,
            .stalled_ms = [this] { return stalled_ms.load(); },
            .failure = [this] { return std::string(has_failed ? "the device is gone" : ""); },
            .on_trip =
                [this](const std::string& text) {
                  const std::lock_guard lock(mutex);
                  reason = text;
                  ++num_trips;
                },
            .on_exit =
                [this] {
                  exit_time = Clock::now();
                  ++num_exits;
                }};
  }
  bool wait_for_exit() {
    for (int i = 0; i < 500 && num_exits == 0; ++i) usleep(10000);
    return num_exits == 1;
  }
};

class WatchdogTest : public ::testing::Test {
 protected:
  void SetUp() override { set_log_level(LogLevel::kOff); }
  void TearDown() override { set_log_level(LogLevel::kInfo); }
};

TEST_F(WatchdogTest, LetsAWorkingEngineWork) {
  Watched watched;
  {
    const Watchdog watchdog(watched.options(1, 0));
    for (int i = 0; i < 40; ++i) {
      watched.stalled_ms = i % 2 == 0 ? 999 : 0;
      usleep(10000);
    }
  }
  EXPECT_EQ(watched.num_trips, 0);
  EXPECT_EQ(watched.num_exits, 0);
}

TEST_F(WatchdogTest, EndsAProcessWhoseEngineIsStuck) {
  Watched watched;
  const Watchdog watchdog(watched.options(1, 0.2));
  const auto begin = Clock::now();
  watched.stalled_ms = 1500;
  ASSERT_TRUE(watched.wait_for_exit());
  EXPECT_EQ(watched.num_trips, 1);
  EXPECT_EQ(watched.reason, "no step finished for 1.5 s");
  EXPECT_GE(watched.exit_time - begin, std::chrono::milliseconds(200)) << "the grace";
}

TEST_F(WatchdogTest, EndsAProcessWhoseEngineIsDead) {
  Watched watched;
  {
    const Watchdog watchdog(watched.options(1000, 0.05));
    watched.has_failed = true;
    for (int i = 0; i < 500 && watched.num_trips == 0; ++i) usleep(1000);
  }  // ends while the grace goes on: the exit comes all the same
  EXPECT_EQ(watched.num_exits, 1);
  EXPECT_EQ(watched.reason, "the device is gone");
  EXPECT_THROW(Watchdog(watched.options(0, 0)), Error);
  EXPECT_THROW(Watchdog(WatchdogOptions{}), Error);
}

TEST(ProcessSignals, AreValues) {
  const TerminationSignals signals;
  EXPECT_EQ(signals.wait(0), 0);
  kill(getpid(), SIGTERM);
  EXPECT_EQ(signals.wait(1000), SIGTERM);
  kill(getpid(), SIGINT);
  EXPECT_EQ(signals.wait(1000), SIGINT);
  EXPECT_EQ(signals.wait(0), 0);
}

TEST(ProcessSignals, TheSecondEndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        const TerminationSignals signals;
        kill(getpid(), SIGTERM);
        signals.wait(1000);
        signals.exit_on_next();
        kill(getpid(), SIGTERM);
        pause();
      },
      ::testing::ExitedWithCode(128 + SIGTERM), "");
}

TEST(ProcessSignals, TellSystemd) {
  unsetenv("NOTIFY_SOCKET");
  EXPECT_FALSE(notify_systemd("READY=1"));
  setenv("NOTIFY_SOCKET", "/nonexistent/socket", 1);
  EXPECT_FALSE(notify_systemd("READY=1"));

  const std::string name = "@caravan-test-" + std::to_string(getpid());
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path, sizeof(address.sun_path));
  address.sun_path[0] = '\0';
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address),
                 static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size())),
            0);
  setenv("NOTIFY_SOCKET", name.c_str(), 1);
  EXPECT_TRUE(notify_systemd("READY=1"));
  char buffer[100];
  const ssize_t size = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
  ASSERT_GT(size, 0);
  EXPECT_EQ(std::string(buffer, static_cast<size_t>(size)), "READY=1");
  close(fd);
  unsetenv("NOTIFY_SOCKET");
}

TEST(ProcessSignals, RaisesTheFileLimit) {
  const long limit = raise_file_limit();
  EXPECT_GE(limit, 64);
  EXPECT_EQ(sysconf(_SC_OPEN_MAX), limit);
}

}  // namespace
}  // namespace caravan
