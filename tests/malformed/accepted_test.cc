// The files that the malformed cases start from, and unusual files that are valid all the same.

#include <gtest/gtest.h>

#include "core/error.h"
#include "format/safetensors.h"
#include "format/torch_file.h"
#include "tests/malformed/builders.h"

namespace caravan::test {
namespace {

using namespace pickle;

std::vector<TorchTensor> parse(const std::string& bytes) {
  return parse_torch_file({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}, "FILE");
}

void expect_base_tensors(const std::string& bytes) {
  const std::vector<TorchTensor> tensors = parse(bytes);
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].dtype, DType::kF32);
  EXPECT_EQ(tensors[0].shape, Shape({2}));
  EXPECT_EQ(bytes.substr(tensors[0].offset, 8), std::string(8, 'A'));
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_EQ(tensors[1].dtype, DType::kF16);
  EXPECT_EQ(tensors[1].shape, Shape({2, 3}));
  EXPECT_EQ(bytes.substr(tensors[1].offset, 12), std::string(12, 'B'));
}

// The base archive with recognizable contents.
std::vector<ZipMember> marked_members(const std::string& pickle) {
  std::vector<ZipMember> members = torch_members(pickle);
  members[2].data = std::string(8, 'A');
  members[3].data = std::string(12, 'B');
  return members;
}

std::string zip_of(const std::string& object) {
  return zip_file(marked_members(whole(object))).bytes;
}

TEST(TorchFileTest, BaseFilesAreRead) {
  expect_base_tensors(zip_file(marked_members(torch_pickle())).bytes);
  LegacyFile legacy = torch_legacy();
  legacy.storages = le64(2) + std::string(8, 'A') + le64(6) + std::string(12, 'B');
  expect_base_tensors(legacy.bytes());
}

TEST(SafetensorsTest, NullMetadataIsNone) {
  const std::string file = safetensors_file(
      R"({"__metadata__":null,"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2);
  const SafetensorsHeader header =
      parse_safetensors({reinterpret_cast<const std::byte*>(file.data()), file.size()}, "FILE");
  EXPECT_TRUE(header.metadata.empty());
  ASSERT_EQ(header.entries.size(), 1u);
  EXPECT_EQ(header.entries[0].name, "a");
}

TEST(TorchFileTest, StorageKeysOf64BytesAreRead) {
  std::vector<ZipMember> members = marked_members(torch_pickle());
  const std::string key(64, '1');
  members[3].name = "m/data/" + key;
  const std::string pickle =
      whole(state_dict({{"b", tensor(storage("HalfStorage", key, 6), 0, {2, 3}, {3, 1})}}));
  members[0].data = pickle;
  EXPECT_EQ(parse(zip_file(members).bytes).size(), 1u);
}

TEST(TorchFileTest, Zip64RecordsAndFieldsAreRead) {
  std::vector<ZipMember> members = marked_members(torch_pickle());
  expect_base_tensors(zip_file(members, true).bytes);
  for (ZipMember& member : members) member.is_zip64 = true;
  expect_base_tensors(zip_file(members, true).bytes);
  expect_base_tensors(zip_file(members, false).bytes);
}

TEST(TorchFileTest, AnArchiveCommentIsSkipped) {
  const ZipFile zip = zip_file(marked_members(torch_pickle()));
  expect_base_tensors(patched(zip.bytes, zip.end + 20, le16(7)) + "comment");
}

TEST(TorchFileTest, FolderHasAnyNameAndByteorderMayBeMissing) {
  std::vector<ZipMember> members = marked_members(torch_pickle());
  members.erase(members.begin() + 1);
  for (ZipMember& member : members) member.name = "pytorch_model" + member.name.substr(1);
  expect_base_tensors(zip_file(members).bytes);
}

TEST(TorchFileTest, TensorsMayShareAStorage) {
  const std::string shared = storage("HalfStorage", "1", 6);
  const std::string bytes = zip_of(state_dict({{"x", tensor(shared, 0, {2, 3}, {3, 1})},
                                               {"y", tensor(shared, 3, {3}, {1})},
                                               {"z", tensor(shared, 0, {2, 3}, {3, 1})}}));
  const std::vector<TorchTensor> tensors = parse(bytes);
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[1].offset, tensors[0].offset + 6);
  EXPECT_EQ(tensors[2].offset, tensors[0].offset);
}

TEST(TorchFileTest, StridesOfSizeOneAndOfEmptyTensorsMeanNothing) {
  const std::string floats = storage("FloatStorage", "0", 2);
  const std::vector<TorchTensor> tensors =
      parse(zip_of(state_dict({{"one", tensor(floats, 0, {1, 2, 1}, {77, 1, 5})},
                               {"empty", tensor(floats, 0, {0, 3}, {9, 9})},
                               {"scalar", tensor(floats, 1, {}, {})}})));
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].shape, Shape({1, 2, 1}));
  EXPECT_EQ(tensors[1].shape, Shape({0, 3}));
  EXPECT_EQ(tensors[2].shape.rank(), 0);
}

TEST(TorchFileTest, StridesAreKeptWhereTheyMeanSomething) {
  const std::string halves = storage("HalfStorage", "1", 6);
  const std::vector<TorchTensor> tensors =
      parse(zip_of(state_dict({{"plain", tensor(halves, 0, {2, 3}, {3, 1})},
                               {"transposed", tensor(halves, 0, {3, 2}, {1, 3})},
                               {"expanded", tensor(halves, 5, {4, 4}, {0, 0})},
                               {"every_second", tensor(halves, 1, {3}, {2})},
                               {"one_row", tensor(halves, 0, {1, 6}, {77, 1})},
                               {"last", tensor(halves, 5, {}, {})}})));
  ASSERT_EQ(tensors.size(), 6u);
  EXPECT_FALSE(tensors[0].strides.has_value());
  EXPECT_EQ(tensors[1].strides, (Strides{1, 3}));
  EXPECT_EQ(tensors[2].strides, (Strides{0, 0}));
  EXPECT_EQ(tensors[3].strides, (Strides{2}));
  EXPECT_EQ(tensors[3].offset, tensors[0].offset + 2);
  EXPECT_FALSE(tensors[4].strides.has_value());
  EXPECT_FALSE(tensors[5].strides.has_value());
}

// Every opcode and global of plain values, beside the state dict that is read.
TEST(TorchFileTest, PlainValuesOfATrainingCheckpointAreSkipped) {
  const std::string number = "G" + le64(0x3ff0000000000000);
  const std::string values[] = {
      number,
      "\x8a\x10" + std::string(16, '\x01'),
      "\x8b" + le32(300) + std::string(300, '\x01'),
      "\x8b" + le32(2) + "\x01\x02",
      "B" + le32(3) + "abc",
      "C\x03"
      "abc",
      "\x8e" + le64(3) + "abc",
      "\x96" + le64(3) + "abc",
      "\x8d" + le64(3) + "abc",
      "T" + le32(3) + "abc",
      "U\x03"
      "abc",
      "\x8f(" + number + "K\x01\x90",
      "(" + number + "\x91",
      "](" + number + "N\x88\x89" + "e",
      tuple({number, integer(1)}),
      global("builtins", "set") + tuple({"]"}) + "R",
      global("__builtin__", "frozenset") + tuple({"]"}) + "R",
      global("__builtin__", "complex") + tuple({number, number}) + "R",
      global("_codecs", "encode") + tuple({text("abc"), text("latin1")}) + "R",
      global("torch", "device") + tuple({text("cuda"), integer(0)}) + "R",
      global("torch", "Size") + tuple({integers({2, 3})}) + "R",
      global("torch", "bfloat16"),
      // A tensor without a name is not looked at: this one exceeds its storage.
      tuple({tensor(storage("FloatStorage", "0", 2), 0, {3, 3, 3, 3, 3, 3}, {9, 9, 9, 9, 9, 9})}),
  };
  const std::string model =
      state_dict({{"a", tensor(storage("FloatStorage", "0", 2), 0, {2}, {1})}});
  for (const std::string& value : values) {
    for (const char* key : {"model", "state_dict", "model_state_dict", "module"}) {
      const std::vector<TorchTensor> tensors =
          parse(zip_of(state_dict({{"optimizer", value}, {key, model}, {"after", value}})));
      ASSERT_EQ(tensors.size(), 1u);
      EXPECT_EQ(tensors[0].name, "a");
    }
  }
}

TEST(TorchFileTest, ParametersAreTheirTensors) {
  const std::string inner = tensor(storage("FloatStorage", "0", 2), 0, {2}, {1});
  const std::vector<TorchTensor> tensors =
      parse(zip_of(state_dict({{"p", global("torch._utils", "_rebuild_parameter") +
                                         tuple({inner, "\x88", ordered_dict()}) + "R"}})));
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].shape, Shape({2}));
}

TEST(TorchFileTest, MetadataOfTheStateDictIsDropped) {
  const std::string metadata = "}" + text("_metadata") + ordered_dict() + "(" + text("") + "}" +
                               text("version") + integer(1) + "su" + "s";
  const std::string bytes = zip_of(
      state_dict({{"a", tensor(storage("FloatStorage", "0", 2), 0, {2}, {1})}}) + metadata + "b");
  EXPECT_EQ(parse(bytes).size(), 1u);
}

TEST(TorchFileTest, Protocol4SaysTheSame) {
  const auto word = [](const std::string& value) {
    return "\x8c" + std::string(1, static_cast<char>(value.size())) + value + "\x94";
  };
  const auto named = [&](const std::string& module, const std::string& name) {
    return word(module) + word(name) + "\x93\x94";
  };
  const auto saved = [&](const char* type, const char* key, int64_t count,
                         const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
    return named("torch._utils", "_rebuild_tensor_v2") + "(" + "(" + word("storage") +
           named("torch", type) + word(key) + word("cpu") + integer(count) + "tQ" + integer(0) +
           integers(sizes) + integers(strides) + "\x89" + named("collections", "OrderedDict") +
           ")R" + "tR";
  };
  const std::string body = "}(" + word("a") + saved("FloatStorage", "0", 2, {2}, {1}) + word("b") +
                           saved("HalfStorage", "1", 6, {2, 3}, {3, 1}) + "u.";
  expect_base_tensors(zip_file(marked_members("\x80\x04\x95" + le64(body.size()) + body)).bytes);
}

TEST(TorchFileTest, EveryStorageTypeHasItsDtype) {
  const std::pair<const char*, DType> types[] = {
      {"DoubleStorage", DType::kF64}, {"FloatStorage", DType::kF32},
      {"HalfStorage", DType::kF16},   {"BFloat16Storage", DType::kBF16},
      {"LongStorage", DType::kI64},   {"IntStorage", DType::kI32},
      {"ShortStorage", DType::kI16},  {"CharStorage", DType::kI8},
      {"ByteStorage", DType::kU8},    {"BoolStorage", DType::kBool}};
  for (const auto& [name, dtype] : types) {
    const auto count = static_cast<int64_t>(8 / dtype_size(dtype));  // data/0 has 8 bytes
    const std::vector<TorchTensor> tensors =
        parse(zip_of(state_dict({{"t", tensor(storage(name, "0", count), 0, {count}, {1})}})));
    ASSERT_EQ(tensors.size(), 1u);
    EXPECT_EQ(tensors[0].dtype, dtype);
  }
}

}  // namespace
}  // namespace caravan::test
