#include "core/line_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

namespace caravan {
namespace {

class LineReaderTest : public testing::Test {
 protected:
  LineReaderTest() : path_(testing::TempDir() + "line_reader_test." + std::to_string(::getpid())) {}
  ~LineReaderTest() override { std::filesystem::remove(path_); }

  /// "NUMBER:TEXT" of each line, "!" behind one that is too long.
  std::vector<std::string> read(std::string_view contents, size_t max_bytes = 1000) {
    std::ofstream(path_, std::ios::binary) << contents;
    LineReader reader(path_);
    num_lines_ = reader.count_lines();
    std::vector<std::string> lines;
    std::string line;
    while (reader.next(line, max_bytes)) {
      lines.push_back(std::to_string(reader.number()) + ":" + line +
                      (reader.is_too_long() ? "!" : ""));
    }
    return lines;
  }

  std::string path_;
  int64_t num_lines_ = 0;
};

using Lines = std::vector<std::string>;

TEST_F(LineReaderTest, KeepsEveryByteButTheLineEnds) {
  EXPECT_EQ(read(""), Lines());
  EXPECT_EQ(num_lines_, 0);
  EXPECT_EQ(read("\n\n"), Lines({"1:", "2:"}));
  EXPECT_EQ(num_lines_, 2);
  EXPECT_EQ(read("a\r\nb\rc\nlast"), Lines({"1:a", "2:b\rc", "3:last"}));
  EXPECT_EQ(num_lines_, 3);
  using namespace std::string_literals;
  EXPECT_EQ(read("a\0b\n\xff\n"s), Lines({"1:a\0b"s, "2:\xff"}));
}

TEST_F(LineReaderTest, LeavesOutAByteOrderMarkBeforeTheFirstLineOnly) {
  EXPECT_EQ(read("\xEF\xBB\xBF{}\n\xEF\xBB\xBF{}\n"), Lines({"1:{}", "2:\xEF\xBB\xBF{}"}));
  EXPECT_EQ(read("\xEF\xBB\xBF"), Lines());
  EXPECT_EQ(read("\xEF\xBB"), Lines({"1:\xEF\xBB"}));
}

TEST_F(LineReaderTest, PassesOverTheRestOfALineThatIsTooLong) {
  const std::string huge(700'000, 'x');
  EXPECT_EQ(read(huge + "\nnext\n", 5), Lines({"1:xxxxx!", "2:next"}));
  EXPECT_EQ(read("12345\n123456", 5), Lines({"1:12345", "2:12345!"}));
  EXPECT_EQ(read(huge + "\n" + huge, huge.size()), Lines({"1:" + huge, "2:" + huge}));
}

TEST_F(LineReaderTest, NamesWhatCannotBeRead) {
  try {
    LineReader reader(path_ + ".none");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
  }
  LineReader reader(testing::TempDir());
  std::string line;
  EXPECT_THROW(reader.next(line, 10), Error);
}

/// What comes through a pipe whose writer sends `pieces` one by one.
std::vector<std::string> lines_of_pipe(const std::vector<std::string>& pieces) {
  const std::string path = ::testing::TempDir() + "line_reader_fifo_" + std::to_string(::getpid());
  EXPECT_EQ(::mkfifo(path.c_str(), 0600), 0);
  std::thread writer([&] {
    const int fd = ::open(path.c_str(), O_WRONLY);
    for (const std::string& piece : pieces) {
      EXPECT_EQ(::write(fd, piece.data(), piece.size()), static_cast<ssize_t>(piece.size()));
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    ::close(fd);
  });
  std::vector<std::string> lines;
  {
    LineReader reader(path);
    for (std::string line; reader.next(line, 1000);) lines.push_back(line);
  }
  writer.join();
  ::unlink(path.c_str());
  return lines;
}

TEST(LineReader, AMarkMayComeAloneOrInPieces) {
  const std::vector<std::string> wanted = {"a", "b"};
  EXPECT_EQ(lines_of_pipe({"\xef\xbb\xbf", "a\nb"}), wanted);
  EXPECT_EQ(lines_of_pipe({"\xef", "\xbb",
                           "\xbf"
                           "a\n",
                           "b\n"}),
            wanted);
  EXPECT_EQ(lines_of_pipe({"\xef\xbb\xbf"}), std::vector<std::string>());
}

}  // namespace
}  // namespace caravan
