// Every golden of the repository through the whole stack: directory -> weights -> forward ->
// logits.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include "core/error.h"
#include "core/json.h"
#include "engine/model_runner.h"
#include "eval/score.h"
#include "format/model_dir.h"
#include "format/tensor_source.h"
#include "tests/test_backends.h"
#include "tests/test_scale.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

const std::string kGoldens = CARAVAN_SOURCE_DIR "/tests/goldens";
const std::string kCamelNano = CARAVAN_SOURCE_DIR "/models/camel-nano";

ModelRunner open(const std::string& path, const TestBackend& backend, DType dtype) {
  return ModelRunner(open_model_dir(path), create_backend(backend.options),
                     {.dtype = dtype,
                      .kv_cache_dtype = dtype,
                      .max_num_batched_tokens = 512,
                      .max_num_logits = 64,
                      .max_batch_size = 1});
}

std::vector<double> doubles(const boost::json::value& array) {
  return boost::json::value_to<std::vector<double>>(array);
}
std::vector<int32_t> ids_of(const boost::json::value& array) {
  return boost::json::value_to<std::vector<int32_t>>(array);
}

// ||got - wanted|| / ||wanted||
double relative_error(std::span<const float> got, const std::vector<double>& wanted) {
  EXPECT_EQ(got.size(), wanted.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < std::min(got.size(), wanted.size()); ++i) {
    difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    norm += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / norm);
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(kGoldens + "/variants")) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class VariantTest : public ::testing::TestWithParam<std::string> {};

// Float32 logits within 1e-4 of transformers in float64, whatever form the checkpoint has.
TEST_P(VariantTest, LogitsMatchFloat64) {
  const std::string path = kGoldens + "/variants/" + GetParam();
  const boost::json::value golden = parse_json_file(path + "/golden.json", 1 << 20);
  for (const TestBackend& backend : test_backends()) {
    ModelRunner runner = open(path, backend, DType::kF32);
    Scorer scorer(runner);
    for (const boost::json::value& one : golden.at("goldens").as_array()) {
      const std::vector<int32_t> ids = ids_of(one.at("ids"));
      const std::vector<int32_t> argmax_all = ids_of(one.at("argmax_all"));
      const std::vector<double> row_sum = doubles(one.at("row_sum"));
      scorer.score(ids, 1, [&](int64_t position, std::span<const float> logits) {
        const auto p = static_cast<size_t>(position);
        double sum = 0, magnitude = 0;
        for (const float logit : logits) {
          sum += logit;
          magnitude += std::abs(logit);
        }
        EXPECT_NEAR(sum, row_sum[p], 1e-4 * magnitude);
        EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(), argmax_all[p]);
        if (p + 1 == ids.size()) {
          EXPECT_LT(relative_error(logits, doubles(one.at("logits_last"))), 1e-4) << backend.name;
        }
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, VariantTest, ::testing::ValuesIn(variants()),
                         [](const auto& param_info) { return param_info.param; });

TEST(VariantsTest, AllFourteenAreThere) { EXPECT_EQ(variants().size(), 14u); }

// The sorting model of minGPT with every intermediate stored (float32): each op of the first layer,
// then each layer.
TEST(NanoSortTest, EveryIntermediateMatches) {
  const std::string path = kGoldens + "/gpt-nano-sort";
  const TensorSource partials = TensorSource::open_file(path + "/partials.safetensors");
  const auto stored = [&](const char* name) {
    const StoredTensor* t = partials.find(name);
    EXPECT_NE(t, nullptr) << name;
    std::vector<double> values(static_cast<size_t>(t->shape.num_elements()));
    for (size_t i = 0; i < values.size(); ++i) values[i] = load_as_f32(t->data(), t->dtype, i);
    return values;
  };
  const std::map<std::string, const char*> names{{"embedding", "x"},
                                                 {"h.0.ln_1", "ln1"},
                                                 {"h.0.attn.c_attn", "qkv"},
                                                 {"h.0.attn", "y"},
                                                 {"h.0.attn.residual", "attnResid"},
                                                 {"h.0.ln_2", "ln2"},
                                                 {"h.0.mlp.act", "gelu"},
                                                 {"h.0", "block0"},
                                                 {"h.1", "block1"},
                                                 {"h.2", "block2"},
                                                 {"ln_f", "ln_f"}};
  const std::vector<double> idx = stored("idx");
  constexpr int64_t kLength = 11;
  for (const TestBackend& backend : test_backends()) {
    ModelRunner runner = open(path, backend, DType::kF32);
    for (int64_t s = 0; s < 3; ++s) {
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < kLength; ++t) {
        ids.push_back(static_cast<int32_t>(idx[static_cast<size_t>(s * kLength + t)]));
      }
      Batch batch(runner.cache().block_size());
      batch.add_sequence(ids.data(), kLength, 0, {0}, LogitsWanted::kLast);
      size_t seen = 0;
      runner.forward(batch, [&](std::string_view name, const Tensor& got) {
        const auto entry = names.find(std::string(name));
        if (entry == names.end()) return;
        ++seen;
        const std::vector<double> all = stored(entry->second);
        const auto count = static_cast<size_t>(got.shape.num_elements());
        const auto begin = all.begin() + s * static_cast<std::ptrdiff_t>(count);
        EXPECT_LT(relative_error({got.as<float>(), count},
                                 {begin, begin + static_cast<std::ptrdiff_t>(count)}),
                  1e-5)
            << name << " " << backend.name;
      });
      EXPECT_EQ(seen, names.size());
      const std::vector<double> head = stored("lm_head");
      const auto begin = head.begin() + s * kLength * 3;
      const std::span<const float> logits = runner.logits(0, kLength);
      EXPECT_LT(relative_error(logits, {begin, begin + kLength * 3}), 1e-5) << backend.name;
    }
  }
}

class CamelNanoTest : public ::testing::TestWithParam<TestBackend> {};

// Summed NLL within 1e-3, top-20 within 1e-3, 64 greedy tokens equal while every margin is clear.
TEST_P(CamelNanoTest, MatchesTheTrainedModelsGoldens) {
  const boost::json::value golden = parse_json_file(kGoldens + "/camel-nano.json", 1 << 20);
  const auto& prompts = golden.at("prompts").as_array();
  ASSERT_EQ(prompts.size(), 20u);
  ModelRunner runner = open(kCamelNano, GetParam(), DType::kF32);
  Scorer scorer(runner);
  const auto num_prompts = static_cast<size_t>(scaled(20));
  size_t num_greedy = 0;
  for (const boost::json::value& prompt : std::span(prompts.data(), num_prompts)) {
    const std::vector<int32_t> ids = ids_of(prompt.at("ids"));
    const Score score = scorer.score(ids);
    const double nll = prompt.at("nll").to_number<double>();
    EXPECT_NEAR(score.nll, nll, 1e-3 * nll);
    EXPECT_NEAR(score.last_logsumexp, prompt.at("last_logsumexp").to_number<double>(), 1e-3);
    const auto& top = prompt.at("last_top20").as_array();
    ASSERT_EQ(score.last_top.size(), top.size());
    std::map<int64_t, double> wanted;
    for (const auto& pair : top) wanted[pair.at(0).as_int64()] = pair.at(1).to_number<double>();
    for (size_t i = 0; i < top.size(); ++i) {
      // Near ties may change places: the value at each rank is compared, and every id's own value.
      EXPECT_NEAR(score.last_top[i].second, top[i].at(1).to_number<double>(), 1e-3);
      const auto same = wanted.find(score.last_top[i].first);
      if (same != wanted.end()) {
        EXPECT_NEAR(score.last_top[i].second, same->second, 1e-3);
      }
    }
    const std::vector<int32_t> greedy = ids_of(prompt.at("greedy64"));
    const std::vector<double> margins = doubles(prompt.at("greedy_margin"));
    ASSERT_EQ(greedy.size(), 64u);
    std::vector<int32_t> all = ids;
    all.insert(all.end(), greedy.begin(), greedy.end() - 1);
    if (static_cast<int64_t>(all.size()) > runner.max_seq_len()) continue;
    // Teacher forced on the golden tokens, so that one near tie does not hide the rest: greedy
    // decoding picks the golden token wherever the margin exceeds 1e-3.
    scorer.score(all, 1, [&](int64_t position, std::span<const float> logits) {
      const int64_t step = position + 1 - static_cast<int64_t>(ids.size());
      if (step < 0 || margins[static_cast<size_t>(step)] <= 1e-3) return;
      ++num_greedy;
      EXPECT_EQ(std::max_element(logits.begin(), logits.end()) - logits.begin(),
                greedy[static_cast<size_t>(step)]);
    });
  }
  EXPECT_GT(num_greedy, num_prompts * 60);  // of 64
}

// The reference kernels take minutes for 20 prompts of a trained model.
std::vector<TestBackend> fast_backends() {
  std::vector<TestBackend> backends = test_backends();
  std::erase_if(backends, [](const TestBackend& b) { return b.name == "reference"; });
  return backends;
}

INSTANTIATE_TEST_SUITE_P(Backends, CamelNanoTest, ::testing::ValuesIn(fast_backends()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace caravan
