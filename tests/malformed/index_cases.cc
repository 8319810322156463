#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "format/tensor_source.h"
#include "tests/malformed/builders.h"
#include "tests/malformed/cases.h"

namespace caravan::test {

namespace fs = std::filesystem;

namespace {

constexpr auto kCorrupt = ErrorCode::kCorrupt;

void read_index(const std::string& input) { parse_weight_index(input, "FILE"); }

// A directory with that index and shards: 1.safetensors with "a", 2.safetensors with "b" and
// 3.safetensors with "a" again.
void read_index_directory(const std::string& input) {
  const fs::path directory =
      fs::temp_directory_path() / fmt::format("caravan_malformed_{}", ::getpid());
  fs::create_directories(directory);
  const auto write = [&](const char* name, const std::string& bytes) {
    std::ofstream(directory / name, std::ios::binary) << bytes;
  };
  write("1.safetensors",
        safetensors_file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  write("2.safetensors",
        safetensors_file(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  write("3.safetensors",
        safetensors_file(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4));
  write("notes.txt", "text");
  write("cut.safetensors", "1234");
  write("lfs.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n");
  write("model.safetensors.index.json", input);
  std::string message;
  ErrorCode code = ErrorCode::kInternal;
  try {
    TensorSource::open_directory(directory.string());
  } catch (const Error& error) {
    message = error.what();
    code = error.code();
  }
  fs::remove_all(directory);
  if (message.empty()) return;
  for (size_t at; (at = message.find(directory.string())) != std::string::npos;) {
    message.replace(at, directory.string().size(), "DIR");
  }
  throw Error(code, message);
}

std::string map(const std::string& pairs) {
  return "{\"metadata\":{\"total_size\":8},\"weight_map\":{" + pairs + "}}";
}

std::string shard(const std::string& json_text) { return map("\"a\":" + json_text); }

}  // namespace

std::vector<MalformedCase> index_cases() {
  const auto read = read_index;
  const auto open = read_index_directory;
  return {
      {"index_empty", kCorrupt, "FILE: offset 0: not valid JSON: incomplete JSON", "", read},
      {"index_is_an_array", kCorrupt, "FILE: got [], expected a JSON object", "[]", read},
      {"index_is_cut", kCorrupt, "FILE: offset 18: not valid JSON: incomplete JSON",
       "{\"weight_map\":{\"a\"", read},
      {"index_without_map", kCorrupt, "FILE: weight_map: got nothing, expected an object",
       "{\"metadata\":{}}", read},
      {"index_map_is_null", kCorrupt, "FILE: weight_map: got null, expected an object",
       "{\"weight_map\":null}", read},
      {"index_map_is_an_array", kCorrupt, "FILE: weight_map: got [\"a\"], expected an object",
       "{\"weight_map\":[\"a\"]}", read},
      {"index_map_is_text", kCorrupt, "FILE: weight_map: got \"a\", expected an object",
       "{\"weight_map\":\"a\"}", read},
      {"index_map_is_empty", kCorrupt, "FILE: weight_map: expected at least one tensor", map(""),
       read},
      {"index_name_twice", kCorrupt, "FILE: offset 57: the key \"a\" appears twice in one object",
       map("\"a\":\"1.bin\",\"a\":\"2.bin\""), read},
      {"index_shard_is_a_number", kCorrupt, "FILE: weight_map.a: got 1, expected a string",
       shard("1"), read},
      {"index_shard_is_null", kCorrupt, "FILE: weight_map.a: got null, expected a string",
       shard("null"), read},
      {"index_shard_is_an_array", kCorrupt,
       "FILE: weight_map.a: got [\"1.bin\"], expected a string", shard("[\"1.bin\"]"), read},
      {"index_shard_is_empty", kCorrupt, "FILE: weight_map.a: got \"\", expected a plain file name",
       shard("\"\""), read},
      {"index_shard_is_a_dot", kCorrupt,
       "FILE: weight_map.a: got \".\", expected a plain file name", shard("\".\""), read},
      {"index_shard_is_two_dots", kCorrupt,
       "FILE: weight_map.a: got \"..\", expected a plain file name", shard("\"..\""), read},
      {"index_shard_is_hidden", kCorrupt,
       "FILE: weight_map.a: got \".ssh\", expected a plain file name", shard("\".ssh\""), read},
      {"index_shard_in_the_parent", kCorrupt,
       "FILE: weight_map.a: got \"../1.bin\", expected a plain file name", shard("\"../1.bin\""),
       read},
      {"index_shard_far_up", kCorrupt,
       "FILE: weight_map.a: got \"../../../etc/passwd\", expected a plain file name",
       shard("\"../../../etc/passwd\""), read},
      {"index_shard_is_absolute", kCorrupt,
       "FILE: weight_map.a: got \"/etc/passwd\", expected a plain file name",
       shard("\"/etc/passwd\""), read},
      {"index_shard_in_a_folder", kCorrupt,
       "FILE: weight_map.a: got \"x/1.bin\", expected a plain file name", shard("\"x/1.bin\""),
       read},
      {"index_shard_through_a_folder", kCorrupt,
       "FILE: weight_map.a: got \"x/../1.bin\", expected a plain file name",
       shard("\"x/../1.bin\""), read},
      {"index_shard_with_escaped_slash", kCorrupt,
       "FILE: weight_map.a: got \"../1.bin\", expected a plain file name", shard("\"..\\/1.bin\""),
       read},
      {"index_shard_with_unicode_slash", kCorrupt,
       "FILE: weight_map.a: got \"x/1.bin\", expected a plain file name",
       shard("\"x\\u002f1.bin\""), read},
      {"index_shard_with_backslash", kCorrupt,
       "FILE: weight_map.a: got \"x\\1.bin\", expected a plain file name", shard("\"x\\\\1.bin\""),
       read},
      {"index_shard_with_zero_byte", kCorrupt,
       "FILE: weight_map.a: got \"1.bin\\x00.txt\", expected a plain file name",
       shard("\"1.bin\\u0000.txt\""), read},
      {"index_shard_missing", ErrorCode::kNotFound, "DIR/4.safetensors: no such file",
       map("\"a\":\"1.safetensors\",\"b\":\"4.safetensors\""), open},
      {"index_shard_of_another_kind", ErrorCode::kUnsupported,
       "DIR/notes.txt: expected a name that ends in .safetensors, .bin, .pt or .pth",
       map("\"a\":\"1.safetensors\",\"b\":\"notes.txt\""), open},
      {"index_shard_malformed", kCorrupt,
       "DIR/cut.safetensors: 4 bytes, expected a header length of 8 bytes",
       map("\"a\":\"1.safetensors\",\"b\":\"cut.safetensors\""), open},
      {"index_shard_is_an_lfs_pointer", kCorrupt,
       "DIR/lfs.safetensors: a Git LFS pointer, not the weights; run git lfs pull",
       map("\"a\":\"1.safetensors\",\"b\":\"lfs.safetensors\""), open},
      {"index_tensor_in_two_shards", kCorrupt,
       "DIR/model.safetensors.index.json: a is in 3.safetensors and in another shard",
       map("\"a\":\"1.safetensors\",\"b\":\"3.safetensors\""), open},
  };
}

}  // namespace caravan::test
