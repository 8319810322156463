#include "core/text_input.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/jsonl.h"
#include "core/mapped_file.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

std::string gzip(const std::string& text) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

class TextInputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() / fmt::format("caravan_text_input_{}", ::getpid());
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string write(const std::string& bytes) const {
    const std::string path = directory_ / "text";
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
  }
  /// The text of a file, or what is wrong with it without its path.
  std::string read(const std::string& bytes) const {
    const std::string path = write(bytes);
    std::string text;
    try {
      TextInput in(path);
      for (int c = in.get(); c >= 0; c = in.get()) text.push_back(static_cast<char>(c));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorrupt);
      EXPECT_EQ(std::string(error.what()).find(path + ": "), 0u) << error.what();
      return std::string(error.what()).substr(path.size() + 2);
    }
    return text;
  }

  fs::path directory_;
};

TEST_F(TextInputTest, PlainAndGzip) {
  std::string large;
  for (int i = 0; i < 40'000; ++i) large += fmt::format("line {}\n", i * 7919 % 10007);
  for (const std::string& text :
       {std::string(), std::string("a"), std::string("\0\n\xff", 3), large}) {
    EXPECT_EQ(read(text), text);
    EXPECT_EQ(read(gzip(text)), text);
    EXPECT_EQ(read("\xef\xbb\xbf" + text), text);
    EXPECT_EQ(read(gzip("\xef\xbb\xbf" + text)), text);
    EXPECT_EQ(read(gzip("one\n") + gzip(text) + gzip("")), "one\n" + text);  // members in a row
  }
}

TEST_F(TextInputTest, BrokenGzip) {
  const std::string good = gzip("{\"prompt\": \"a text that is long enough\"}\n");
  for (size_t size = 2; size < good.size(); ++size) {
    EXPECT_NE(read(good.substr(0, size)).find("the gzip file is cut off after"), std::string::npos);
  }
  std::string bad = good;
  bad[good.size() - 6] ^= 1;  // of the CRC
  EXPECT_NE(read(bad).find("broken gzip"), std::string::npos);
  EXPECT_NE(read(good + "garbage").find("broken gzip"), std::string::npos);
}

TEST_F(TextInputTest, GzipBombs) {
  // Below the free bytes anything goes; beyond, a byte of the file stands for 256 at most.
  const std::string blanks = gzip(std::string(size_t{1} << 20, ' '));
  std::string bomb;
  for (int i = 0; i < 60; ++i) bomb += blanks;
  EXPECT_EQ(read(bomb).size(), size_t{60} << 20);
  for (int i = 0; i < 100; ++i) bomb += blanks;
  EXPECT_NE(read(bomb).find(" bytes of gzip inflate to more than "), std::string::npos);
}

TEST_F(TextInputTest, Lines) {
  const std::string path = write(gzip("one\n\n" + std::string(100, 'x') + "\nlast"));
  TextInput in(path);
  std::string line;
  ASSERT_TRUE(in.read_line(line, 100));
  EXPECT_EQ(line, "one");
  ASSERT_TRUE(in.read_line(line, 100));
  EXPECT_EQ(line, "");
  ASSERT_TRUE(in.read_line(line, 100));
  EXPECT_EQ(line, std::string(100, 'x'));
  ASSERT_TRUE(in.read_line(line, 3));
  EXPECT_EQ(line, "last");  // one more than asked for: too long
  EXPECT_FALSE(in.read_line(line, 3));
}

TEST_F(TextInputTest, GitLfsPointers) {
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid sha256:05f283a3\nsize 946\n";
  const std::string message = "a Git LFS pointer, not the file; run git lfs pull";
  EXPECT_EQ(read(pointer), message);
  const std::string path = write(pointer);
  const auto refusal = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& error) {
      return error.what();
    }
    return "read";
  };
  EXPECT_EQ(refusal([&] { read_text_file(path, 1000); }), path + ": " + message);
  EXPECT_EQ(refusal([&] { parse_json_file(path, 1000); }), path + ": " + message);
  EXPECT_EQ(refusal([&] {
              for_each_json_line(path, [](const boost::json::object&, const std::string&) {});
            }),
            path + ": " + message);
}

TEST_F(TextInputTest, JsonLinesWithMarksAndGzip) {
  std::vector<int64_t> numbers;
  const auto add = [&](const boost::json::object& row, const std::string&) {
    numbers.push_back(row.at("n").as_int64());
  };
  for_each_json_line(write("\xef\xbb\xbf{\"n\": 1}\r\n\r\n\xef\xbb\xbf{\"n\": 2}"), add);
  for_each_json_line(write("\xef\xbb\xbf\n"), add);
  for_each_json_line(write(""), add);
  for_each_json_line(write(gzip("{\"n\": 3}\n")), add);
  EXPECT_EQ(numbers, (std::vector<int64_t>{1, 2, 3}));
}

TEST_F(TextInputTest, WhatIsNoFile) {
  EXPECT_THROW(TextInput(directory_ / "none"), Error);
  TextInput folder(directory_);
  EXPECT_THROW(folder.get(), Error);
}

}  // namespace
}  // namespace caravan
