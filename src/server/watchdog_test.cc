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

TEST(StallMeter, LeavesOutTheTimeInWhichTheProcessDidNotRun) {
  StallMeter meter(100, 4900);
  double now = 5000;
  // A step that began at 4,900; then the process stands still for a minute.
  EXPECT_EQ(meter.observe(100, now), 100);
  EXPECT_EQ(meter.observe(200, now += 100), 200);
  EXPECT_NEAR(meter.observe(60300, now += 60100), 300, 1);
  EXPECT_NEAR(meter.observe(61100, now += 800), 1100, 1) << "a late wake-up counts";
  EXPECT_NEAR(meter.observe(91200, now += 30100), 1200, 1) << "stopped again in the same step";
  EXPECT_NEAR(meter.observe(100000, now += 100), 10000, 1);
  // The next step begins after that: all of its time counts.
  EXPECT_EQ(meter.observe(50, now += 100), 50);
  EXPECT_EQ(meter.observe(150, now += 100), 150);
  for (int i = 0; i < 1000; ++i) now += 100, meter.observe(250 + i * 100.0, now);
  EXPECT_EQ(meter.observe(100250, now += 100), 100250) << "a stuck engine is seen";
  // Stopped before the first look.
  EXPECT_NEAR(StallMeter(100, 0).observe(60010, 60050), 60, 1);
  // Stopped while it is idle.
  EXPECT_EQ(meter.observe(0, now += 90000), 0);
  EXPECT_EQ(meter.observe(100, now += 100), 100);
}

TEST_F(WatchdogTest, DoesNotTripAfterAStop) {
  Watched watched;
  std::atomic<double> now{0};
  WatchdogOptions options = watched.options(1, 0);
  options.now_ms = [&] { return now.load(); };
  options.stalled_ms = [&] { return now + 50; };  // a step that never ends
  const Watchdog watchdog(std::move(options));
  usleep(300000);
  now = 60000;  // SIGCONT
  usleep(300000);
  EXPECT_EQ(watched.num_trips, 0);
  for (int i = 0; i < 30 && watched.num_trips == 0; ++i) {
    now = now + 100;
    usleep(110000);
  }
  ASSERT_TRUE(watched.wait_for_exit()) << "but a stuck engine ends it";
  EXPECT_EQ(watched.num_trips, 1);
}

TEST_F(WatchdogTest, EndsTheProcessThoughTheAnswersHang) {
  Watched watched;
  std::atomic<bool> may_end{false};
  WatchdogOptions options = watched.options(1, 0.05);
  options.on_trip = [&](const std::string&) {
    while (!may_end) usleep(1000);
  };
  const Watchdog watchdog(std::move(options));
  watched.stalled_ms = 1500;
  EXPECT_TRUE(watched.wait_for_exit());
  may_end = true;
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
