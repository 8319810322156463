#include "format/weight_check.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "core/error.h"
#include "core/file_watch.h"
#include "core/not_finite.h"
#include "format/safetensors.h"

namespace caravan {
namespace {

std::string message_of(const std::function<void()>& function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorrupt) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return "";
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(TensorHasherTest, ChunksAreThoseOfTheBytesHoweverTheyCome) {
  std::string text(2 * kChecksumChunk + 12345, '\0');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  const std::span<const std::byte> all = bytes_of(text);
  for (const size_t piece : {size_t{1} << 20, size_t{999'983}, text.size()}) {
    TensorHasher hasher;
    for (size_t at = 0; at < all.size(); at += piece) {
      hasher.update(all.subspan(at, std::min(piece, all.size() - at)));
    }
    EXPECT_EQ(hasher.digest(), xxh3(all));
    const std::vector<uint64_t> chunks = hasher.finish().chunks;
    ASSERT_EQ(chunks.size(), 3u);
    for (size_t i = 0; i < 3; ++i) {
      const size_t at = i * kChecksumChunk;
      EXPECT_EQ(chunks[i],
                xxh3(all.subspan(at, std::min<size_t>(kChecksumChunk, all.size() - at))));
    }
  }
  EXPECT_TRUE(TensorHasher().finish().chunks.empty());
}

// XXH3-64 of known texts, from the library's own tables (xxhsum -H3).
TEST(ChecksumTest, IsXxh3WhateverInstructionsItUses) {
  EXPECT_EQ(checksum_text(xxh3({})), "2d06800538d394c2");
  Xxh3 pieces;
  const std::string text(100'000, 'x');
  pieces.update(bytes_of(text).first(70'001));
  pieces.update(bytes_of(text).subspan(70'001));
  EXPECT_EQ(pieces.digest(), xxh3(bytes_of(text)));
}

TEST(ChecksumTableTest, IsReadAsItWasWritten) {
  FileChecksums file;
  file.header = 5;
  file.tensors["a"].chunks = {1, 0xffffffffffffffffull};
  file.tensors["b"].chunks = {};
  const std::vector<FileChecksums> read =
      parse_checksums(checksums_to_json({file, {5, {}}}), "f", 2);
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0].header, 5u);
  EXPECT_EQ(read[0].tensors.at("a").chunks, file.tensors["a"].chunks);
  EXPECT_TRUE(read[0].tensors.at("b").chunks.empty());
  EXPECT_TRUE(read[1].tensors.empty());
}

TEST(ChecksumTableTest, MalformedTablesAreRefusedByField) {
  const auto parse = [](const char* text) {
    return message_of([&] { parse_checksums(parse_json(text, "f").as_object(), "f", 1); });
  };
  EXPECT_NE(parse(R"({"chunk_bytes": 4194304})").find("checksums.ranks"), std::string::npos);
  EXPECT_NE(parse(R"({"chunk_bytes": 4194304, "ranks": []})").find("got 0 files, expected 1"),
            std::string::npos);
  EXPECT_NE(parse(R"({"chunk_bytes": 4194304, "ranks": [7]})").find("expected an object"),
            std::string::npos);
  EXPECT_NE(parse(R"({"chunk_bytes": 4194304, "ranks": [{"header": "12", "tensors": {}}]})")
                .find("ranks.0.header"),
            std::string::npos);
  EXPECT_NE(parse(R"({"chunk_bytes": 4194304, "ranks": [{"header": "0123456789abcdef",
                      "tensors": {"w": "0123456789abcdef01"}}]})")
                .find("ranks.0.tensors.w"),
            std::string::npos);
  EXPECT_THROW(
      parse_checksums(parse_json(R"({"chunk_bytes": 1, "ranks": []})", "f").as_object(), "f", 1),
      Error);
}

TEST(ConfigChecksumTest, EveryFlippedBitOfTheTextChangesIt) {
  const std::string text =
      with_config_checksum("{\"a\": 1,\n\"config_xxh3\": \"0000000000000000\",\n\"b\": 2}\n");
  const size_t at = text.find("config_xxh3\": \"") + 15;
  const std::string stored = text.substr(at, 16);
  const auto same = [&](const std::string& changed) {
    const ConfigChecksum checksum = config_checksum_of(changed, stored, "f");
    return checksum.stored == checksum.computed;
  };
  EXPECT_TRUE(same(text));
  for (size_t i = 0; i < text.size(); ++i) {
    if (i >= at && i < at + 16) continue;  // the field itself: compared, not hashed
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = text;
      changed[i] = static_cast<char>(changed[i] ^ (1 << bit));
      EXPECT_FALSE(same(changed)) << i;
    }
  }
}

// Against the conversion itself: every 16-bit number, and float32 around the limits.
TEST(NotFiniteTest, IsWhatTheConversionMakes) {
  const auto expect_as_converted = [](const void* src, DType from, DType to) {
    float converted = 0;  // wide enough for all
    convert_elements(src, from, &converted, to, 1);
    const bool is_finite = std::isfinite(load_as_f32(&converted, to, 0));
    EXPECT_EQ(first_not_finite(src, from, to, 1).has_value(), !is_finite)
        << load_as_f32(src, from, 0) << " of " << dtype_name(from) << " as " << dtype_name(to);
  };
  for (const DType to : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const auto half = static_cast<uint16_t>(bits);
      expect_as_converted(&half, DType::kF16, to);
      expect_as_converted(&half, DType::kBF16, to);
    }
    for (const double limit : {65504.0, 65520.0, 65536.0, 3.3895313892515355e38, 3.4e38, 1e300}) {
      for (const double sign : {1.0, -1.0}) {
        float value = static_cast<float>(sign * limit);
        for (int i = -3; i <= 3; ++i) {
          float near = value;
          for (int n = 0; n < std::abs(i); ++n) {
            near = std::nextafter(near, i < 0 ? 0.0f : static_cast<float>(sign) * INFINITY);
          }
          expect_as_converted(&near, DType::kF32, to);
          const double wide = near;
          expect_as_converted(&wide, DType::kF64, to);
        }
      }
    }
  }
  // The first of many, without alignment.
  std::vector<std::byte> memory(1 + 10'000 * sizeof(float));
  const float bad = NAN;
  std::memcpy(memory.data() + 1 + 7001 * sizeof(float), &bad, sizeof(bad));
  std::memcpy(memory.data() + 1 + 9001 * sizeof(float), &bad, sizeof(bad));
  EXPECT_EQ(first_not_finite(memory.data() + 1, DType::kF32, DType::kF16, 10'000), 7001u);
}

/// A checkpoint file of three tensors, one of several chunks, and its table.
class WeightFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ = std::filesystem::temp_directory_path() /
                 fmt::format("caravan-weights-{}-{}", info->name(), ::getpid());
    std::filesystem::create_directories(directory_);
    dir_.path = directory_.string();
    dir_.kind = ModelDirKind::kCheckpoint;
    SafetensorsWriter writer(dir_.rank_path(0),
                             {{"big", DType::kF32, Shape{kBig}},
                              {"half", DType::kF16, Shape{5}},
                              {"small", DType::kF32, Shape{3}}},
                             {{"note", "harmless"}}, 4096);
    FileChecksums table;
    for (const auto& [name, num_bytes] :
         {std::pair<const char*, size_t>{"big", kBig * 4}, {"half", 10}, {"small", 12}}) {
      std::string bytes(num_bytes, '\0');
      for (size_t i = 0; i < num_bytes; ++i) bytes[i] = static_cast<char>(i * 5 % 63);
      TensorHasher hasher;
      hasher.update(bytes_of(bytes));
      table.tensors[name] = hasher.finish();
      writer.write(bytes.data(), num_bytes);
    }
    writer.finish();
    table.header = writer.header_checksum();
    dir_.checksums = {table};
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void flip(uint64_t offset) {
    std::fstream file(dir_.rank_path(0), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int old = file.get();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(old ^ 1));
  }
  uint64_t offset_of(const char* name) const {
    return TensorSource::open_file(dir_.rank_path(0)).find(name)->offset;
  }

  static constexpr int64_t kBig = (3 * kChecksumChunk + 400) / 4;
  std::filesystem::path directory_;
  ModelDir dir_;
};

TEST_F(WeightFileTest, EveryRegionIsCovered) {
  EXPECT_TRUE(verify_checksums(dir_));
  const uint64_t size = std::filesystem::file_size(dir_.rank_path(0));
  const uint64_t big = offset_of("big");
  const uint64_t half = offset_of("half");
  const uint64_t note = read_text_file(dir_.rank_path(0), size).find("harmless");
  const struct {
    uint64_t offset;
    std::string text;
  } cases[] = {
      {note + 2, "checksum of the header"},  // as good as before to a parser
      {big - 1, "header"},
      {big, fmt::format("big: checksum of the {} bytes at offset {}", kChecksumChunk, big)},
      {big + kChecksumChunk * 2 + 7, fmt::format("at offset {}", big + 2 * kChecksumChunk)},
      {big + kBig * 4 - 1, "big: checksum of the 400 bytes"},
      {half - 1, fmt::format("between tensors, offset {}: got 0x01", half - 1)},
      {half + 9, "half: checksum of the 10 bytes"},
      {half + 10, "between tensors"},
      {size - 1, "small: checksum"},
  };
  for (const auto& c : cases) {
    flip(c.offset);
    const std::string message = message_of([&] { verify_checksums(dir_); });
    EXPECT_NE(message.find(c.text), std::string::npos) << c.offset << ": " << message;
    EXPECT_NE(message.find("rank0.safetensors"), std::string::npos) << message;
    flip(c.offset);
  }
  EXPECT_TRUE(verify_checksums(dir_));
}

TEST_F(WeightFileTest, ATableOfAnotherFileIsRefusedAtOnce) {
  const TensorSource source = TensorSource::open_file(dir_.rank_path(0));
  const auto message = [&] { return message_of([&] { WeightFileCheck(dir_, source, 0); }); };
  const FileChecksums good = dir_.checksums[0];
  dir_.checksums[0].tensors.erase("half");
  EXPECT_NE(message().find("half is not in the table"), std::string::npos);
  dir_.checksums[0] = good;
  dir_.checksums[0].tensors["other"].chunks = {1};
  EXPECT_NE(message().find("other is in the table of checksums but not in the file"),
            std::string::npos);
  dir_.checksums[0] = good;
  dir_.checksums[0].tensors["big"].chunks.pop_back();
  EXPECT_NE(message().find("big: 3 checksums in config.json, expected 4"), std::string::npos);
  dir_.checksums[0] = good;
  std::swap(dir_.checksums[0].tensors["half"], dir_.checksums[0].tensors["small"]);
  EXPECT_NO_THROW(WeightFileCheck(dir_, source, 0));
  EXPECT_NE(message_of([&] { verify_checksums(dir_); }).find("half: checksum"), std::string::npos);
  dir_.checksums[0] = good;
  dir_.config_checksum = ConfigChecksum{1, 2};
  EXPECT_NE(message().find("config_xxh3"), std::string::npos);
}

TEST_F(WeightFileTest, OldTablesOfWholeTensorsAreCompared) {
  const TensorSource source = TensorSource::open_file(dir_.rank_path(0));
  dir_.checksums[0].header.reset();
  for (auto& [name, checksum] : dir_.checksums[0].tensors) {
    const StoredTensor& tensor = *source.find(name);
    checksum = {.chunks = {xxh3({tensor.data(), tensor.num_bytes()})}, .is_whole = true};
  }
  EXPECT_TRUE(verify_checksums(dir_));
  // Pieces on their way to a device know nothing of the whole: it is hashed at the end.
  const StoredTensor& big = *source.find("big");
  std::vector<std::byte> copy(big.num_bytes());
  const auto copy_all = [&] {
    TensorCheck check(big, &dir_.checksums[0].tensors["big"], std::nullopt, "");
    for (size_t at = 0; at < copy.size(); at += kChecksumChunk) {
      check.copy(at, big.data() + at, copy.data() + at,
                 std::min<size_t>(kChecksumChunk, copy.size() - at));
    }
    check.finish();
  };
  EXPECT_NO_THROW(copy_all());
  flip(big.offset + kChecksumChunk + 1);
  EXPECT_NE(message_of(copy_all).find("big: checksum"), std::string::npos);
}

TEST_F(WeightFileTest, WhatIsCopiedIsWhatIsLookedAt) {
  const TensorSource source = TensorSource::open_file(dir_.rank_path(0));
  const StoredTensor& big = *source.find("big");
  TensorCheck check(big, &dir_.checksums[0].tensors["big"], std::nullopt, "again");
  std::vector<std::byte> from(big.data(), big.data() + big.num_bytes());
  std::vector<std::byte> to(from.size());
  from[kChecksumChunk + 5] ^= std::byte{4};  // not what the mapping holds
  for (size_t at = 0; at < from.size(); at += kChecksumChunk) {
    check.copy(at, from.data() + at, to.data() + at,
               std::min<size_t>(kChecksumChunk, from.size() - at));
  }
  EXPECT_EQ(from, to);
  const std::string message = message_of([&] { check.finish(); });
  EXPECT_NE(message.find(fmt::format("at offset {}", big.offset + kChecksumChunk)),
            std::string::npos)
      << message;
}

TEST_F(WeightFileTest, TheBackgroundFindsTheSameWithAnyNumberOfThreads) {
  for (const int num_threads : {0, 1, 3}) {
    const TensorSource source = TensorSource::open_file(dir_.rank_path(0));
    const WeightFileCheck file(dir_, source, 0);
    const auto checks = [&] {
      std::vector<std::unique_ptr<TensorCheck>> all;
      for (const StoredTensor* tensor : file.tensors()) {
        all.push_back(std::make_unique<TensorCheck>(*tensor, file.find(tensor->name), std::nullopt,
                                                    file.remedy()));
      }
      return all;
    };
    BackgroundCheck good(file, checks(), num_threads);
    good.wait();
    good.wait();
    flip(offset_of("small") + 3);
    BackgroundCheck bad(file, checks(), num_threads);
    for (int i = 0; i < 2; ++i) {  // it stays wrong
      EXPECT_NE(message_of([&] { bad.wait(); }).find("small: checksum"), std::string::npos);
    }
    BackgroundCheck cancelled(file, checks(), num_threads);  // ends at once, without wait()
    flip(offset_of("small") + 3);
  }
}

TEST_F(WeightFileTest, AFileThatIsWrittenToIsNoticedAndOneThatIsReplacedIsNot) {
  const FileWatch watch(dir_.rank_path(0));
  watch.check();
  std::filesystem::copy_file(dir_.rank_path(0), directory_ / "new");
  std::filesystem::rename(directory_ / "new", dir_.rank_path(0));
  watch.check();
  const FileWatch second(dir_.rank_path(0));
  const auto written = std::filesystem::last_write_time(dir_.rank_path(0));
  flip(100);
  std::filesystem::last_write_time(dir_.rank_path(0), written + std::chrono::milliseconds(3));
  EXPECT_NE(message_of([&] { second.check(); }).find("changed on disk"), std::string::npos);
  const FileWatch third(dir_.rank_path(0));
  std::filesystem::resize_file(dir_.rank_path(0), 4096);
  EXPECT_NE(message_of([&] { third.check(); }).find("4096 bytes"), std::string::npos);
}

}  // namespace
}  // namespace caravan
