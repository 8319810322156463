#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/atomic_directory.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/mapped_file.h"
#include "core/output_paths.h"
#include "core/unfinished_file.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const DirectoryKind kKind = {
    .mark = "mark",
    .is_marked = [](const DirectoryKind::ReadHead& read) { return read("mark", 9) == "ours"; },
    .is_known_name = [](std::string_view name) { return name == "mark" || name == "data"; }};

class OutputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("caravan_output_test_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string at(const std::string& name) const { return (folder_ / name).string(); }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(at(name), std::ios::binary) << text;
  }
  std::string text(const std::string& name) const { return read_text_file(at(name), 1 << 20); }
  /// A directory of kKind.
  void make_ours(const std::string& name) const {
    write(name + "/mark", "ours");
    write(name + "/data", "old");
  }
  void write_new(const std::string& name, bool replace = true) const {
    AtomicDirectory directory(at(name), replace, kKind);
    try {
      AtomicFile mark(directory.file("mark"));
      mark.write("ours");
      mark.commit();
      AtomicFile data(directory.file("data"));
      data.write("new");
      data.commit();
      directory.commit();
    } catch (...) {
      directory.discard();
      throw;
    }
  }

  fs::path folder_;
};

/// Code and text of the Error that `call` throws.
template <typename Call>
std::pair<ErrorCode, std::string> error_of(const Call& call) {
  try {
    call();
  } catch (const Error& e) {
    return {e.code(), e.what()};
  }
  return {ErrorCode::kInternal, "no error"};
}

#define EXPECT_REFUSED(call, wanted_code, part)                  \
  do {                                                           \
    const auto [code, message] = error_of([&] { call; });        \
    EXPECT_EQ(code, ErrorCode::wanted_code) << message;          \
    EXPECT_NE(message.find(part), std::string::npos) << message; \
  } while (false)

TEST_F(OutputTest, AFileAppearsOnlyAfterCommit) {
  {
    AtomicFile file(at("a"));
    file.write("abc");
    EXPECT_FALSE(fs::exists(at("a")));
  }
  EXPECT_TRUE(fs::is_empty(folder_));
  AtomicFile file(at("a"));
  file.write("abc");
  file.pad_to(8);
  file.commit();
  EXPECT_EQ(text("a"), std::string("abc\0\0\0\0\0", 8));
}

TEST_F(OutputTest, AFileReplacesALinkAndKeepsAMode) {
  write("victim", "precious");
  fs::create_symlink("victim", at("link"));
  fs::create_symlink("nowhere", at("dangling"));
  for (const char* name : {"link", "dangling"}) {
    AtomicFile file(at(name));
    file.write("new");
    file.commit();
    EXPECT_FALSE(fs::is_symlink(at(name)));
    EXPECT_EQ(text(name), "new");
  }
  EXPECT_EQ(text("victim"), "precious");
  EXPECT_FALSE(fs::exists(at("nowhere")));
  fs::permissions(at("victim"), fs::perms::owner_read | fs::perms::owner_write);
  AtomicFile file(at("victim"));
  file.write("secret");
  file.commit();
  EXPECT_EQ(fs::status(at("victim")).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

TEST_F(OutputTest, ALongNameIsNoTroubleAndADirectoryIs) {
  const std::string name(255, 'n');
  AtomicFile file(at(name));
  file.write("x");
  file.commit();
  EXPECT_EQ(text(name), "x");
  EXPECT_REFUSED(AtomicFile(at(name + "n")), kInvalidArgument, "name too long");
  fs::create_directories(at("d"));
  EXPECT_REFUSED(AtomicFile(at("d")), kInvalidArgument, "is a directory");
  EXPECT_REFUSED(AtomicFile(at("new/")), kInvalidArgument, "names a directory");
  EXPECT_REFUSED(AtomicFile(at("none/file")), kNotFound, "/none/file: cannot create");
  EXPECT_REFUSED(AtomicFile(at(name + "/file")), kNotFound, "Not a directory");
}

TEST_F(OutputTest, WhatIsNoFileIsWrittenAsItStands) {
  {
    AtomicFile null(std::string("/dev/null"));
    null.write("x");
    null.commit();
  }
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  ASSERT_EQ(::mkfifo(at("fifo").c_str(), 0600), 0);
  std::string got;
  std::thread reader([&] { std::getline(std::ifstream(at("fifo")), got); });
  {
    AtomicFile fifo(at("fifo"));
    fifo.write("through\n");
    fifo.commit();
  }
  reader.join();
  EXPECT_EQ(got, "through");
  EXPECT_TRUE(fs::is_fifo(at("fifo")));
  AtomicFile full(std::string("/dev/full"));
  EXPECT_REFUSED(full.write("x"), kIo, "No space left");
}

TEST_F(OutputTest, ADirectoryIsRenamedWholeAndLocked) {
  {
    AtomicDirectory first(at("d"), false, kKind);
    EXPECT_REFUSED(AtomicDirectory(at("d"), false, kKind), kInvalidArgument, "another process");
    AtomicFile data(first.file("data"));
    data.commit();
  }
  EXPECT_FALSE(fs::exists(at("d")));
  AtomicDirectory again(at("d/"), false, kKind);
  EXPECT_TRUE(fs::exists(again.work_path() + "/data"));  // kept for resuming
  again.clear();
  EXPECT_FALSE(fs::exists(again.work_path() + "/data"));
  again.commit();
  EXPECT_TRUE(fs::is_empty(at("d")));
  EXPECT_REFUSED(AtomicDirectory(at("d"), false, kKind), kInvalidArgument, "exists already");
}

TEST_F(OutputTest, ADirectoryTakesThePlaceOfOneOfOurs) {
  make_ours("d");
  write_new("d");
  EXPECT_EQ(text("d/data"), "new");
  EXPECT_FALSE(fs::exists(at("d.partial")));
}

TEST_F(OutputTest, NothingForeignIsReplaced) {
  write("home/docs/thesis", "x");
  write("file", "x");
  make_ours("extra");
  write("extra/notes.txt", "x");
  make_ours("deep");
  write("deep/data.d/x", "x");
  write("unmarked/data", "x");
  write("wrong/mark", "theirs");
  make_ours("real");
  fs::create_directory_symlink("real", at("link"));
  fs::create_directory_symlink("nowhere", at("dangling"));
  fs::create_directories(at("empty"));
  make_ours("linked");
  fs::remove(at("linked/data"));
  fs::create_symlink("../file", at("linked/data"));
  for (const auto& [name, part] : std::vector<std::pair<std::string, std::string>>{
           {"home", "holds a directory \"docs\""},
           {"file", "is a file, and --force"},
           {"extra", "holds a file \"notes.txt\""},
           {"deep", "holds a directory \"data.d\""},
           {"unmarked", "has no mark"},
           {"wrong", "has no mark"},
           {"link", "is a symbolic link"},
           {"dangling", "is a symbolic link"},
           {"empty", "has no mark"},
           {"linked", "holds a symbolic link \"data\""}}) {
    EXPECT_REFUSED(write_new(name), kInvalidArgument, part);
    EXPECT_REFUSED(AtomicDirectory::check(at(name), true, kKind), kInvalidArgument, part);
    EXPECT_FALSE(fs::exists(at(name + ".partial"))) << name;
  }
  EXPECT_EQ(text("home/docs/thesis"), "x");
  EXPECT_EQ(text("extra/notes.txt"), "x");
  EXPECT_EQ(text("real/data"), "old");
  for (const char* name : {".", "..", "/", "", "d/.", "d/.."}) {
    EXPECT_REFUSED(AtomicDirectory(name, true, kKind), kInvalidArgument, "the name of a new");
  }
}

TEST_F(OutputTest, AFileThatJoinsTheOldDirectoryMeanwhileIsKept) {
  make_ours("d");
  AtomicDirectory directory(at("d"), true, kKind);
  write("d/notes.txt", "x");
  EXPECT_REFUSED(directory.commit(), kInvalidArgument, "notes.txt");
  directory.discard();
  EXPECT_EQ(text("d/notes.txt"), "x");
  EXPECT_EQ(text("d/data"), "old");
}

TEST_F(OutputTest, AnOutputThatAppearsMeanwhileIsKept) {
  AtomicDirectory directory(at("d"), false, kKind);
  fs::create_directories(at("d"));
  EXPECT_REFUSED(directory.commit(), kInvalidArgument, "exists already");
  directory.discard();
  EXPECT_TRUE(fs::exists(at("d")));
}

TEST_F(OutputTest, NoForeignWorkDirectoryIsUsed) {
  write("notes/mark", "ours");
  fs::rename(at("notes"), at("a.partial"));
  write("a.partial/notes.txt", "mine");
  write("victim/data", "precious");
  fs::create_directory_symlink("victim", at("b.partial"));
  write("c.partial/data", "mine");  // a known name alone is no mark
  write("d.partial", "a file");
  make_ours("e.partial");
  fs::remove(at("e.partial/data"));
  fs::create_hard_link(at("victim/data"), at("e.partial/data"));
  make_ours("f.partial");
  fs::remove(at("f.partial/data"));
  fs::create_symlink("../victim/data", at("f.partial/data"));
  write("g.partial/caravan.partial", "not empty");
  for (const auto& [name, part] :
       std::vector<std::pair<std::string, std::string>>{{"a", "holds a file \"notes.txt\""},
                                                        {"b", "is no directory"},
                                                        {"c", "has no mark"},
                                                        {"d", "is no directory"},
                                                        {"e", "has a second name"},
                                                        {"f", "holds a symbolic link \"data\""},
                                                        {"g", "has no mark"}}) {
    EXPECT_REFUSED(write_new(name), kInvalidArgument, part);
    EXPECT_FALSE(fs::exists(at(name))) << name;
  }
  EXPECT_EQ(text("a.partial/notes.txt"), "mine");
  EXPECT_EQ(text("c.partial/data"), "mine");
  EXPECT_EQ(text("victim/data"), "precious");
  fs::create_directories(at("h.partial"));  // empty: of a run that was killed at once
  write_new("h");
  EXPECT_EQ(text("h/data"), "new");
  if (::geteuid() == 0) {
    make_ours("i.partial");
    ASSERT_EQ(::chown(at("i.partial").c_str(), 12345, 12345), 0);
    EXPECT_REFUSED(write_new("i"), kInvalidArgument, "belongs to user 12345");
  }
}

TEST_F(OutputTest, LinksPlantedWhileWorkingAreNotFollowed) {
  write("victim", "precious");
  AtomicDirectory directory(at("d"), false, kKind);
  fs::create_hard_link(at("victim"), at("d.partial/data"));
  EXPECT_REFUSED(open_own_file(directory.file("data")), kInvalidArgument, "second name");
  fs::remove(at("d.partial/data"));
  fs::create_symlink(at("victim"), at("d.partial/data"));
  EXPECT_REFUSED(open_own_file(directory.file("data")), kInvalidArgument, "symbolic link");
  EXPECT_REFUSED(directory.clear(), kInvalidArgument, "holds a symbolic link");
  // Another directory under the same name gets nothing.
  fs::rename(at("d.partial"), at("moved"));
  fs::create_directories(at("d.partial"));
  AtomicFile file(directory.file("mark"));
  file.commit();
  EXPECT_TRUE(fs::exists(at("moved/mark")));
  EXPECT_TRUE(fs::is_empty(at("d.partial")));
  fs::remove(at("moved/data"));
  EXPECT_REFUSED(directory.commit(), kIo, "moved away");
  directory.discard();
  EXPECT_TRUE(fs::exists(at("d.partial")));
  EXPECT_EQ(text("victim"), "precious");
}

TEST_F(OutputTest, RoomIsAskedForBeforeTheWork) {
  AtomicDirectory directory(at("d"), false, kKind);
  directory.check_room(1);
  EXPECT_REFUSED(directory.check_room(uint64_t{1} << 62), kIo, "GB free");
  directory.discard();
}

TEST_F(OutputTest, AnOutputDirectoryStaysApartFromTheInputs) {
  write("m/model/weights", "w");
  write("blobs/b", "w");
  fs::create_directory_symlink("m", at("alias"));
  fs::create_symlink("../../blobs/b", at("m/model/linked"));
  const std::vector<InputPath> inputs = {{"--model", at("m/model")}, {"--data", "-"}, {"-x", ""}};
  const auto refused = [&](const std::string& output, const char* part) {
    EXPECT_REFUSED(check_output_directory("--output", output, inputs), kInvalidArgument, part);
  };
  refused(at("m/model"), "is --model");
  refused(at("m/model///"), "is --model");
  refused(at("m/./x/../model"), "--model");
  refused(at("alias/model"), "is --model");
  refused(at("m/model/new"), "lies in --model");
  refused(at("alias/model/a/b"), "lies in --model");
  refused(at("m"), "which would be lost");
  refused(at("alias"), "which would be lost");
  refused(at("blobs"), "which would be lost");
  refused("/", "which would be lost");
  check_output_directory("--output", at("m/other"), inputs);
  check_output_directory("--output", at("m/model2"), inputs);
  check_output_directory("--output", at("new/a/b"), inputs);
  EXPECT_REFUSED(
      check_output_directory("--output", at("o"), {{"--model", at("o.partial")}, inputs[0]}),
      kInternal, "no error");  // nothing is there
  fs::create_directories(at("o.partial"));
  EXPECT_REFUSED(check_output_directory("--output", at("o"), {{"--model", at("o.partial")}}),
                 kInvalidArgument, "is --model");
}

TEST_F(OutputTest, AnOutputFileIsNoInput) {
  write("m/tokenizer.json", "t");
  write("m/sub/rows.jsonl", "r");
  write("data", "d");
  fs::create_hard_link(at("data"), at("twin"));
  fs::create_symlink("data", at("link"));
  const std::vector<InputPath> inputs = {{"--model", at("m")}, {"--data", at("data")}};
  for (const char* name : {"m/tokenizer.json", "m/sub/rows.jsonl", "data", "twin", "link"}) {
    EXPECT_REFUSED(check_output_file("--output", at(name), inputs), kInvalidArgument,
                   "would be lost");
  }
  check_output_file("--output", at("m/new"), inputs);
  check_output_file("--output", at("other"), inputs);
  check_output_file("--output", "/dev/stdout", inputs);
}

TEST_F(OutputTest, ErrorsOfTheSystemHaveTheirCodes) {
  write("file", "x");
  fs::create_symlink("loop", at("loop"));
  EXPECT_REFUSED(MappedFile::open(at("none")), kNotFound, "/none: no such file");
  EXPECT_REFUSED(MappedFile::open(at("file/x")), kNotFound,
                 "/file/x: cannot open: Not a directory");
  EXPECT_REFUSED(MappedFile::open(at("loop")), kNotFound, "Too many levels");
  EXPECT_REFUSED(MappedFile::open(at("")), kInvalidArgument, "is a directory, expected a file");
  EXPECT_REFUSED(MappedFile::open(at(std::string(300, 'x'))), kInvalidArgument, "too long");
  EXPECT_REFUSED(check_directory(at("file")), kNotFound, "it is a file");
  EXPECT_REFUSED(check_directory(at("none")), kNotFound, "no such directory");
  EXPECT_FALSE(path_exists(at("none")));
  EXPECT_TRUE(path_exists(at("file")));
  EXPECT_EQ(os_error_code(EACCES), ErrorCode::kPermission);
  EXPECT_EQ(os_error_code(EPERM), ErrorCode::kPermission);
  EXPECT_EQ(os_error_code(ENOSPC), ErrorCode::kIo);
  EXPECT_EQ(os_error_code(EROFS), ErrorCode::kIo);
}

/// Exit status of `body` in a child process; negative: a signal.
template <typename Body>
int status_of_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::byte read_byte(const std::byte* at) { return *const_cast<const volatile std::byte*>(at); }

TEST_F(OutputTest, ACutMappingEndsTheProcessWithItsStatus) {
  write("m", std::string(20000, 'x'));
  const auto cut_and_read = [&](int status) {
    end_on_mapping_fault(status);
    const UnfinishedFile unfinished(at("temporary"), UnfinishedFile::OnSignal::kRemove);
    write("temporary", "t");
    const MappedFile file = MappedFile::open(at("m"));
    fs::resize_file(at("m"), 4096);
    read_byte(file.data() + 16384);
  };
  EXPECT_EQ(status_of_child([&] { cut_and_read(74); }), 74);
  EXPECT_FALSE(fs::exists(at("temporary")));
  write("m", std::string(20000, 'x'));
  EXPECT_EQ(status_of_child([&] { cut_and_read(75); }), 75);
  // A fault elsewhere is not ours.
  EXPECT_EQ(status_of_child([&] {
              std::signal(SIGBUS, [](int) { ::_exit(99); });
              end_on_mapping_fault(74);
              const int fd = ::open(at("m").c_str(), O_RDWR);
              auto* bytes =
                  static_cast<std::byte*>(::mmap(nullptr, 20000, PROT_READ, MAP_SHARED, fd, 0));
              read_byte(bytes + 16384);
            }),
            99);
}

TEST_F(OutputTest, ASignalRemovesTheTemporaryFile) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    EXPECT_EQ(status_of_child([&] {
                std::signal(signal, SIG_DFL);
                tidy_on_termination();
                AtomicFile file(at("out"));
                file.write("half");
                if (fs::is_empty(folder_)) ::_exit(1);
                std::raise(signal);
              }),
              -signal);
    EXPECT_TRUE(fs::is_empty(folder_)) << signal;
  }
}

}  // namespace
}  // namespace caravan
