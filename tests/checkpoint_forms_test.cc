// One model in every form that transformers reads: the same logits, bit for bit, as from the plain
// file. golden_test compares that one with transformers; each form here was loaded by transformers
// 5.24 with the same output too, but for training checkpoints, which it does not unpack.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "backend/create_backend.h"
#include "convert/engine_builder.h"
#include "convert/hf_converter.h"
#include "core/error.h"
#include "core/json.h"
#include "core/log.h"
#include "engine/model_runner.h"
#include "eval/score.h"
#include "format/model_dir.h"
#include "format/safetensors.h"
#include "format/tensor_source.h"
#include "tests/malformed/builders.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;
using test::ZipMember;

const std::string kPlain = CARAVAN_SOURCE_DIR "/tests/goldens/variants/act_tanh";

struct Named {
  std::string name;
  std::vector<int64_t> sizes;
  std::vector<float> values;  // row-major
};

std::vector<Named> plain_tensors() {
  std::vector<Named> tensors;
  const TensorSource source = TensorSource::open_directory(kPlain);
  for (const StoredTensor& tensor : source.tensors()) {
    Named named{tensor.name, {}, {}};
    for (int d = 0; d < tensor.shape.rank(); ++d) named.sizes.push_back(tensor.shape[d]);
    const auto* values = reinterpret_cast<const float*>(tensor.data());
    named.values.assign(values, values + tensor.shape.num_elements());
    tensors.push_back(std::move(named));
  }
  return tensors;
}

Named zeros(const std::string& name, std::vector<int64_t> sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return {name, std::move(sizes), std::vector<float>(static_cast<size_t>(count))};
}

bool ends_with_any(const std::string& name, std::initializer_list<const char*> ends) {
  return std::any_of(ends.begin(), ends.end(),
                     [&](const char* end) { return name.ends_with(end); });
}

std::vector<Named> renamed(std::vector<Named> tensors,
                           const std::function<std::string(const std::string&)>& name) {
  for (Named& tensor : tensors) tensor.name = name(tensor.name);
  return tensors;
}

std::vector<Named> with_prefix(const std::string& prefix, std::vector<Named> tensors) {
  return renamed(std::move(tensors), [&](const std::string& name) { return prefix + name; });
}

// As save_model() leaves a tied model: lm_head.weight in place of wte.weight.
std::vector<Named> head_only(std::vector<Named> tensors) {
  return renamed(std::move(tensors), [](const std::string& name) {
    return name == "transformer.wte.weight" ? "lm_head.weight" : name;
  });
}

// torch.nn.Linear in place of Conv1D.
std::vector<Named> as_linear(std::vector<Named> tensors) {
  for (Named& tensor : tensors) {
    if (!ends_with_any(tensor.name,
                       {"c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight"}))
      continue;
    const auto rows = static_cast<size_t>(tensor.sizes[0]);
    const auto columns = static_cast<size_t>(tensor.sizes[1]);
    std::vector<float> turned(rows * columns);
    for (size_t i = 0; i < rows; ++i) {
      for (size_t j = 0; j < columns; ++j) turned[j * rows + i] = tensor.values[i * columns + j];
    }
    tensor.values = std::move(turned);
    std::swap(tensor.sizes[0], tensor.sizes[1]);
  }
  return tensors;
}

// How one tensor lies in its storage.
struct Layout {
  int64_t offset = 0;
  std::vector<int64_t> strides;
  int64_t num_elements = 0;  // of the storage
};

Layout row_major(const std::vector<int64_t>& sizes) {
  Layout layout{0, std::vector<int64_t>(sizes.size()), 1};
  for (size_t d = sizes.size(); d-- > 0;) {
    layout.strides[d] = layout.num_elements;
    layout.num_elements *= sizes[d];
  }
  return layout;
}
Layout column_major(const std::vector<int64_t>& sizes) {
  if (sizes.size() != 2) return row_major(sizes);
  return {0, {1, sizes[0]}, sizes[0] * sizes[1]};
}
// Rows with gaps, vectors in every second element, nothing at the storage's start.
Layout with_gaps(const std::vector<int64_t>& sizes) {
  if (sizes.size() == 1) return {3, {2}, 3 + 2 * sizes[0]};
  return {5, {sizes[1] + 3, 1}, 5 + sizes[0] * (sizes[1] + 3)};
}
// Columns with gaps between their elements too: two strides, neither of them 1.
Layout scattered(const std::vector<int64_t>& sizes) {
  if (sizes.size() == 1) return {1, {3}, 1 + 3 * sizes[0]};
  return {1, {2, 2 * sizes[0] + 1}, 1 + sizes[1] * (2 * sizes[0] + 1)};
}

std::string bytes_of(const Named& tensor, const Layout& layout, bool is_double) {
  const size_t size = is_double ? 8 : 4;
  std::string bytes(static_cast<size_t>(layout.num_elements) * size, '\x7f');
  for (size_t n = 0; n < tensor.values.size(); ++n) {
    int64_t rest = static_cast<int64_t>(n);
    int64_t at = layout.offset;
    for (size_t d = tensor.sizes.size(); d-- > 0;) {
      at += rest % tensor.sizes[d] * layout.strides[d];
      rest /= tensor.sizes[d];
    }
    const double wide = tensor.values[n];
    std::memcpy(bytes.data() + static_cast<size_t>(at) * size,
                is_double ? static_cast<const void*>(&wide) : &tensor.values[n], size);
  }
  return bytes;
}

/// A torch file in the making: the state dict and its storages.
class TorchWriter {
 public:
  using MakeLayout = Layout (*)(const std::vector<int64_t>&);

  explicit TorchWriter(const std::vector<Named>& tensors, MakeLayout layout_of = row_major,
                       bool is_double = false) {
    for (const Named& tensor : tensors) {
      const Layout layout = layout_of(tensor.sizes);
      const std::string key = std::to_string(storages_.size());
      storages_.push_back({bytes_of(tensor, layout, is_double), layout.num_elements});
      entries_.emplace_back(
          tensor.name,
          test::pickle::tensor(test::pickle::storage(is_double ? "DoubleStorage" : "FloatStorage",
                                                     key, layout.num_elements),
                               layout.offset, tensor.sizes, layout.strides));
    }
  }

  /// One more member, the bytes that push a value.
  void add(const std::string& name, const std::string& value) {
    entries_.emplace_back(name, value);
  }
  /// One more storage; returns the bytes that push it.
  std::string add_storage(const std::string& type, const std::string& bytes) {
    const int64_t size = type == "BoolStorage" ? 1 : type == "LongStorage" ? 8 : 4;
    const std::string key = std::to_string(storages_.size());
    storages_.push_back({bytes, static_cast<int64_t>(bytes.size()) / size});
    return test::pickle::storage(type, key, storages_.back().num_elements);
  }
  /// All tensors as torch.nn.Parameter.
  void make_parameters() {
    for (auto& [name, value] : entries_) {
      value = test::pickle::global("torch._utils", "_rebuild_parameter") + "(" + value + "\x88" +
              test::pickle::ordered_dict() + "tR";
    }
  }
  std::string state_dict() const { return test::pickle::state_dict(entries_); }

  void write_zip(const std::string& path, const std::string& object) const {
    std::vector<ZipMember> members = {{"m/data.pkl", test::pickle::whole(object)},
                                      {"m/byteorder", "little"}};
    for (size_t i = 0; i < storages_.size(); ++i) {
      members.push_back({fmt::format("m/data/{}", i), storages_[i].bytes});
    }
    std::ofstream(path, std::ios::binary) << test::zip_file(members).bytes;
  }
  void write_zip(const std::string& path) const { write_zip(path, state_dict()); }
  void write_legacy(const std::string& path) const {
    test::LegacyFile file = test::torch_legacy();
    file.state = test::pickle::whole(state_dict());
    std::string keys = "](";
    file.storages.clear();
    for (size_t i = 0; i < storages_.size(); ++i) {
      keys += test::pickle::text(std::to_string(i));
      file.storages +=
          test::le64(static_cast<uint64_t>(storages_[i].num_elements)) + storages_[i].bytes;
    }
    file.keys = test::pickle::whole(keys + "e");
    std::ofstream(path, std::ios::binary) << file.bytes();
  }

 private:
  struct Storage {
    std::string bytes;
    int64_t num_elements;
  };
  std::vector<Storage> storages_;
  std::vector<std::pair<std::string, std::string>> entries_;
};

void write_safetensors(const std::string& path, const std::vector<Named>& tensors) {
  std::vector<SafetensorsWriter::Spec> specs;
  for (const Named& tensor : tensors) {
    specs.push_back(
        {tensor.name, DType::kF32, Shape::from(tensor.sizes.data(), tensor.sizes.size())});
  }
  SafetensorsWriter writer(path, specs, {{"format", "pt"}});
  for (const Named& tensor : tensors) {
    writer.write(tensor.values.data(), tensor.values.size() * sizeof(float));
  }
  writer.finish();
}

std::string dict(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string bytes = "}(";
  for (const auto& [key, value] : entries) bytes += test::pickle::text(key) + value;
  return bytes + "u";
}

/// Logits of every position, and the greedy token of each, of the model in `path`.
std::vector<float> logits_of(const std::string& path) {
  ModelRunner runner(open_model_dir(path), create_backend({.num_threads = 1}),
                     {.dtype = DType::kF32,
                      .kv_cache_dtype = DType::kF32,
                      .max_num_batched_tokens = 64,
                      .max_num_logits = 64,
                      .max_batch_size = 1});
  Scorer scorer(runner);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 24; ++i) ids.push_back((i * 37 + 11) % 307);
  std::vector<float> all;
  scorer.score(ids, 1, [&](int64_t, std::span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
  });
  return all;
}

const std::vector<float>& plain_logits() {
  static const std::vector<float> logits = logits_of(kPlain);
  return logits;
}

struct Form {
  const char* name;
  void (*write)(const std::string& directory);  // everything but config.json
};

class CheckpointFormTest : public ::testing::Test {
 protected:
  void SetUp() override {
    set_log_level(LogLevel::kOff);
    root_ = fs::temp_directory_path() / fmt::format("caravan-forms-{}", ::getpid());
    fs::remove_all(root_);
    fs::create_directories(root_ / "m");
    fs::copy_file(kPlain + "/config.json", root_ / "m/config.json");
  }
  void TearDown() override {
    fs::remove_all(root_);
    set_log_level(LogLevel::kInfo);
  }
  std::string at(const char* name) const { return (root_ / name).string(); }
  std::string model() const { return at("m"); }
  std::string bin() const { return model() + "/pytorch_model.bin"; }
  std::string safetensors() const { return model() + "/model.safetensors"; }

  // config.json with some fields replaced; null removes one.
  void change_config(const boost::json::object& fields) const {
    boost::json::object config = parse_json_file(kPlain + "/config.json", 1 << 20).get_object();
    for (const auto& [key, value] : fields) {
      config.erase(key);
      if (!value.is_null()) config[key] = value;
    }
    std::ofstream(model() + "/config.json") << boost::json::serialize(config);
  }
  void expect_plain_logits() const { EXPECT_TRUE(logits_of(model()) == plain_logits()); }

  fs::path root_;
};

class FormTest : public CheckpointFormTest, public ::testing::WithParamInterface<Form> {};

TEST_P(FormTest, HasTheSameLogits) {
  GetParam().write(model());
  expect_plain_logits();
}

void write_index(const std::string& directory, const char* text) {
  std::ofstream(directory + "/model.safetensors.index.json") << text;
}

// The first ten tensors in a.safetensors, the others in b.safetensors.
void write_shards(const std::string& directory, const std::vector<Named>& tensors) {
  write_safetensors(directory + "/a.safetensors", {tensors.begin(), tensors.begin() + 10});
  write_safetensors(directory + "/b.safetensors", {tensors.begin() + 10, tensors.end()});
}

std::string number(uint64_t bits) { return "G" + test::le64(bits); }

// What an optimizer keeps: numbers of every kind, tuples, sets, nested dicts.
std::string optimizer() {
  return dict(
      {{"state", "}" + test::pickle::integer(0) + dict({{"step", number(1)}}) + "s"},
       {"param_groups",
        "](" +
            dict({{"lr", number(2)},
                  {"betas", test::pickle::tuple({number(3), number(4)})},
                  {"foreach", "N"},
                  {"seed", "\x8a\x0c" + std::string(12, '\x55')},
                  {"tags", test::pickle::global("__builtin__", "set") +
                               test::pickle::tuple({"](" + test::pickle::text("a") + "e"}) + "R"},
                  {"device", test::pickle::global("torch", "device") +
                                 test::pickle::tuple({test::pickle::text("cpu")}) + "R"},
                  {"amsgrad", "\x89"}}) +
            "e"}});
}

const Form kForms[] = {
    {"bin_transposed",
     [](const std::string& d) {
       TorchWriter(plain_tensors(), column_major).write_zip(d + "/pytorch_model.bin");
     }},
    {"bin_with_gaps",
     [](const std::string& d) {
       TorchWriter(plain_tensors(), with_gaps).write_zip(d + "/pytorch_model.bin");
     }},
    {"bin_scattered",
     [](const std::string& d) {
       TorchWriter(plain_tensors(), scattered).write_zip(d + "/pytorch_model.bin");
     }},
    {"bin_legacy_transposed",
     [](const std::string& d) {
       TorchWriter(plain_tensors(), column_major).write_legacy(d + "/pytorch_model.bin");
     }},
    {"bin_float64_transposed",
     [](const std::string& d) {
       TorchWriter(plain_tensors(), column_major, true).write_zip(d + "/pytorch_model.bin");
     }},
    {"bin_parameters",
     [](const std::string& d) {
       TorchWriter writer(plain_tensors(), column_major);
       writer.make_parameters();
       writer.write_zip(d + "/pytorch_model.bin");
     }},
    {"bin_masks_expanded",
     [](const std::string& d) {
       TorchWriter writer(plain_tensors());
       const std::string one = writer.add_storage("BoolStorage", std::string(4096, '\1'));
       writer.add("transformer.h.0.attn.bias",
                  test::pickle::tensor(one, 0, {1, 1, 1 << 20, 1 << 20}, {0, 0, 0, 0}));
       writer.add("transformer.h.1.attn.bias", test::pickle::tensor(one, 0, {64, 64}, {64, 1}));
       writer.add(
           "transformer.h.1.attn.masked_bias",
           test::pickle::tensor(
               writer.add_storage("FloatStorage", std::string("\x00\x40\x1c\xc6", 4)), 0, {}, {}));
       writer.write_zip(d + "/pytorch_model.bin");
     }},
    {"bin_with_counters",
     [](const std::string& d) {
       TorchWriter writer(plain_tensors());
       writer.add("epoch", test::pickle::integer(3));
       writer.add("loss", number(0));
       writer.add("extra", "N");
       writer.write_zip(d + "/pytorch_model.bin");
     }},
    {"head_only_safetensors",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors", head_only(plain_tensors()));
     }},
    {"head_only_without_prefix",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors",
                         renamed(head_only(plain_tensors()), [](const std::string& name) {
                           return name.starts_with("transformer.") ? name.substr(12) : name;
                         }));
     }},
    {"head_only_bin",
     [](const std::string& d) {
       TorchWriter(head_only(plain_tensors()), column_major).write_zip(d + "/pytorch_model.bin");
     }},
    {"head_only_sharded",
     [](const std::string& d) {
       write_shards(d, head_only(plain_tensors()));
       write_index(d, R"({"weight_map":{"lm_head.weight":"b.safetensors","x":"a.safetensors"}})");
     }},
    {"other_heads",
     [](const std::string& d) {
       std::vector<Named> tensors = plain_tensors();
       for (const char* name :
            {"v_head.summary.weight", "score.weight", "multiple_choice_head.summary.weight",
             "classifier.weight", "qa_outputs.weight",
             "transformer.h.0.crossattention.c_attn.weight"}) {
         tensors.push_back(zeros(name, {2, 64}));
       }
       for (const char* name :
            {"v_head.summary.bias", "classifier.bias", "transformer.h.1.ln_cross_attn.weight"}) {
         tensors.push_back(zeros(name, {2}));
       }
       write_safetensors(d + "/model.safetensors", tensors);
     }},
    {"position_ids",
     [](const std::string& d) {
       TorchWriter writer(plain_tensors());
       writer.add("transformer.position_ids",
                  test::pickle::tensor(writer.add_storage("LongStorage", std::string(64 * 8, '\0')),
                                       0, {1, 64}, {64, 1}));
       writer.write_zip(d + "/pytorch_model.bin");
     }},
    {"nanogpt_checkpoint",
     [](const std::string& d) {
       const TorchWriter writer(with_prefix("_orig_mod.", as_linear(plain_tensors())));
       writer.write_zip(d + "/pytorch_model.bin",
                        dict({{"model", writer.state_dict()},
                              {"optimizer", optimizer()},
                              {"model_args", dict({{"dropout", number(0)}, {"bias", "\x88"}})},
                              {"iter_num", test::pickle::integer(5)}}));
     }},
    {"nanogpt_state_dict",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors", as_linear(plain_tensors()));
     }},
    {"lightning_checkpoint",
     [](const std::string& d) {
       const TorchWriter writer(with_prefix("model.", plain_tensors()), column_major);
       writer.write_zip(d + "/pytorch_model.bin",
                        dict({{"epoch", test::pickle::integer(1)},
                              {"state_dict", writer.state_dict()},
                              {"optimizer_states", "](" + optimizer() + "e"},
                              {"hyper_parameters", dict({{"lr", number(1)}})}}));
     }},
    {"prefix_of_data_parallel",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors", with_prefix("module.", plain_tensors()));
     }},
    {"prefixes_of_all_wrappers",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors",
                         with_prefix("module._orig_mod.model.", plain_tensors()));
     }},
    {"prefix_of_a_part_named_transformer",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors",
                         with_prefix("transformer.", head_only(plain_tensors())));
     }},
    {"index_names_wrong_shards",
     [](const std::string& d) {
       write_shards(d, plain_tensors());
       write_index(d, R"({"metadata":null,"weight_map":{"transformer.wte.weight":"a.safetensors",)"
                      R"("transformer.wpe.weight":"a.safetensors","no.such":"b.safetensors"}})");
     }},
    {"both_kinds_of_file",
     [](const std::string& d) {
       write_safetensors(d + "/model.safetensors", plain_tensors());
       std::ofstream(d + "/pytorch_model.bin") << "not a checkpoint";
     }},
    {"links_of_the_hub_cache",
     [](const std::string& d) {
       fs::create_directories(d + "/../blobs");
       write_safetensors(d + "/../blobs/4d5e6f.safetensors", plain_tensors());
       fs::rename(d + "/../blobs/4d5e6f.safetensors", d + "/../blobs/4d5e6f");
       fs::rename(d + "/config.json", d + "/../blobs/0a1b2c");
       fs::create_symlink("../blobs/4d5e6f", d + "/model.safetensors");
       fs::create_symlink("../blobs/0a1b2c", d + "/config.json");
     }},
};

INSTANTIATE_TEST_SUITE_P(Files, FormTest, ::testing::ValuesIn(kForms),
                         [](const auto& param) { return std::string(param.param.name); });

TEST_F(CheckpointFormTest, ConfigurationsOfOtherTimesAndClasses) {
  fs::copy_file(kPlain + "/model.safetensors", safetensors());
  using boost::json::array;
  const boost::json::object kConfigs[] = {
      {{"model_type", nullptr}, {"architectures", nullptr}},
      {{"model_type", nullptr}, {"architectures", array{"GPT2DoubleHeadsModel"}}},
      {{"architectures", array{"GPT2ForSequenceClassification"}}},
      {{"architectures", array{"GPT2LMHeadModel", "GPT2DoubleHeadsModel"}}},
      {{"architectures", array{"MyModel", "GPT2LMHeadModel"}}},
      {{"architectures", array{"TFGPT2LMHeadModel"}}},
      {{"torch_dtype", "torch.float16"}, {"dtype", "float32"}},
      {{"pad_token_id", -100}, {"eos_token_id", array{0, 50256}}},
      {{"n_positions", nullptr}, {"n_ctx", 64}},
      {{"n_head", nullptr}, {"num_attention_heads", 2}, {"n_special", 0}, {"loss_type", "x"}},
  };
  for (const boost::json::object& fields : kConfigs) {
    SCOPED_TRACE(boost::json::serialize(fields));
    change_config(fields);
    expect_plain_logits();
  }
}

TEST_F(CheckpointFormTest, SharedStorage) {
  // Every tensor a view of one storage, as a flattened optimizer leaves them.
  const std::vector<Named> tensors = plain_tensors();
  Named all{"all", {0}, {}};
  for (const Named& tensor : tensors) {
    all.values.insert(all.values.end(), tensor.values.begin(), tensor.values.end());
  }
  all.sizes[0] = static_cast<int64_t>(all.values.size());
  const TorchWriter one({all});
  std::vector<std::pair<std::string, std::string>> entries;
  int64_t offset = 0;
  for (const Named& tensor : tensors) {
    entries.emplace_back(
        tensor.name, test::pickle::tensor(test::pickle::storage("FloatStorage", "0", all.sizes[0]),
                                          offset, tensor.sizes, row_major(tensor.sizes).strides));
    offset += static_cast<int64_t>(tensor.values.size());
  }
  one.write_zip(bin(), test::pickle::state_dict(entries));
  expect_plain_logits();
}

// transformers 5 does not tie a head that is stored and differs, whatever the configuration says.
TEST_F(CheckpointFormTest, AHeadThatDiffersIsUsedTiedOrNot) {
  std::vector<Named> tensors = plain_tensors();
  Named head = *std::find_if(tensors.begin(), tensors.end(), [](const Named& tensor) {
    return tensor.name == "transformer.wte.weight";
  });
  head.name = "lm_head.weight";
  for (float& value : head.values) value *= 2.0f;  // doubles every logit exactly
  tensors.push_back(head);
  write_safetensors(safetensors(), tensors);
  std::vector<float> doubled = plain_logits();
  for (float& logit : doubled) logit *= 2.0f;
  for (const boost::json::value& tie :
       {boost::json::value(true), boost::json::value(false), boost::json::value(nullptr)}) {
    change_config({{"tie_word_embeddings", tie}});
    EXPECT_TRUE(logits_of(model()) == doubled);
  }
}

TEST_F(CheckpointFormTest, ABrokenGenerationConfigLeavesTheIdsOfTheConfiguration) {
  fs::copy_file(kPlain + "/model.safetensors", safetensors());
  change_config({{"eos_token_id", 7}, {"bos_token_id", 9}});
  for (const char* text :
       {"{\"eos_token_id\": 5,}", "", "{\"do_sample\": true. \"eos_token_id\": 5}", "[1]", "null",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n",
        "{\"eos_token_id\": \"5\"}", "{\"eos_token_id\": [\"5\"]}", "{\"eos_token_id\": 5.0}"}) {
    std::ofstream(model() + "/generation_config.json") << text;
    const ModelConfig config = load_model_config(model());
    EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{7}) << text;
    EXPECT_EQ(config.bos_token_id, 9) << text;
  }
  // A good field beside a broken one counts.
  std::ofstream(model() + "/generation_config.json")
      << "{\"eos_token_id\": 5, \"bos_token_id\": \"x\"}";
  EXPECT_EQ(load_model_config(model()).eos_token_ids, std::vector<int32_t>{5});
  EXPECT_EQ(load_model_config(model()).bos_token_id, 9);
}

// convert and build read the same bytes through strides.
TEST_F(CheckpointFormTest, ConvertAndBuildWriteTheSameFiles) {
  const auto file = [&](const std::string& directory) {
    std::ifstream stream(directory + "/rank0.safetensors", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  const auto write = [&](const std::string& input, const std::string& name) {
    ConvertOptions convert;
    convert.input = input;
    convert.output = at(("converted-" + name).c_str());
    convert.dtype = DType::kF16;
    convert_checkpoint(convert);
    EngineBuildOptions build;
    build.input = input;
    build.output = at(("engine-" + name).c_str());
    build.build.dtype = build.build.kv_cache_dtype = DType::kF16;
    build.build.max_batch_size = 1;
    build.build.max_input_len = 32;
    build.build.max_output_len = 32;
    build_engine(build);
    return file(convert.output) + file(build.output);
  };
  const std::string plain = write(kPlain, "plain");
  ASSERT_GT(plain.size(), 1u << 18);
  for (const auto layout : {column_major, with_gaps, scattered}) {
    TorchWriter(plain_tensors(), layout).write_zip(bin());
    const std::string name =
        std::to_string(root_.string().size()) + std::to_string(reinterpret_cast<uintptr_t>(layout));
    EXPECT_TRUE(write(model(), name) == plain);
  }
  TorchWriter(as_linear(plain_tensors())).write_zip(bin());
  EXPECT_TRUE(write(model(), "linear") == plain);
}

}  // namespace
}  // namespace caravan
