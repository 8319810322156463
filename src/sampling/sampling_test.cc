#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <random>
#include <string>

#include "core/error.h"
#include "core/json.h"
#include "sampling/logprobs.h"
#include "sampling/sampler.h"
#include "sampling/stop_strings.h"

namespace caravan {
namespace {

const std::vector<float> kLogits{0.5f, 2.0f, -1.0f, 2.0f, 1.0f};

TEST(SamplerTest, GreedyTakesTheLowestIdOfATie) {
  Sampler sampler;
  EXPECT_EQ(sampler.sample(kLogits, {}, {}), 1);
}

TEST(SamplerTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeOnce) {
  Sampler sampler;
  SamplingParams params;
  params.repetition_penalty = 1.5f;
  const std::vector<int32_t> history{1, 1, 1};
  EXPECT_EQ(sampler.sample(kLogits, params, history), 3);  // 2/1.5 = 1.33 < 2
  const std::vector<float> close{2.0f, 1.2f, -1.0f};
  const std::vector<int32_t> twice{0, 0};
  EXPECT_EQ(sampler.sample(close, params, twice), 0);  // 1.33, not 0.89, stays above 1.2
  const std::vector<float> negative{-1.0f, -1.2f};
  const std::vector<int32_t> first{0};
  EXPECT_EQ(sampler.sample(negative, params, first), 1);  // -1.5 < -1.2
}

std::map<int32_t, double> frequencies(const SamplingParams& params, int draws) {
  Sampler sampler;
  SamplingParams seeded = params;
  std::map<int32_t, double> counts;
  for (int i = 0; i < draws; ++i) {
    seeded.seed = static_cast<uint64_t>(i);
    counts[sampler.sample(kLogits, seeded, {})] += 1.0 / draws;
  }
  return counts;
}

TEST(SamplerTest, TemperatureSamplingFollowsTheSoftmax) {
  SamplingParams params;
  params.temperature = 0.7f;
  constexpr int kDraws = 200000;
  const auto seen = frequencies(params, kDraws);
  double total = 0;
  for (const float logit : kLogits) total += std::exp(logit / 0.7);
  for (size_t i = 0; i < kLogits.size(); ++i) {
    const double p = std::exp(kLogits[i] / 0.7) / total;
    EXPECT_NEAR(seen.at(static_cast<int32_t>(i)), p, 5 * std::sqrt(p * (1 - p) / kDraws)) << i;
  }
}

TEST(SamplerTest, TopKKeepsExactlyK) {
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_k = 3;
  const auto seen = frequencies(params, 20000);
  EXPECT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen.count(0) + seen.count(2), 0u);
}

TEST(SamplerTest, TopPKeepsTheFewestThatReachIt) {
  // softmax: 1 and 3 hold 0.379 each (0.757 together), 4 0.139, 0 0.085, 2 0.019
  SamplingParams params;
  params.temperature = 1.0f;
  params.top_p = 0.75f;
  EXPECT_EQ(frequencies(params, 20000).size(), 2u);
  params.top_p = 0.77f;
  EXPECT_EQ(frequencies(params, 20000).size(), 3u);
  params.top_p = 0.01f;
  EXPECT_EQ(frequencies(params, 1000).size(), 1u);
}

TEST(SamplerTest, DrawsDependOnSeedAndCounterOnly) {
  EXPECT_EQ(uniform_random(1, 3), uniform_random(1, 3));
  EXPECT_NE(uniform_random(1, 3), uniform_random(2, 3));
  EXPECT_NE(uniform_random(1, 3), uniform_random(1, 4));
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_random(7, static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.005);
}

/// A case of tests/goldens/sampling.json.
struct Golden {
  std::vector<float> logits;
  std::vector<int32_t> history;
  int64_t num_prompt_tokens = 0;
  SamplingParams params;
  std::vector<int32_t> banned;
  std::vector<std::pair<int32_t, double>> probabilities;  // most likely first
  std::vector<int32_t> top_ids;
  std::vector<double> top_logprobs;
};

template <typename T>
void read_list(const boost::json::object& from, const char* name, std::vector<T>& to) {
  if (!from.contains(name)) return;
  for (const boost::json::value& v : from.at(name).as_array()) to.push_back(v.to_number<T>());
}

std::vector<Golden> read_goldens() {
  const boost::json::value file =
      parse_json_file(CARAVAN_SOURCE_DIR "/tests/goldens/sampling.json", 1 << 20);
  std::vector<Golden> goldens;
  for (const boost::json::value& value : file.at("cases").as_array()) {
    const boost::json::object& from = value.as_object();
    Golden golden;
    read_list(from, "logits", golden.logits);
    read_list(from, "history", golden.history);
    read_list(from, "banned", golden.banned);
    read_list(from, "top_ids", golden.top_ids);
    read_list(from, "top_logprobs", golden.top_logprobs);
    golden.num_prompt_tokens = from.at("num_prompt_tokens").as_int64();
    SamplingParams& p = golden.params;
    const auto set = [&](const char* name, float& field) {
      if (from.contains(name)) field = from.at(name).to_number<float>();
    };
    set("temperature", p.temperature);
    set("top_p", p.top_p);
    set("min_p", p.min_p);
    set("repetition_penalty", p.repetition_penalty);
    set("presence_penalty", p.presence_penalty);
    set("frequency_penalty", p.frequency_penalty);
    if (from.contains("top_k")) p.top_k = from.at("top_k").to_number<int32_t>();
    if (from.contains("logit_bias")) {
      for (const boost::json::value& bias : from.at("logit_bias").as_array()) {
        p.logit_bias.emplace_back(bias.at(0).to_number<int32_t>(), bias.at(1).to_number<float>());
      }
    }
    for (const auto& [id, probability] : from.at("probabilities").as_object()) {
      golden.probabilities.emplace_back(std::stoi(std::string(id)),
                                        probability.to_number<double>());
    }
    std::sort(golden.probabilities.begin(), golden.probabilities.end(),
              [](const auto& a, const auto& b) { return a.second > b.second; });
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

/// Where on the cumulative probabilities `draw` falls; nullopt within rounding of a boundary.
std::optional<int32_t> expected_token(const Golden& golden, double draw) {
  constexpr double kRounding = 1e-5;  // the goldens are float32
  double sum = 0;
  for (const auto& [id, probability] : golden.probabilities) {
    sum += probability;
    if (std::abs(draw - sum) < kRounding && id != golden.probabilities.back().first) {
      return std::nullopt;
    }
    if (draw < sum) return id;
  }
  return golden.probabilities.back().first;
}

TEST(SamplerTest, DrawsFromTheDistributionsOfTransformers) {
  constexpr uint64_t kDraws = 20000;
  const std::vector<Golden> goldens = read_goldens();
  ASSERT_EQ(goldens.size(), 26u);
  Sampler sampler;
  uint64_t num_compared = 0;
  for (size_t i = 0; i < goldens.size(); ++i) {
    const Golden& golden = goldens[i];
    SamplingParams params = golden.params;
    for (params.seed = 0; params.seed < kDraws; ++params.seed) {
      const auto wanted =
          expected_token(golden, uniform_random(params.seed, golden.history.size()));
      if (!wanted) continue;
      ++num_compared;
      ASSERT_EQ(sampler.sample(golden.logits, params, golden.history, golden.num_prompt_tokens,
                               golden.banned),
                *wanted)
          << "case " << i << ", seed " << params.seed;
    }
    // Greedy takes the first of them, whatever the steps after the temperature.
    params.temperature = 0;
    EXPECT_EQ(sampler.sample(golden.logits, params, golden.history, golden.num_prompt_tokens,
                             golden.banned),
              golden.probabilities.front().first)
        << "case " << i;
  }
  EXPECT_GT(num_compared, goldens.size() * kDraws * 99 / 100);
}

// The draw as the header describes it, by std::stable_sort.
int32_t plain_draw(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto scaled = [&](int32_t id) {
    return logits[static_cast<size_t>(id)] / params.temperature;
  };
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return scaled(a) > scaled(b); });
  std::vector<double> sums;
  double total = 0;
  for (const int32_t id : ids) {
    total += std::exp(static_cast<double>(scaled(id)) - static_cast<double>(scaled(ids[0])));
    sums.push_back(total);
  }
  size_t kept = 0;
  while (kept + 1 < sums.size() && sums[kept] < static_cast<double>(params.top_p) * total) ++kept;
  const double draw = uniform_random(params.seed, 0) * (params.top_p < 1 ? sums[kept] : total);
  size_t at = 0;
  while (at + 1 < sums.size() && sums[at] <= draw) ++at;
  return ids[at];
}

TEST(SamplerTest, LargeVocabulariesAreSortedAsSmallOnes) {
  Sampler sampler;
  for (const size_t vocab_size : {2047u, 2048u, 2049u, 50257u}) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      // Both signs, zeros of both signs, many equal values, and the extremes.
      std::vector<float> logits(vocab_size);
      for (size_t i = 0; i < vocab_size; ++i) {
        const double u = uniform_random(seed, i);
        logits[i] = static_cast<float>((u - 0.5) * 12);
        if (seed % 3 == 1) logits[i] = std::round(logits[i]);
        if (seed % 3 == 2 && i % 7 == 0) logits[i] = i % 2 == 0 ? 0.0f : -0.0f;
      }
      logits[5] = -3e38f;
      logits[6] = 1e-42f;
      SamplingParams params;
      params.seed = seed;
      params.temperature = seed % 2 == 0 ? 1.0f : 3.0f;
      params.top_p = seed % 4 == 3 ? 0.6f : 1.0f;
      EXPECT_EQ(sampler.sample(logits, params, {}), plain_draw(logits, params))
          << vocab_size << " tokens, seed " << seed;
    }
  }
}

TEST(SamplerTest, PenaltiesOfOneRequestLeaveNothingForTheNext) {
  Sampler sampler;
  for (const Golden& golden : read_goldens()) {
    Sampler fresh;
    for (uint64_t seed = 0; seed < 50; ++seed) {
      SamplingParams params = golden.params;
      params.seed = seed;
      const auto draw = [&](Sampler& s) {
        return s.sample(golden.logits, params, golden.history, golden.num_prompt_tokens,
                        golden.banned);
      };
      EXPECT_EQ(draw(sampler), draw(fresh));
    }
  }
}

TEST(SamplerTest, PresenceAndFrequencyCountTheOutputAlone) {
  Sampler sampler;
  SamplingParams params;
  const std::vector<float> logits{1.0f, 2.0f, 1.5f};
  const std::vector<int32_t> history{1, 1, 1, 0};
  params.presence_penalty = 1.0f;
  EXPECT_EQ(sampler.sample(logits, params, history, 3), 1);  // 0 is the output: 0.0, 2.0, 1.5
  EXPECT_EQ(sampler.sample(logits, params, history, 2), 2);  // 1 and 0: 0.0, 1.0, 1.5
  params.presence_penalty = 0;
  params.frequency_penalty = 0.3f;
  EXPECT_EQ(sampler.sample(logits, params, history, 2), 1);  // once: 1.7
  EXPECT_EQ(sampler.sample(logits, params, history, 1), 2);  // twice: 1.4
}

TEST(SamplerTest, BannedTokensAreNeverChosen) {
  Sampler sampler;
  SamplingParams params;
  params.logit_bias = {{1, 1e9f}};
  const std::vector<int32_t> best{1, 3};
  EXPECT_EQ(sampler.sample(kLogits, params, {}, 0, best), 4);
  params.temperature = 100;
  for (params.seed = 0; params.seed < 2000; ++params.seed) {
    const int32_t id = sampler.sample(kLogits, params, {}, 0, best);
    ASSERT_TRUE(id == 0 || id == 2 || id == 4) << id;
  }
  const std::vector<int32_t> all{0, 1, 2, 3, 4};
  EXPECT_EQ(sampler.sample(kLogits, params, {}, 0, all), Sampler::kNotFinite);
}

TEST(SamplerTest, ARowThatIsNotFiniteHasNoToken) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Sampler sampler;
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    for (size_t at = 0; at < kLogits.size(); ++at) {
      std::vector<float> logits = kLogits;
      for (const float bad : {NAN, -NAN, kInfinity}) {
        logits[at] = bad;
        EXPECT_FALSE(is_finite(logits));
        EXPECT_EQ(sampler.sample(logits, params, {}), Sampler::kNotFinite);
      }
      logits[at] = -kInfinity;  // a probability of zero
      EXPECT_TRUE(is_finite(logits));
      EXPECT_NE(sampler.sample(logits, params, {}), static_cast<int32_t>(at));
      std::fill(logits.begin(), logits.end(), -kInfinity);
      EXPECT_EQ(sampler.sample(logits, params, {}), Sampler::kNotFinite);
      logits[at] = -3.0f;
      EXPECT_EQ(sampler.sample(logits, params, {}), static_cast<int32_t>(at));
    }
  }
  SamplingParams params;  // the division overflows: no NaN comes of it
  params.temperature = 1e-39f;
  EXPECT_EQ(sampler.sample(kLogits, params, {}), 0);
}

TEST(LogprobsTest, AreThoseOfTransformersAndRankedByLogit) {
  for (const Golden& golden : read_goldens()) {
    const auto vocab_size = static_cast<int32_t>(golden.logits.size());
    const ScoredToken best = score_token(golden.logits, golden.top_ids[0], 5);
    ASSERT_EQ(best.top_logprobs.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(best.top_logprobs[i].token_id, golden.top_ids[i]);
      EXPECT_FLOAT_EQ(best.top_logprobs[i].logprob, static_cast<float>(golden.top_logprobs[i]));
      EXPECT_EQ(best.top_logprobs[i].rank, static_cast<int32_t>(i) + 1);
    }
    const ScoredToken all = score_token(golden.logits, 0, vocab_size);
    double sum = 0;
    for (const TokenLogprob& token : all.top_logprobs) {
      sum += std::exp(static_cast<double>(token.logprob));
      const ScoredToken alone = score_token(golden.logits, token.token_id, 0);
      EXPECT_EQ(alone.token_id, token.token_id);
      EXPECT_EQ(alone.logprob->rank, token.rank);
      EXPECT_EQ(alone.logprob->logprob, token.logprob);
      EXPECT_TRUE(alone.top_logprobs.empty());
    }
    EXPECT_NEAR(sum, 1.0, 1e-6);
  }
}

TEST(LogprobsTest, EqualLogitsRankByLowerId) {
  const ScoredToken token = score_token(kLogits, 3, 3);  // 0.5, 2, -1, 2, 1
  EXPECT_EQ(token.logprob->rank, 2);
  EXPECT_EQ(token.top_logprobs[0].token_id, 1);
  EXPECT_EQ(token.top_logprobs[1].token_id, 3);
  EXPECT_EQ(token.top_logprobs[2].token_id, 4);
  EXPECT_THROW(score_token(kLogits, 5, 0), Error);
  EXPECT_THROW(score_token(kLogits, -1, 0), Error);
  EXPECT_THROW(score_token(kLogits, 0, 6), Error);
}

TEST(LogprobsTest, AreThoseOfDoublePrecision) {
  std::mt19937 random(3);
  for (const size_t vocab_size : {size_t{1}, size_t{15}, size_t{16}, size_t{33}, size_t{50257}}) {
    for (const float scale : {0.0f, 0.01f, 1.0f, 6.0f, 100.0f}) {
      std::normal_distribution<float> normal(-30, scale);
      std::vector<float> logits(vocab_size);
      for (float& logit : logits) logit = scale == 0 ? 4.5f : normal(random);
      double largest = -1e30, sum = 0;
      for (const float logit : logits) largest = std::max(largest, static_cast<double>(logit));
      for (const float logit : logits) sum += std::exp(logit - largest);
      for (int i = 0; i < 20; ++i) {
        const auto id = static_cast<int32_t>(random() % vocab_size);
        const float logit = logits[static_cast<size_t>(id)];
        const double wanted = logit - largest - std::log(sum);
        const ScoredToken token = score_token(logits, id, 0);
        EXPECT_NEAR(token.logprob->logprob, wanted, 2e-7 + 1e-7 * std::abs(wanted))
            << vocab_size << " logits of scale " << scale;
        int32_t rank = 1;
        for (int32_t other = 0; other < static_cast<int32_t>(vocab_size); ++other) {
          const float l = logits[static_cast<size_t>(other)];
          rank += l > logit || (l == logit && other < id) ? 1 : 0;
        }
        EXPECT_EQ(token.logprob->rank, rank);
      }
    }
  }
}

TEST(SamplerTest, FindsWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const size_t size : {size_t{1}, size_t{16}, size_t{37}}) {
    std::vector<float> logits(size, -kInfinity);
    EXPECT_FALSE(is_finite(logits));
    for (size_t i = 0; i < size; ++i) {
      logits[i] = -3.0f;
      EXPECT_TRUE(is_finite(logits));
      for (const float bad : {kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
        logits[i] = bad;
        EXPECT_FALSE(is_finite(logits)) << i << " of " << size;
      }
      logits[i] = -kInfinity;
    }
  }
}

TEST(LogprobsTest, LargeLogitsAndZeroProbabilitiesStayNumbers) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> logits{3e38f, -3e38f, -kInfinity, 3e38f};
  const ScoredToken token = score_token(logits, 0, 4);
  EXPECT_FLOAT_EQ(token.logprob->logprob, -std::log(2.0f));
  EXPECT_EQ(token.top_logprobs[3].token_id, 2);
  EXPECT_EQ(token.top_logprobs[3].logprob, -kInfinity);
}

TEST(SamplerTest, RefusesParametersOutsideTheirRange) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto refused = [](const char* what, auto change) {
    SamplingParams params;
    change(params);
    try {
      validate(params, 100);
      ADD_FAILURE() << what << " was taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find(what), std::string::npos) << error.what();
    }
  };
  validate({}, 100);
  for (const float bad : {-1.0f, 100.5f, NAN, kInfinity}) {
    refused("temperature", [&](SamplingParams& p) { p.temperature = bad; });
  }
  for (const float bad : {0.0f, -0.1f, 1.5f, NAN}) {
    refused("top_p", [&](SamplingParams& p) { p.top_p = bad; });
  }
  for (const float bad : {-0.1f, 1.5f, NAN}) {
    refused("min_p", [&](SamplingParams& p) { p.min_p = bad; });
  }
  for (const float bad : {0.0f, -1.0f, NAN, kInfinity}) {
    refused("repetition_penalty", [&](SamplingParams& p) { p.repetition_penalty = bad; });
  }
  for (const float bad : {2e9f, -2e9f, NAN, kInfinity, -kInfinity}) {
    refused("presence_penalty", [&](SamplingParams& p) { p.presence_penalty = bad; });
    refused("frequency_penalty", [&](SamplingParams& p) { p.frequency_penalty = bad; });
    refused("logit_bias of token 7", [&](SamplingParams& p) { p.logit_bias = {{7, bad}}; });
  }
  refused("top_k", [](SamplingParams& p) { p.top_k = -1; });
  for (const int32_t id : {-1, 100}) {
    refused("logit_bias", [&](SamplingParams& p) { p.logit_bias = {{id, 1.0f}}; });
    refused("stop_token_ids", [&](SamplingParams& p) { p.stop_token_ids = {5, id}; });
  }
  refused("token 7 twice", [](SamplingParams& p) { p.logit_bias = {{7, 1}, {8, 1}, {7, 2}}; });
  for (const int32_t bad : {-2, 101}) {
    refused("num_logprobs", [&](SamplingParams& p) { p.num_logprobs = bad; });
    refused("num_prompt_logprobs", [&](SamplingParams& p) { p.num_prompt_logprobs = bad; });
  }
  refused("max output length", [](SamplingParams& p) { p.max_output_len = 0; });
  refused("max output length", [](SamplingParams& p) {
    p.max_output_len = -1;
    p.num_prompt_logprobs = 0;
  });
  refused("min output length", [](SamplingParams& p) { p.min_output_len = -1; });
  refused("min output length", [](SamplingParams& p) { p.min_output_len = p.max_output_len + 1; });
  refused("stop string", [](SamplingParams& p) { p.stop = {"a", ""}; });
  SamplingParams scoring;  // a prompt alone can be scored
  scoring.max_output_len = 0;
  scoring.num_prompt_logprobs = 3;
  validate(scoring, 100);
}

TEST(StopStringsTest, ShowsNothingOfAStopString) {
  StopStrings stops({"###", "\n\nEnd"});
  EXPECT_EQ(stops.push("a#"), "a");
  EXPECT_EQ(stops.push("b##"), "#b");
  EXPECT_EQ(stops.push("\n"), "##");
  EXPECT_EQ(stops.push("\nE"), "");
  EXPECT_EQ(stops.push("x"), "\n\nEx");
  EXPECT_EQ(stops.push("\n\nEnd of it"), "");
  EXPECT_TRUE(stops.found());
  EXPECT_EQ(stops.matched(), "\n\nEnd");
  EXPECT_EQ(stops.push("more"), "");
  EXPECT_EQ(stops.flush(), "");
}

TEST(StopStringsTest, FlushGivesBackWhatWaited) {
  StopStrings stops({"stop"});
  EXPECT_EQ(stops.push("a sto"), "a ");
  EXPECT_FALSE(stops.found());
  EXPECT_EQ(stops.flush(), "sto");
}

TEST(StopStringsTest, AnySplitOfTheStreamShowsTheSameText) {
  const std::string text = "one two ababac three";
  for (size_t i = 0; i <= text.size(); ++i) {
    StopStrings stops({"abac"});
    std::string shown = stops.push(text.substr(0, i));
    shown += stops.push(text.substr(i));
    shown += stops.flush();
    EXPECT_EQ(shown, "one two ab") << i;
    EXPECT_TRUE(stops.found());
  }
}

}  // namespace
}  // namespace caravan
