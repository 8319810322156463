// `caravan diverge` on mistakes that are known because they were planted: found at the right
// operator, layer and token, and named; and on differences that are none, which must pass.

#include "eval/diverge.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <string>

#include "backend/create_backend.h"
#include "convert/test_models.h"
#include "core/error.h"
#include "eval/diverge_cause.h"
#include "format/model_dir.h"
#include "format/safetensors.h"
#include "tests/test_backends.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kVariants = CARAVAN_SOURCE_DIR "/tests/goldens/variants/";
const std::string kCamelNano = CARAVAN_SOURCE_DIR "/models/camel-nano";

constexpr int64_t kHidden = 192;  // camel-nano: 8 layers, 3 heads, inner size 768

/// Tensors of a model by their stored names, as float32.
struct StoredModel {
  std::string config;
  std::map<std::string, std::pair<Shape, std::vector<float>>> tensors;

  std::vector<float>& operator[](const std::string& name) {
    const auto found = tensors.find(tensors.contains(name) ? name : "transformer." + name);
    EXPECT_NE(found, tensors.end()) << name;
    return found->second.second;
  }
};

StoredModel read_model(const std::string& path) {
  StoredModel model;
  model.config = file_bytes(path + "/config.json");
  const TensorSource source = TensorSource::open_directory(path);
  for (const StoredTensor& tensor : source.tensors()) {
    std::vector<float> values(static_cast<size_t>(tensor.shape.num_elements()));
    convert_elements(tensor.data(), tensor.dtype, values.data(), DType::kF32, values.size());
    model.tensors[tensor.name] = {tensor.shape, std::move(values)};
  }
  return model;
}

// In float32, so that a planted value is stored as it is.
void write_model(const StoredModel& model, const std::string& path) {
  fs::create_directories(path);
  std::ofstream(path + "/config.json") << model.config;
  std::vector<SafetensorsWriter::Spec> specs;
  for (const auto& [name, tensor] : model.tensors) {
    specs.push_back({name, DType::kF32, tensor.first});
  }
  SafetensorsWriter writer(path + "/model.safetensors", specs, {{"format", "pt"}});
  for (const auto& [name, tensor] : model.tensors) {
    writer.write(tensor.second.data(), tensor.second.size() * sizeof(float));
  }
  writer.finish();
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

struct SideOptions {
  DType dtype = DType::kF32;
  std::optional<DType> kv_cache_dtype = std::nullopt;
  std::string cpu_isa = "auto";
};

std::unique_ptr<LayerStream> open_stream(const std::string& path, const SideOptions& options = {}) {
  // Models this small have nothing for a second thread, which waits for its turn thousands of
  // times.
  BackendOptions backend{.cpu_isa = options.cpu_isa, .num_threads = 1};
  if (tests_run_on_gpu()) backend.device = "cuda";
  return std::make_unique<LayerStream>(open_model_dir(path), create_backend(backend),
                                       LayerStreamOptions{.dtype = options.dtype,
                                                          .kv_cache_dtype = options.kv_cache_dtype,
                                                          .max_num_batched_tokens = 16,  // chunks
                                                          .max_num_logits = 5});
}

DivergeInput random_input(std::vector<int64_t> lengths, int64_t vocab_size) {
  DivergeInput input{.ids = {}, .lengths = std::move(lengths)};
  std::mt19937 random(11);
  for (const int64_t length : input.lengths) {
    for (int64_t i = 0; i < length; ++i) {
      input.ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size)));
    }
  }
  return input;
}

DivergeReport compare(const std::string& model, const SideOptions& model_options,
                      const std::string& reference, const SideOptions& reference_options,
                      const DivergeInput& input, const DivergeOptions& options = {}) {
  const auto stream = open_stream(model, model_options);
  ModelSide side(open_stream(reference, reference_options), input);
  return find_divergence(*stream, side, input, options);
}

/// A dump of the model's values, those of which `keep` says so. `change` may falsify them.
void write_dump(const std::string& model, const std::string& path, const DivergeInput& input,
                const std::function<bool(const std::string& name)>& keep,
                const std::function<void(OpValues& values)>& change = nullptr) {
  ModelSide side(open_stream(model), input);
  OpValues all = side.embedding();
  const ModelConfig config = *side.config();
  for (int64_t i = 0; i < config.num_layers; ++i) all.merge(side.layer(i));
  all.merge(side.head(0, input.num_tokens()));
  if (change) change(all);
  std::vector<int32_t> starts;
  int32_t start = 0;
  for (const int64_t length : input.lengths) {
    starts.push_back(start);
    start += static_cast<int32_t>(length);
  }
  const int64_t n = input.num_tokens();
  std::vector<SafetensorsWriter::Spec> specs = {
      {"input_ids", DType::kI32, Shape{n}},
      {"window_start", DType::kI32, Shape{static_cast<int64_t>(starts.size())}},
      {"logits", DType::kF32, Shape{n, config.vocab_size}}};
  for (const auto& [name, values] : all) {
    if (name == "logits" || !keep(name)) continue;
    specs.push_back(
        {"hidden." + name, DType::kF32, Shape{n, static_cast<int64_t>(values.size()) / n}});
  }
  SafetensorsWriter writer(path, specs, {{"dtype", "float32"}});
  writer.write(input.ids.data(), input.ids.size() * sizeof(int32_t));
  writer.write(starts.data(), starts.size() * sizeof(int32_t));
  const auto write = [&](const std::vector<float>& v) {
    writer.write(v.data(), v.size() * sizeof(float));
  };
  write(all.at("logits"));
  for (const auto& [name, values] : all) {
    if (name != "logits" && keep(name)) write(values);
  }
  writer.finish();
}

bool keep_all(const std::string&) { return true; }

DivergeReport compare_with_dump(const std::string& model, const std::string& dump,
                                const DivergeOptions& options = {}) {
  const auto stream = open_stream(model);
  DumpSide side(LogitsDump::open(dump), stream->config(), std::nullopt, 1000);
  const DivergeInput input = side.input();
  return find_divergence(*stream, side, input, options);
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

class DivergeTest : public TempDirectoryTest {
 protected:
  void SetUp() override {
    TempDirectoryTest::SetUp();
    omp_set_num_threads(1);
  }

  /// A model with a mistake, as a reference that is a model and as one that is a dump.
  struct Found {
    DivergeReport model;
    DivergeReport dump;
  };
  Found plant(const std::function<void(StoredModel&)>& mistake, bool stop_at_first = true) {
    StoredModel model = read_model(kCamelNano);
    mistake(model);
    write_model(model, at("planted"));
    const DivergeInput input = random_input({11, 5}, 50258);
    write_dump(at("planted"), at("dump.safetensors"), input, keep_all);
    const DivergeOptions options{.stop_at_first = stop_at_first};
    return {compare(kCamelNano, {}, at("planted"), {}, input, options),
            compare_with_dump(kCamelNano, at("dump.safetensors"), options)};
  }

  // Both found `op` first, at `token`, and nothing before it differs.
  void expect_first(const Found& found, const std::string& op, int64_t token) {
    for (const DivergeReport* report : {&found.model, &found.dump}) {
      SCOPED_TRACE(diverge_text(*report));
      const DivergeOp* first = report->first();
      ASSERT_NE(first, nullptr);
      EXPECT_EQ(op_name(first->op), op);
      EXPECT_EQ(first->first_bad_token, token);
      EXPECT_GT(first->first_bad_error, first->first_bad_bound);
      EXPECT_NE(first->worst.got, first->worst.wanted);
    }
  }
};

void expect_cause(const DivergeReport& report, const std::string& text) {
  EXPECT_NE(joined(report.causes).find(text), std::string::npos) << "wanted: " << text << "\n"
                                                                 << diverge_text(report);
}

TEST_F(DivergeTest, WrongGelu) {
  const Found found =
      plant([](StoredModel& model) { replace(model.config, "\"gelu\"", "\"gelu_new\""); }, false);
  expect_first(found, "h.0.mlp.act", 0);
  expect_cause(found.dump, "activation_function: gelu_new in the reference instead of gelu");
  expect_cause(found.model, "activation_function: gelu_new in the reference instead of gelu");
  EXPECT_EQ(found.model.facts,
            std::vector<std::string>{"activation_function: gelu, gelu_new in the reference"});
  EXPECT_TRUE(found.dump.facts.empty());
  // Fed with the reference's values, every other operator is right; the free runs part for good.
  for (const DivergeOp& op : found.model.ops) {
    if (op.op.kind == OpKind::kMlpAct) continue;
    EXPECT_EQ(op.num_bad, 0) << op_name(op.op);
  }
  EXPECT_GT(found.model.ops.back().global_error, 1e-4);
}

TEST_F(DivergeTest, WrongEpsilon) {
  const Found found = plant([](StoredModel& model) {
    replace(model.config, "\"layer_norm_epsilon\": 1e-05", "\"layer_norm_epsilon\": 1e-03");
  });
  expect_first(found, "h.0.ln_1", 0);
  expect_cause(found.dump, "layer_norm_epsilon: 0.001 in the reference instead of 1e-05");
  ASSERT_EQ(found.model.facts.size(), 1u);
  EXPECT_EQ(found.model.facts[0].substr(0, 18), "layer_norm_epsilon");
}

TEST_F(DivergeTest, UntiedHead) {
  const Found found = plant([](StoredModel& model) {
    auto wte = model.tensors.contains("wte.weight") ? model.tensors.at("wte.weight")
                                                    : model.tensors.at("transformer.wte.weight");
    for (int64_t i = 0; i < kHidden; ++i) wte.second[static_cast<size_t>(77 * kHidden + i)] *= 1.1f;
    model.tensors["lm_head.weight"] = wte;  // different bytes count as untied
  });
  expect_first(found, "logits", 0);
  expect_cause(found.model, "tied head: the reference has an lm_head of its own");
  expect_cause(found.dump, "the difference lies in 1 of 50258 outputs (77)");
  EXPECT_EQ(found.model.first()->worst.index, 77);
}

TEST_F(DivergeTest, TransposedProjection) {
  const Found found = plant([](StoredModel& model) {
    std::vector<float>& w = model["h.2.attn.c_proj.weight"];
    const std::vector<float> original = w;
    for (size_t k = 0; k < kHidden; ++k) {
      for (size_t n = 0; n < kHidden; ++n) w[k * kHidden + n] = original[n * kHidden + k];
    }
  });
  expect_first(found, "h.2.attn.residual", 0);
  expect_cause(found.model, "h.2.attn.c_proj.weight: the reference's is the transpose");
  expect_cause(found.dump, "h.2.attn.c_proj.weight: the reference's is the transpose");
}

TEST_F(DivergeTest, TransposedQkv) {
  const Found found = plant([](StoredModel& model) {
    std::vector<float>& w = model["h.2.attn.c_attn.weight"];
    const std::vector<float> original = w;
    constexpr size_t kOut = 3 * kHidden;
    for (size_t k = 0; k < kHidden; ++k) {
      for (size_t n = 0; n < kOut; ++n) {
        w[k * kOut + n] = original[n % kHidden * kOut + n / kHidden * kHidden + k];
      }
    }
  });
  expect_first(found, "h.2.attn.c_attn", 0);
  expect_cause(found.model, "h.2.attn.c_attn.weight: the reference's is the transpose");
  expect_cause(found.dump, "the reference's q, k and v are each the transpose");
}

TEST_F(DivergeTest, QkvInAnotherOrder) {
  const Found found = plant([](StoredModel& model) {
    for (const char* name : {"h.1.attn.c_attn.weight", "h.1.attn.c_attn.bias"}) {
      std::vector<float>& w = model[name];
      for (size_t row = 0; row < w.size() / (3 * kHidden); ++row) {
        const auto q = w.begin() + static_cast<std::ptrdiff_t>(row * 3 * kHidden);
        std::swap_ranges(q, q + kHidden, q + kHidden);
      }
    }
  });
  expect_first(found, "h.1.attn.c_attn", 0);
  expect_cause(found.dump, "columns of c_attn are k, q, v instead of q, k, v");
}

TEST_F(DivergeTest, OneElement) {
  const Found found = plant([](StoredModel& model) {
    float& element = model["h.5.mlp.c_fc.weight"][3 * 768 + 7];
    element += 0.05f;
  });
  ASSERT_NE(found.model.first(), nullptr) << diverge_text(found.model);
  expect_first(found, "h.5.mlp.act", found.model.first()->first_bad_token);
  EXPECT_EQ(found.model.first()->worst.index, 7);
  expect_cause(found.model,
               "h.5.mlp.c_fc.weight differs in 1 of 147456 elements, first at [3,7]: ");
  expect_cause(found.dump, "the difference lies in 1 of 768 outputs (7)");
}

TEST_F(DivergeTest, DroppedBias) {
  const Found found = plant([](StoredModel& model) {
    std::vector<float>& bias = model["h.1.mlp.c_proj.bias"];
    std::fill(bias.begin(), bias.end(), 0.0f);
  });
  expect_first(found, "h.1", 0);
  expect_cause(found.model, "h.1.mlp.c_proj.bias is all zeros in the reference");
  expect_cause(found.dump, "the reference lacks h.1.mlp.c_proj.bias");
}

TEST_F(DivergeTest, AttentionScale) {
  // The first layer's scale is the same: the mistake shows in the second. Token 0 sees itself alone
  // and has no use for a scale.
  const Found by_layer = plant([](StoredModel& model) {
    replace(model.config, "\"scale_attn_by_inverse_layer_idx\": false",
            "\"scale_attn_by_inverse_layer_idx\": true");
  });
  ASSERT_NE(by_layer.model.first(), nullptr);
  EXPECT_GE(by_layer.model.first()->first_bad_token, 1);
  expect_first(by_layer, "h.1.attn", by_layer.model.first()->first_bad_token);
  expect_cause(by_layer.dump, "scale_attn_by_inverse_layer_idx: the reference divides");
  const Found unscaled = plant([](StoredModel& model) {
    replace(model.config, "\"scale_attn_weights\": true", "\"scale_attn_weights\": false");
  });
  expect_first(unscaled, "h.0.attn", 1);
  expect_cause(unscaled.dump, "scale_attn_weights: the reference does not scale the scores");
}

TEST_F(DivergeTest, PositionsOffByOne) {
  const Found found = plant([](StoredModel& model) {
    std::vector<float>& wpe = model["wpe.weight"];
    std::rotate(wpe.begin(), wpe.begin() + kHidden, wpe.end());
  });
  expect_first(found, "embedding", 0);
  expect_cause(found.dump, "the reference's positions are 1 ahead");
  expect_cause(found.model, "row 0 of wpe.weight differs");
}

// Mistakes that no config and no weight can express: falsified values of a dump.
TEST_F(DivergeTest, MistakesOfOtherPrograms) {
  const std::string path = kVariants + "gpt2_form";
  const auto stream = open_stream(path);
  const ModelConfig config = stream->config();
  const DivergeInput input = random_input({17, 6}, config.vocab_size);
  const int64_t hidden = config.hidden_size;
  const auto n = input.num_tokens();

  const auto attend = [&](OpValues& values, int64_t later) {
    const std::vector<float>& qkv = values.at("h.1.attn.c_attn");
    std::vector<float>& out = values.at("h.1.attn");
    const int64_t dim = config.head_dim();
    for (int64_t t = 0; t < n; ++t) {
      const int64_t start = t < 17 ? 0 : 17;
      const int64_t end = std::min<int64_t>(t < 17 ? 17 : 23, t + 1 + later);
      for (int64_t head = 0; head < config.num_heads; ++head) {
        std::vector<double> p;
        double sum = 0;
        for (int64_t k = start; k < end; ++k) {
          double score = 0;
          for (int64_t i = 0; i < dim; ++i) {
            score +=
                static_cast<double>(qkv[static_cast<size_t>(3 * hidden * t + head * dim + i)]) *
                static_cast<double>(
                    qkv[static_cast<size_t>(3 * hidden * k + hidden + head * dim + i)]);
          }
          p.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
          sum += p.back();
        }
        for (int64_t i = 0; i < dim; ++i) {
          double y = 0;
          for (int64_t k = start; k < end; ++k) {
            y += p[static_cast<size_t>(k - start)] / sum *
                 static_cast<double>(
                     qkv[static_cast<size_t>(3 * hidden * k + 2 * hidden + head * dim + i)]);
          }
          out[static_cast<size_t>(hidden * t + head * dim + i)] = static_cast<float>(y);
        }
      }
    }
  };
  struct Mistake {
    const char* op;
    int64_t token;
    const char* cause;
    std::function<void(OpValues&)> change;
  };
  const std::vector<Mistake> mistakes = {
      {"", -1, "", [&](OpValues& values) { attend(values, 0); }},  // as it should be: nothing found
      {"h.1.attn", 0, "lacks the causal mask", [&](OpValues& values) { attend(values, 100); }},
      {"h.1.attn", 0, "causal mask is one token late",
       [&](OpValues& values) { attend(values, 1); }},
      {"h.0.ln_2", 0, "RMSNorm",
       [&](OpValues& values) {
         const std::vector<float>& x = values.at("h.0.attn.residual");
         std::vector<float>& y = values.at("h.0.ln_2");
         const std::vector<float> weight = stream->weights().to_host("h.0.ln_2.weight");
         const std::vector<float> bias = stream->weights().to_host("h.0.ln_2.bias");
         for (int64_t t = 0; t < n; ++t) {
           double square = 0;
           for (int64_t i = 0; i < hidden; ++i) {
             const double v = x[static_cast<size_t>(t * hidden + i)];
             square += v * v / static_cast<double>(hidden);
           }
           for (int64_t i = 0; i < hidden; ++i) {
             const auto at = static_cast<size_t>(t * hidden + i);
             y[at] = static_cast<float>(x[at] / std::sqrt(square + 1e-5) *
                                            static_cast<double>(weight[static_cast<size_t>(i)]) +
                                        static_cast<double>(bias[static_cast<size_t>(i)]));
           }
         }
       }},
      {"h.0.mlp.act", 9, "values of the reference are not finite",
       [&](OpValues& values) {
         values.at("h.0.mlp.act")[static_cast<size_t>(9 * config.ffn_size + 5)] = NAN;
       }},
  };
  for (const Mistake& mistake : mistakes) {
    write_dump(path, at("dump.safetensors"), input, keep_all, mistake.change);
    const DivergeReport report = compare_with_dump(path, at("dump.safetensors"));
    SCOPED_TRACE(diverge_text(report));
    const DivergeOp* first = report.first();
    EXPECT_EQ(first == nullptr ? "" : op_name(first->op), mistake.op);
    if (first == nullptr) continue;
    EXPECT_EQ(first->first_bad_token, mistake.token);
    expect_cause(report, mistake.cause);
  }
}

// A dump need not show everything: what lies between is the operators' together, and the bound
// grows with it.
TEST_F(DivergeTest, SparseDumps) {
  const DivergeInput input = random_input({11, 5}, 50258);
  const auto layers_alone = [](const std::string& name) {
    const auto op = parse_op_name(name);
    return op && op->kind == OpKind::kLayer;
  };
  const auto none = [](const std::string&) { return false; };
  StoredModel model = read_model(kCamelNano);
  for (float& w : model["h.4.attn.c_proj.weight"]) w *= 1.01f;
  write_model(model, at("planted"));
  for (const bool is_planted : {false, true}) {
    const std::string reference = is_planted ? at("planted") : kCamelNano;
    write_dump(reference, at("layers.safetensors"), input, layers_alone);
    write_dump(reference, at("logits.safetensors"), input, none);
    const DivergeReport layers = compare_with_dump(kCamelNano, at("layers.safetensors"));
    const DivergeReport logits = compare_with_dump(kCamelNano, at("logits.safetensors"));
    EXPECT_EQ(layers.ops.size(), 9u);  // 8 layers and the logits
    EXPECT_EQ(logits.ops.size(), 1u);
    if (!is_planted) {
      EXPECT_EQ(layers.first(), nullptr) << diverge_text(layers);
      EXPECT_EQ(logits.first(), nullptr) << diverge_text(logits);
      EXPECT_TRUE(logits.is_same_bits());
      continue;
    }
    ASSERT_NE(layers.first(), nullptr);
    EXPECT_EQ(op_name(layers.first()->op), "h.4");
    ASSERT_NE(logits.first(), nullptr);
    EXPECT_EQ(op_name(logits.first()->op), "logits");
  }
}

TEST_F(DivergeTest, EqualSidesHaveTheSameBits) {
  const DivergeInput input = random_input({11, 5}, 50258);
  const DivergeReport report = compare(kCamelNano, {}, kCamelNano, {}, input);
  EXPECT_TRUE(report.is_same_bits());
  EXPECT_EQ(report.first(), nullptr);
  EXPECT_EQ(report.ops.size(), 8u * 7 + 3);
  for (const DivergeOp& op : report.ops) {
    EXPECT_EQ(op.local_error, 0) << op_name(op.op);
    EXPECT_EQ(op.global_error, 0) << op_name(op.op);
  }
}

// Rounding is no divergence: every dtype and instruction set against the oracle in float32, on
// every small model in the tree, and camel-nano. And the figures are not vacuous: 16 bits differ
// more than float32's bound would allow.
TEST_F(DivergeTest, RoundingIsNoDivergence) {
  std::vector<std::string> models = {kCamelNano};
  for (const auto& entry : fs::directory_iterator(kVariants)) {
    if (entry.is_directory()) models.push_back(entry.path().string());
  }
  EXPECT_EQ(models.size(), 15u);
  for (const std::string& path : models) {
    const ModelConfig config = open_model_dir(path).config;
    const DivergeInput input = random_input({17, 7}, config.vocab_size);
    // The oracle needs a minute for camel-nano.
    const std::string oracle = path == kCamelNano ? "avx2" : "reference";
    for (const TestBackend& backend : test_backends()) {
      if (backend.name == oracle || (path == kCamelNano && backend.name == "reference")) continue;
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        SCOPED_TRACE(path + " " + backend.name + " " + dtype_name(dtype));
        const std::string isa = backend.options.cpu_isa;
        const DivergeReport report = compare(path, {.dtype = dtype, .cpu_isa = isa}, path,
                                             {.dtype = DType::kF32, .cpu_isa = oracle}, input);
        EXPECT_EQ(report.first(), nullptr) << diverge_text(report);
        if (dtype == DType::kBF16) {
          EXPECT_FALSE(report.is_same_bits());
          const auto largest = std::max_element(
              report.ops.begin(), report.ops.end(),
              [](const auto& a, const auto& b) { return a.local_error < b.local_error; });
          EXPECT_GT(largest->local_error, 1e-4);
        }
        if (dtype != DType::kF32) continue;
        for (const DivergeOp& op : report.ops) EXPECT_LT(op.bound, 3e-3) << op_name(op.op);
      }
    }
  }
}

TEST_F(DivergeTest, OtherShapesAndFilesAreErrors) {
  const DivergeInput input = random_input({5}, 258);
  const auto [code, message] =
      error_of([&] { compare(kVariants + "camel_form", {}, kVariants + "ln_eps", {}, input); });
  EXPECT_EQ(code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(message,
            "diverge: vocab_size is 258 in the model, 307 in the reference: not the same model");
  write_dump(kVariants + "camel_form", at("dump.safetensors"), input, keep_all);
  EXPECT_EQ(
      error_of([&] { compare_with_dump(kVariants + "ln_eps", at("dump.safetensors")); }).first,
      ErrorCode::kInvalidArgument);
  // A hidden tensor of another width.
  write_dump(kVariants + "camel_form", at("wide.safetensors"), input, keep_all,
             [](OpValues& values) { values["h.0"].resize(5 * 100); });
  const auto wide =
      error_of([&] { compare_with_dump(kVariants + "camel_form", at("wide.safetensors")); });
  EXPECT_EQ(wide.first, ErrorCode::kCorrupt);
  EXPECT_NE(wide.second.find("hidden.h.0 has shape [5,100], expected [5,128]"), std::string::npos)
      << wide.second;
}

TEST(DivergeOpNames, ParseWhatTheyPrint) {
  for (const char* name :
       {"embedding", "h.0.ln_1", "h.12.attn.c_attn", "h.3.attn", "h.3.attn.residual", "h.3.ln_2",
        "h.3.mlp.act", "h.3", "ln_f", "logits"}) {
    const auto op = parse_op_name(name);
    ASSERT_TRUE(op) << name;
    EXPECT_EQ(op_name(*op), name);
  }
  for (const char* name :
       {"", "h.", "h.x", "h.-1", "h.1.attn.c_proj", "h.99999999999999999999", "H.1"}) {
    EXPECT_FALSE(parse_op_name(name)) << name;
  }
}

TEST(DivergeReportText, NamesTheVerdict) {
  DivergeReport report;
  report.ops.push_back({.op = {OpKind::kMlpAct, 3},
                        .is_same_bits = false,
                        .local_error = 3.2e-2,
                        .bound = 4e-4,
                        .num_bad = 2,
                        .first_bad_token = 0,
                        .first_bad_error = 3.2e-2,
                        .first_bad_bound = 4e-4});
  report.causes = {"the activation differs"};
  const std::string text = diverge_text(report);
  EXPECT_NE(text.find("divergence: h.3.mlp.act: token 0, local error 3.2e-02, bound 4.0e-04\n"
                      "cause: the activation differs\n"),
            std::string::npos)
      << text;
  const boost::json::object json = diverge_json(report);
  EXPECT_EQ(json.at("divergence").at("op").as_string(), "h.3.mlp.act");
  EXPECT_EQ(json.at("divergence").at("causes").as_array().size(), 1u);
}

}  // namespace
}  // namespace caravan
