#include "eval/logits_dump.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "convert/test_models.h"
#include "core/error.h"

namespace caravan {
namespace {

using Spec = SafetensorsWriter::Spec;

class LogitsDumpTest : public TempDirectoryTest {
 protected:
  /// A file of zeros in the place of the logits, with these integers.
  std::string write_file(const std::vector<Spec>& specs,
                         const std::vector<std::vector<int32_t>>& integers) const {
    const std::string path = at("dump.safetensors");
    SafetensorsWriter writer(path, specs, {});
    size_t next = 0;
    for (const Spec& spec : specs) {
      std::vector<char> bytes(static_cast<size_t>(spec.shape.num_elements()) *
                              dtype_size(spec.dtype));
      if (spec.dtype == DType::kI32 && next < integers.size()) {
        EXPECT_EQ(bytes.size(), integers[next].size() * sizeof(int32_t)) << spec.name;
        if (!bytes.empty()) std::memcpy(bytes.data(), integers[next].data(), bytes.size());
        ++next;
      }
      writer.write(bytes.data(), bytes.size());
    }
    writer.finish();
    return path;
  }

  static void refuses(const std::string& path, ErrorCode code, const std::string& text) {
    try {
      LogitsDump::open(path);
      ADD_FAILURE() << "accepted; wanted: " << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), code) << e.what();
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
    }
  }
};

TEST_F(LogitsDumpTest, GivesBackWhatWasWritten) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    const std::string path = at(fmt::format("{}.safetensors", dtype_name(dtype)));
    const std::vector<std::vector<float>> rows = {
        {1.5f, -2, 0.25f}, {3, 4, -INFINITY}, {-65504, 0, 7}, {0.1f, 0.2f, 0.3f}};
    LogitsDumpWriter writer(
        path, {.input_ids = {2, 0, 1, 1}, .window_start = {0, 3}, .vocab_size = 3, .dtype = dtype});
    EXPECT_FALSE(std::filesystem::exists(path)) << "there before it is whole";
    for (const auto& row : rows) writer.write_row(row);
    writer.finish();
    EXPECT_GE(static_cast<int64_t>(std::filesystem::file_size(path)),
              LogitsDumpWriter::num_bytes(4, 2, 3, dtype));

    LogitsDump dump = LogitsDump::open(path);
    EXPECT_EQ(std::vector<int32_t>(dump.input_ids().begin(), dump.input_ids().end()),
              (std::vector<int32_t>{2, 0, 1, 1}));
    EXPECT_EQ(dump.dtype(), dtype);
    EXPECT_EQ(dump.vocab_size(), 3);
    ASSERT_EQ(dump.num_windows(), 2);
    EXPECT_EQ(dump.window_end(0), 3);
    EXPECT_EQ(dump.window_begin(1), 3);
    EXPECT_EQ(dump.window_end(1), 4);
    std::vector<float> row(3);
    for (size_t r = 0; r < rows.size(); ++r) {
      dump.read_row(static_cast<int64_t>(r), row);
      for (size_t i = 0; i < 3; ++i) {
        const float wanted = dtype == DType::kF32 ? rows[r][i] : f16_to_f32(f32_to_f16(rows[r][i]));
        EXPECT_EQ(row[i], wanted) << r << " " << i;
      }
      dump.release_before(static_cast<int64_t>(r) + 1);
    }
    dump.read_row(0, row);  // releasing loses nothing
    EXPECT_EQ(row[0], 1.5f);
  }
}

TEST_F(LogitsDumpTest, RefusesWhatFloat16CannotHold) {
  LogitsDumpWriter writer(
      at("dump.safetensors"),
      {.input_ids = {0}, .window_start = {0}, .vocab_size = 1, .dtype = DType::kF16});
  EXPECT_THROW(writer.write_row(std::vector<float>{70000}), Error);
  EXPECT_THROW(LogitsDumpWriter(
                   at("dump.safetensors"),
                   {.input_ids = {0}, .window_start = {0}, .vocab_size = 1, .dtype = DType::kBF16}),
               Error);
}

TEST_F(LogitsDumpTest, RefusesADiskThatIsTooSmall) {
  LogitsDumpWriter::Contents contents;
  contents.input_ids.resize(1'000'000);
  contents.window_start = {0};
  contents.vocab_size = kMaxVocabSize;  // 67 TB
  try {
    LogitsDumpWriter writer(at("dump.safetensors"), contents);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(e.what()).find("67108.868 GB"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(std::filesystem::is_empty(root_)) << "something was left behind";
  contents.vocab_size = INT64_MAX / 2;
  EXPECT_THROW(LogitsDumpWriter(at("dump.safetensors"), contents), Error);
}

TEST_F(LogitsDumpTest, AnUnfinishedDumpLeavesNothing) {
  {
    LogitsDumpWriter writer(at("dump.safetensors"),
                            {.input_ids = {0, 0}, .window_start = {0}, .vocab_size = 1});
    writer.write_row(std::vector<float>{1});
    EXPECT_THROW(writer.finish(), Error);
  }
  EXPECT_TRUE(std::filesystem::is_empty(root_));
}

TEST_F(LogitsDumpTest, MalformedFiles) {
  const Spec ids{"input_ids", DType::kI32, Shape{4}};
  const Spec starts{"window_start", DType::kI32, Shape{2}};
  const Spec logits{"logits", DType::kF32, Shape{4, 3}};
  const std::vector<std::vector<int32_t>> good = {{0, 1, 2, 0}, {0, 2}};
  struct Case {
    std::vector<Spec> specs;
    std::vector<std::vector<int32_t>> integers;
    ErrorCode code;
    const char* text;
  };
  const ErrorCode corrupt = ErrorCode::kCorrupt;
  const ErrorCode unsupported = ErrorCode::kUnsupported;
  const std::vector<Case> cases = {
      {{starts, logits}, {{0, 2}}, corrupt, "no tensor \"input_ids\""},
      {{ids, logits}, {{0, 1, 2, 0}}, corrupt, "no tensor \"window_start\""},
      {{ids, starts}, good, corrupt, "no tensor \"logits\""},
      {{{"input_ids", DType::kI64, Shape{4}}, starts, logits},
       {{0, 2}},
       unsupported,
       "input_ids: dtype int64, expected int32"},
      {{ids, {"window_start", DType::kF32, Shape{2}}, logits},
       {{0, 1, 2, 0}},
       unsupported,
       "window_start: dtype float32"},
      {{ids, starts, {"logits", DType::kBF16, Shape{4, 3}}},
       good,
       unsupported,
       "logits: dtype bfloat16, expected float32 or float16"},
      {{{"input_ids", DType::kI32, Shape{2, 2}}, starts, logits},
       good,
       corrupt,
       "input_ids: shape [2,2]"},
      {{ids, {"window_start", DType::kI32, Shape{2, 1}}, logits},
       good,
       corrupt,
       "window_start: shape [2,1]"},
      {{ids, starts, {"logits", DType::kF32, Shape{12}}}, good, corrupt, "logits: shape [12]"},
      {{ids, starts, {"logits", DType::kF32, Shape{1, 4, 3}}},
       good,
       corrupt,
       "logits: shape [1,4,3]"},
      {{ids, starts, {"logits", DType::kF32, Shape{3, 3}}},
       good,
       corrupt,
       "logits: 3 rows for 4 input_ids"},
      {{ids, starts, {"logits", DType::kF32, Shape{4, 0}}}, good, corrupt, "expected a vocabulary"},
      {{{"input_ids", DType::kI32, Shape{0}}, starts, {"logits", DType::kF32, Shape{0, 3}}},
       {{}, {0, 2}},
       corrupt,
       "logits: 0 rows for 0 input_ids"},
      {{ids, {"window_start", DType::kI32, Shape{0}}, logits},
       {{0, 1, 2, 0}, {}},
       corrupt,
       "window_start: expected it to begin with 0"},
      {{ids, starts, logits}, {{0, 1, 2, 0}, {1, 2}}, corrupt, "expected it to begin with 0"},
      {{ids, starts, logits}, {{0, 1, 2, 0}, {0, 0}}, corrupt, "window_start[1]: got 0"},
      {{ids, starts, logits}, {{0, 1, 2, 0}, {0, 4}}, corrupt, "window_start[1]: got 4"},
      {{ids, starts, logits}, {{0, 1, 2, 0}, {0, -1}}, corrupt, "window_start[1]: got -1"},
      {{ids, starts, logits}, {{0, 3, 2, 0}, {0, 2}}, corrupt, "input_ids[1]: got 3"},
      {{ids, starts, logits}, {{0, 1, -5, 0}, {0, 2}}, corrupt, "input_ids[2]: got -5"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    refuses(write_file(c.specs, c.integers), c.code, c.text);
  }
  EXPECT_NO_THROW(LogitsDump::open(write_file({ids, starts, logits}, good)));
}

TEST_F(LogitsDumpTest, TruncatedFiles) {
  const std::string path = write_file({{"input_ids", DType::kI32, Shape{4}},
                                       {"window_start", DType::kI32, Shape{2}},
                                       {"logits", DType::kF16, Shape{4, 3}}},
                                      {{0, 1, 2, 0}, {0, 2}});
  const std::string bytes = file_bytes(path);
  for (size_t size = 0; size < bytes.size(); ++size) {
    std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), size);
    EXPECT_THROW(LogitsDump::open(path), Error) << size << " of " << bytes.size() << " bytes";
  }
  const std::string other = at("dump.bin");
  std::ofstream(other, std::ios::binary) << bytes;
  EXPECT_THROW(LogitsDump::open(other), Error);
  EXPECT_THROW(LogitsDump::open(at("absent.safetensors")), Error);
}

}  // namespace
}  // namespace caravan
