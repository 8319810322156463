#include "eval/result_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include "core/error.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;
using Mode = ResultLog::Mode;

class ResultLogTest : public testing::Test {
 protected:
  ResultLogTest() : path_(testing::TempDir() + "result_log_test." + std::to_string(::getpid())) {}
  ~ResultLogTest() override { fs::remove(path_); }

  static ResultSettings settings(int seed, double temperature = 0) {
    return ResultSettings({{"--seed", seed}, {"--temperature", temperature}});
  }
  std::string file() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(std::string_view text) const { std::ofstream(path_, std::ios::binary) << text; }
  /// Rows {"row": i} from where the file ends to 3.
  int64_t make(Mode mode, const ResultSettings& of = settings(1)) const {
    ResultLog log(path_, mode, of);
    int64_t i = 0;
    while (log.next_finished()) ++i;
    const int64_t first = i;
    for (; i < 3; ++i) log.append({{"row", i}});
    return first;
  }
  static std::string refusal(const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }

  std::string path_;
};

TEST_F(ResultLogTest, ContinuesAfterTheLastWholeLine) {
  EXPECT_EQ(make(Mode::kNew), 0);
  const std::string whole = file();
  for (size_t size = 0; size <= whole.size(); ++size) {
    write(whole.substr(0, size));
    make(Mode::kResume);
    ASSERT_EQ(file(), whole) << "cut to " << size;
  }
  EXPECT_EQ(make(Mode::kResume), 3);
  fs::remove(path_);
  EXPECT_EQ(make(Mode::kResume), 0);
  EXPECT_EQ(file(), whole);
}

TEST_F(ResultLogTest, NamesTheSettingsThatChanged) {
  make(Mode::kNew);
  EXPECT_NE(refusal([&] {
              make(Mode::kResume, settings(1, 0.5));
            }).find(":1: made with other settings (--temperature changed)"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              make(Mode::kResume, settings(2, 0.5));
            }).find("(--seed, --temperature changed)"),
            std::string::npos);
  EXPECT_NE(refusal([&] {
              make(Mode::kResume, ResultSettings({{"--seed", 1}}));
            }).find("made with other settings ("),
            std::string::npos);
  EXPECT_EQ(settings(1).changed(settings(1).text()), "");
}

TEST_F(ResultLogTest, TouchesNoForeignFile) {
  write("my diary\n");
  EXPECT_NE(refusal([&] { make(Mode::kNew); }).find("exists already"), std::string::npos);
  EXPECT_NE(refusal([&] { make(Mode::kReplace); }).find("replaces no other"), std::string::npos);
  EXPECT_NE(refusal([&] { make(Mode::kResume); }).find("not valid JSON"), std::string::npos);
  EXPECT_EQ(file(), "my diary\n");
  write("{\"text\": \"no settings\"}\n");
  EXPECT_NE(refusal([&] { make(Mode::kReplace); }).find("replaces no other"), std::string::npos);
  EXPECT_NE(refusal([&] { make(Mode::kResume); }).find("no \"settings\""), std::string::npos);
  EXPECT_EQ(file(), "{\"text\": \"no settings\"}\n");
  write("");
  EXPECT_EQ(make(Mode::kReplace), 0);
  const std::string whole = file();
  EXPECT_EQ(make(Mode::kReplace), 0);
  EXPECT_EQ(file(), whole);
  {
    // Replaced with the first line, so that a run that fails before costs nothing.
    const ResultLog log(path_, Mode::kReplace, settings(7));
    EXPECT_NE(refusal([&] { make(Mode::kResume); }).find("another process"), std::string::npos);
  }
  EXPECT_EQ(file(), whole);
  EXPECT_NE(refusal([&] {
              ResultLog(path_, Mode::kReplace, settings(1), path_);
            }).find("the file that is read"),
            std::string::npos);
}

TEST_F(ResultLogTest, AFullDeviceIsAWriteError) {
  ResultLog log("/dev/full", Mode::kNew, settings(1));
  try {
    log.append({{"row", 1}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("/dev/full: write failed: "), std::string::npos);
  }
}

}  // namespace
}  // namespace caravan
