#include <algorithm>
#include <cmath>

#include "convert/convert_values.h"
#include "convert/hf_converter.h"
#include "convert/model_files.h"
#include "convert/resumable_file.h"
#include "convert/test_models.h"
#include "core/json.h"
#include "format/model_dir.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

std::vector<float> values_of(const StoredTensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.shape.num_elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_as_f32(tensor.data(), tensor.dtype, i);
  }
  return values;
}

ConvertOptions options_for(const std::string& input, const std::string& output, DType dtype) {
  ConvertOptions options;
  options.input = input;
  options.output = output;
  options.dtype = dtype;
  return options;
}

class SynthTest : public TempDirectoryTest {};

TEST_F(SynthTest, ValuesDoNotDependOnPiecesShardsOrDtype) {
  const WeightSpec spec = gpt2_weight_specs(odd_config(), false)[0];
  std::vector<float> whole(1000);
  std::vector<float> part(10);
  synth_values(3, spec, 0, 1000, whole.data());
  synth_values(3, spec, 500, 10, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 500));

  SynthOptions options;
  options.config = odd_config();
  write_synthetic_model(options, at("one"));
  options.max_shard_bytes = 20'000;
  write_synthetic_model(options, at("shards"));
  EXPECT_TRUE(fs::exists(at("shards/model.safetensors.index.json")));
  options.dtype = DType::kF16;
  write_synthetic_model(options, at("half"));
  const TensorSource one = TensorSource::open_directory(at("one"));
  const TensorSource shards = TensorSource::open_directory(at("shards"));
  const TensorSource half = TensorSource::open_directory(at("half"));
  ASSERT_EQ(one.tensors().size(), shards.tensors().size());
  for (const StoredTensor& tensor : one.tensors()) {
    const std::vector<float> values = values_of(tensor);
    EXPECT_EQ(values, values_of(*shards.find(tensor.name))) << tensor.name;
    std::vector<float> rounded(values.size());
    for (size_t i = 0; i < values.size(); ++i) rounded[i] = f16_to_f32(f32_to_f16(values[i]));
    EXPECT_EQ(rounded, values_of(*half.find(tensor.name))) << tensor.name;
  }
}

TEST_F(SynthTest, MomentsAreAsDocumented) {
  constexpr int64_t kCount = 1 << 20;
  std::vector<float> values(kCount);
  const auto specs = gpt2_weight_specs(*synth_shape("gpt2"), false);
  synth_values(0, specs[0], 0, kCount, values.data());
  double sum = 0;
  double squares = 0;
  double fourth = 0;
  float largest = 0;
  for (const float v : values) {
    sum += v;
    squares += double{v} * v;
    fourth += double{v} * v * v * v;
    largest = std::max(largest, std::abs(v));
  }
  const double variance = squares / kCount;
  EXPECT_NEAR(sum / kCount, 0, 5 * 0.02 / std::sqrt(kCount));
  EXPECT_NEAR(std::sqrt(variance), 0.02, 0.02 * 0.005);
  EXPECT_NEAR(fourth / kCount / (variance * variance), 2.7, 0.03);  // 3 - 6 / (5 * 4)
  EXPECT_LE(largest, 0.02 * 3.4642);                                // 2 sqrt 3
  EXPECT_EQ(specs[2].name, "h.0.ln_1.weight");
  synth_values(0, specs[2], 0, 768, values.data());
  EXPECT_NEAR(values[0], 1, 0.07);
  EXPECT_NE(values[0], values[1]);
}

TEST_F(SynthTest, AnExistingOutputIsRefused) {
  write_odd_model(at("model"));
  EXPECT_EQ(error_of([&] { write_odd_model(at("model")); }).first, ErrorCode::kInvalidArgument);
}

class ConvertTest : public TempDirectoryTest {};

TEST_F(ConvertTest, EveryValueIsTheRoundedSource) {
  write_odd_model(at("hf"), DType::kF32, false);
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32}) {
    const std::string output = at(dtype_name(dtype));
    const ConvertResult result = convert_checkpoint(options_for(at("hf"), output, dtype));
    EXPECT_TRUE(result.has_own_head);
    EXPECT_EQ(result.num_resumed, 0);
    const ModelDir dir = open_model_dir(output);
    EXPECT_EQ(dir.kind, ModelDirKind::kCheckpoint);
    EXPECT_TRUE(dir.has_own_head);
    EXPECT_EQ(dir.config.torch_dtype, dtype);
    const TensorSource source = TensorSource::open_directory(at("hf"));
    const TensorSource checkpoint = TensorSource::open_directory(output);
    for (const WeightSpec& spec : gpt2_weight_specs(dir.config, true)) {
      const StoredTensor* got = checkpoint.find(spec.name);
      ASSERT_NE(got, nullptr) << spec.name;
      const DType wanted_dtype = spec.role == WeightRole::kVector ? DType::kF32 : dtype;
      EXPECT_EQ(got->dtype, wanted_dtype) << spec.name;
      EXPECT_EQ(got->shape, spec.shape) << spec.name;
      const StoredTensor* from = source.find("transformer." + spec.name);
      if (from == nullptr) from = source.find(spec.name);
      std::vector<char> wanted(got->num_bytes());
      convert_elements(from->data(), DType::kF32, wanted.data(), wanted_dtype,
                       static_cast<size_t>(spec.shape.num_elements()));
      EXPECT_EQ(std::memcmp(wanted.data(), got->data(), wanted.size()), 0) << spec.name;
    }
  }
}

TEST_F(ConvertTest, EverySourceFormConverts) {
  const std::string variants = CARAVAN_SOURCE_DIR "/tests/goldens/variants/";
  for (const char* name : {"camel_form", "bf16_sharded", "f16_legacy_bin", "untied_head"}) {
    ConvertOptions options;
    options.input = variants + name;
    options.output = at(name);
    const ConvertResult result = convert_checkpoint(options);
    EXPECT_GT(result.num_tensors, 20) << name;
    EXPECT_EQ(result.has_own_head, std::string(name) == "untied_head") << name;
    EXPECT_EQ(open_model_dir(at(name)).kind, ModelDirKind::kCheckpoint) << name;
  }
  EXPECT_EQ(open_model_dir(at("bf16_sharded")).config.torch_dtype, DType::kBF16);
  EXPECT_EQ(open_model_dir(at("f16_legacy_bin")).config.torch_dtype, DType::kF16);
}

TEST_F(ConvertTest, OverflowNamesTensorAndIndexAndLeavesNothing) {
  write_odd_model(at("hf"));
  poke(at("hf"), "transformer.h.1.mlp.c_fc.weight", 1234, 65520.0f);  // rounds to infinity
  const auto [code, message] =
      error_of([&] { convert_checkpoint(options_for(at("hf"), at("out"), DType::kF16)); });
  EXPECT_EQ(code, ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("h.1.mlp.c_fc.weight"), std::string::npos) << message;
  EXPECT_NE(message.find("65520"), std::string::npos) << message;
  EXPECT_NE(message.find("index 1234"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(at("out")));
  EXPECT_FALSE(fs::exists(at("out.partial")));
  EXPECT_NO_THROW(convert_checkpoint(options_for(at("hf"), at("bf16"), DType::kBF16)));
  poke(at("hf"), "transformer.h.1.mlp.c_fc.weight", 1234, 65519.0f);  // rounds to 65504
  EXPECT_NO_THROW(convert_checkpoint(options_for(at("hf"), at("f16"), DType::kF16)));
}

TEST_F(ConvertTest, NonFiniteSourceValuesAreKept) {
  write_odd_model(at("hf"));
  poke(at("hf"), "transformer.wpe.weight", 5, std::nanf(""));
  poke(at("hf"), "transformer.wpe.weight", 6, -INFINITY);
  convert_checkpoint(options_for(at("hf"), at("out"), DType::kF16));
  const TensorSource checkpoint = TensorSource::open_directory(at("out"));
  const std::vector<float> values = values_of(*checkpoint.find("wpe.weight"));
  EXPECT_TRUE(std::isnan(values[5]));
  EXPECT_EQ(values[6], -INFINITY);
}

// Four ranks of 101 tokens: 26 rows each, the last holds 23 and 3 of zeros.
TEST_F(ConvertTest, TensorParallelPartsMakeUpTheWhole) {
  constexpr int kRanks = 4;
  write_odd_model(at("hf"), DType::kF32, false);
  convert_checkpoint(options_for(at("hf"), at("whole"), DType::kF32));
  ConvertOptions options = options_for(at("hf"), at("split"), DType::kF32);
  options.tensor_parallel = kRanks;
  convert_checkpoint(options);
  const ModelDir dir = open_model_dir(at("split"));
  EXPECT_EQ(dir.tensor_parallel, kRanks);
  EXPECT_EQ(dir.caravan.at("vocab_rows_per_rank").as_int64(), 26);
  const TensorSource whole = TensorSource::open_file(at("whole/rank0.safetensors"));
  for (const WeightSpec& spec : gpt2_weight_specs(dir.config, true)) {
    const std::vector<float> all = values_of(*whole.find(spec.name));
    std::vector<int> seen(all.size(), 0);
    for (int rank = 0; rank < kRanks; ++rank) {
      const TensorSource part = TensorSource::open_file(dir.rank_path(rank));
      const StoredTensor* tensor = part.find(spec.name);
      ASSERT_NE(tensor, nullptr) << spec.name;
      const std::vector<float> values = values_of(*tensor);
      const WeightSlice slice = weight_slice(spec, rank, kRanks);
      EXPECT_EQ(tensor->shape, slice.shape) << spec.name;
      size_t next = 0;
      for (int64_t row = slice.row_begin; row < slice.row_end; ++row) {
        for (const auto& [begin, end] : slice.columns) {
          for (int64_t column = begin; column < end; ++column) {
            const auto i = static_cast<size_t>(row * slice.row_size + column);
            ASSERT_EQ(values[next++], all[i]) << spec.name << " rank " << rank;
            ++seen[i];
          }
        }
      }
      for (; next < values.size(); ++next) ASSERT_EQ(values[next], 0.0f) << spec.name;
    }
    const int copies = spec.split == WeightSplit::kNone ? kRanks : 1;
    for (const int n : seen) ASSERT_EQ(n, copies) << spec.name;
  }
}

TEST_F(ConvertTest, SizesThatDoNotDivideAreRefused) {
  write_odd_model(at("hf"));  // 4 heads, hidden 36, MLP 100
  for (const int ranks : {3, 8, 0, -1, 65}) {
    ConvertOptions options = options_for(at("hf"), at("out"), DType::kF16);
    options.tensor_parallel = ranks;
    EXPECT_EQ(error_of([&] { convert_checkpoint(options); }).first, ErrorCode::kInvalidArgument);
  }
  EXPECT_FALSE(fs::exists(at("out.partial")));
}

TEST_F(ConvertTest, ResultsAreReproducibleAndSideFilesTravel) {
  write_odd_model(at("hf"));
  std::ofstream(at("hf/merges.txt")) << "#version: 0.2\n";
  std::ofstream(at("hf/generation_config.json")) << "{\"eos_token_id\": 5}";
  std::ofstream(at("hf/notes.txt")) << "stays";
  for (const char* name : {"a", "b"}) {
    const auto result = convert_checkpoint(options_for(at("hf"), at(name), DType::kBF16));
    EXPECT_EQ(result.copied_files,
              (std::vector<std::string>{"merges.txt", "generation_config.json"}));
  }
  for (const char* name : {"config.json", "rank0.safetensors", "merges.txt"}) {
    EXPECT_EQ(file_bytes(at("a/") + name), file_bytes(at("b/") + name)) << name;
  }
  EXPECT_FALSE(fs::exists(at("a/notes.txt")));
  const ModelDir dir = open_model_dir(at("a"));
  EXPECT_EQ(dir.config.eos_token_ids, std::vector<int32_t>{5});
  const auto& sources = dir.caravan.at("source").as_array();
  ASSERT_EQ(sources.size(), 1u);
  EXPECT_EQ(sources[0].at("name").as_string(), "model.safetensors");
  EXPECT_EQ(sources[0].at("xxh3").as_string().size(), 16u);
}

// Real kills and the resumed bytes: tests/cli/convert_kill_test.py.
TEST_F(ConvertTest, AForeignOrDamagedWorkDirectoryIsNotTrusted) {
  write_odd_model(at("hf"));
  convert_checkpoint(options_for(at("hf"), at("good"), DType::kF16));
  fs::create_directories(at("out.partial"));
  std::ofstream(at("out.partial/convert.journal"))
      << "caravan convert journal 1 0123456789abcdef\n0 0 0123456789abcdef\n";
  std::ofstream(at("out.partial/rank0.safetensors")) << std::string(100'000, 'x');
  std::ofstream(at("out.partial/rank7.safetensors")) << "x";
  std::ofstream(at("out.partial/config.json.partial-1")) << "x";
  const ConvertResult result = convert_checkpoint(options_for(at("hf"), at("out"), DType::kF16));
  EXPECT_EQ(result.num_resumed, 0);
  EXPECT_EQ(file_bytes(at("good/rank0.safetensors")), file_bytes(at("out/rank0.safetensors")));
  EXPECT_EQ(std::distance(fs::directory_iterator(at("out")), fs::directory_iterator()), 2);
}

class ResumableTest : public TempDirectoryTest {
 protected:
  static std::vector<SafetensorsWriter::Spec> specs() {
    return {{"a", DType::kF32, Shape{10}},
            {"b", DType::kF16, Shape{3, 4}},
            {"c", DType::kF32, Shape{5}}};
  }
  // Writes tensors [first, last), each filled with its index; returns their hashes.
  static std::vector<uint64_t> fill(ResumableSafetensors& file, size_t first, size_t last) {
    std::vector<uint64_t> hashes;
    for (size_t i = first; i < last; ++i) {
      const std::vector<char> bytes(file.tensor_bytes(i), static_cast<char>(i + 1));
      file.write(bytes.data(), bytes.size());
      hashes.push_back(file.end_tensor());
    }
    return hashes;
  }
};

TEST_F(ResumableTest, ContinuesAfterTheLastIntactTensor) {
  std::vector<uint64_t> hashes;
  {
    ResumableSafetensors file(at("whole"), specs(), {});
    EXPECT_EQ(file.resume({}), 0u);
    hashes = fill(file, 0, 3);
    file.finish();
  }
  const std::string whole = file_bytes(at("whole"));
  const auto* bytes = reinterpret_cast<const std::byte*>(whole.data());
  EXPECT_EQ(parse_safetensors({bytes, whole.size()}, "whole").entries.size(), 3u);
  // Cut at every length: what is intact stays, the rest is written again.
  for (size_t length = 0; length <= whole.size(); ++length) {
    std::ofstream(at("part"), std::ios::binary) << whole.substr(0, length);
    ResumableSafetensors file(at("part"), specs(), {});
    const size_t kept = file.resume(hashes);
    fill(file, kept, 3);
    file.finish();
    ASSERT_EQ(file_bytes(at("part")), whole) << length;
    ASSERT_EQ(kept == 3, length == whole.size()) << length;
  }
  // A damaged byte in the second tensor costs the second and third.
  std::string damaged = whole;
  damaged[whole.size() - 20 - 24] ^= 1;
  std::ofstream(at("part"), std::ios::binary) << damaged;
  ResumableSafetensors file(at("part"), specs(), {});
  EXPECT_EQ(file.resume(hashes), 1u);
}

TEST_F(ResumableTest, TooManyOrTooFewBytesAreADefect) {
  ResumableSafetensors file(at("f"), specs(), {});
  file.resume({});
  const std::vector<char> bytes(1000);
  EXPECT_THROW(file.write(bytes.data(), 41), Error);
  EXPECT_THROW(file.end_tensor(), Error);
  EXPECT_THROW(file.finish(), Error);
}

TEST_F(ResumableTest, JournalForgetsTornAndForeignLines) {
  {
    ConvertJournal journal(at("j"), 42, {{"--dtype", "float16"}});
    journal.record(0, 0, 100);
    journal.record(0, 1, 101);
    journal.record(1, 0, 200);
  }
  const std::string whole = file_bytes(at("j"));
  EXPECT_EQ(ConvertJournal(at("j"), 42, {{"--dtype", "float16"}}).finished(0),
            (std::vector<uint64_t>{100, 101}));
  EXPECT_EQ(ConvertJournal(at("j"), 42, {{"--dtype", "float16"}}).finished(1),
            (std::vector<uint64_t>{200}));
  for (size_t length = 0; length < whole.size(); ++length) {
    std::ofstream(at("j"), std::ios::binary) << whole.substr(0, length);
    ConvertJournal journal(at("j"), 42, {{"--dtype", "float16"}});
    EXPECT_TRUE(journal.finished(1).empty());  // the last line was torn
    EXPECT_LE(journal.finished(0).size(), 2u);
  }
  std::ofstream(at("j"), std::ios::binary) << whole;
  {
    ConvertJournal journal(at("j"), 42, {{"--dtype", "float16"}});
    journal.keep(0, 1);
  }
  EXPECT_EQ(ConvertJournal(at("j"), 42, {{"--dtype", "float16"}}).finished(0),
            (std::vector<uint64_t>{100}));
  {
    ConvertJournal journal(at("j"), 43, {{"--dtype", "bfloat16"}});
    EXPECT_TRUE(journal.finished(0).empty());
    EXPECT_EQ(journal.restart_reason(), "--dtype \"float16\", now \"bfloat16\"");
  }
  EXPECT_TRUE(ConvertJournal(at("j"), 42, {{"--dtype", "float16"}})
                  .finished(0)
                  .empty());  // 43 started it over
}

TEST(ValueConverter, FindsTheFirstOverflowInALargePiece) {
  std::vector<float> values(300'000, 1.0f);
  std::vector<uint16_t> out(values.size());
  ValueConverter converter("t", DType::kF32, DType::kF16);
  EXPECT_NO_THROW(
      converter.convert(values.data(), out.data(), static_cast<int64_t>(values.size()), 0));
  values[299'999] = 1e6f;
  const auto [code, message] = error_of([&] {
    converter.convert(values.data(), out.data(), static_cast<int64_t>(values.size()), 50);
  });
  EXPECT_EQ(code, ErrorCode::kInvalidArgument);
  EXPECT_NE(message.find("index 300049"), std::string::npos) << message;
}

TEST(ValueConverter, ADoubleBeyondFloatIsAnOverflow) {
  const double value = 1e300;
  float out = 0;
  ValueConverter converter("t", DType::kF64, DType::kF32);
  EXPECT_THROW(converter.convert(&value, &out, 1, 0), Error);
}

}  // namespace
}  // namespace caravan
