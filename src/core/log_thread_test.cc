#include "core/log_thread.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "core/log.h"

namespace caravan {
namespace {

/// A pipe that takes the log instead of stderr.
class LogThreadTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(pipe2(fds_, O_CLOEXEC), 0); }
  void TearDown() override {
    for (const int fd : fds_) ::close(fd);
  }
  /// What is in the pipe now, up to a whole `mark` if there is one.
  std::string read_through(const std::string& mark) const {
    std::string text;
    char buffer[65536];
    while (text.find(mark) == std::string::npos) {
      const ssize_t count = ::read(fds_[0], buffer, sizeof(buffer));
      if (count <= 0) break;
      text.append(buffer, static_cast<size_t>(count));
    }
    return text;
  }

  int fds_[2] = {-1, -1};
};

TEST_F(LogThreadTest, WritesLinesInOrder) {
  {
    LogThread log(fds_[1]);
    for (int i = 0; i < 500; ++i) log_info("line {}", i);
    log_warning("the last");
    EXPECT_TRUE(log.flush(20000));
  }
  std::string expected;
  for (int i = 0; i < 500; ++i) expected += "caravan: line " + std::to_string(i) + "\n";
  EXPECT_EQ(read_through("last\n"), expected + "caravan: warning: the last\n");
}

TEST_F(LogThreadTest, WritesWhatWaitsBeforeItEnds) {
  {
    const LogThread log(fds_[1]);
    log_info("only line");
  }
  EXPECT_EQ(read_through("\n"), "caravan: only line\n");
}

TEST_F(LogThreadTest, NeverWaitsForAReaderAndSaysWhatWasDropped) {
  const int64_t before = num_dropped_log_lines();
  const std::string filler(1000, 'x');
  LogThread log(fds_[1], 100000);
  for (int i = 0; i < 2000; ++i) log_info("{}", filler);  // 2 MB; a pipe takes 64 KiB
  const int64_t num_dropped = num_dropped_log_lines() - before;
  EXPECT_GE(num_dropped, 1700);
  EXPECT_LT(num_dropped, 1950);
  EXPECT_FALSE(log.flush(10));
  log_warning("important");
  EXPECT_EQ(num_dropped_log_lines() - before, num_dropped) << "a warning has room of its own";
  const std::string text = read_through("was not read\n");
  EXPECT_NE(text.find("caravan: warning: important\n"), std::string::npos);
  EXPECT_NE(text.find("caravan: warning: " + std::to_string(num_dropped) + " lines"),
            std::string::npos)
      << text.substr(text.size() - 200);
  log_info("again");
  EXPECT_NE(read_through("again\n").find("caravan: again\n"), std::string::npos);
}

TEST_F(LogThreadTest, EndsThoughNobodyReads) {
  {
    const LogThread log(fds_[1]);
    for (int i = 0; i < 200; ++i) log_info("{}", std::string(1000, 'x'));
  }
  log_info("after the end, which would wait for the reader too");
  const LogThread next(fds_[1]);  // the process's log works again
}

TEST_F(LogThreadTest, GoesOnWhenTheReaderIsGone) {
  ::signal(SIGPIPE, SIG_IGN);
  ::close(fds_[0]);
  fds_[0] = ::open("/dev/null", O_RDONLY);
  LogThread log(fds_[1]);
  for (int i = 0; i < 100; ++i) log_info("nobody");
  EXPECT_TRUE(log.flush(20000));
}

TEST_F(LogThreadTest, ManyThreadsLog) {
  std::string text;
  std::thread reader([&] { text = read_through("end\n"); });
  {
    const LogThread log(fds_[1]);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([] {
        for (int j = 0; j < 500; ++j) log_info("a line of its own");
      });
    }
    for (std::thread& thread : threads) thread.join();
    log_info("end");
  }
  reader.join();
  size_t count = 0;
  for (size_t at = 0; (at = text.find("caravan: a line of its own\n", at)) != std::string::npos;) {
    ++at;
    ++count;
  }
  EXPECT_EQ(count, 2000u);
}

}  // namespace
}  // namespace caravan
