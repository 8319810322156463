#include "apps/bench_serve_load.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>
#include <random>
#include <sstream>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/mapped_file.h"
#include "core/split_mix.h"

namespace caravan {

namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 30;

/// What one request asks for, before it is JSON.
struct Wish {
  std::optional<std::string> text;
  int64_t input_len = 0;  // of a random prompt
  int64_t output_len = 0;
  double start_s = 0;
};

/// Numbers that depend on nothing but the seed: the same load on every platform.
class LoadRandom {
 public:
  explicit LoadRandom(uint64_t seed) : state_(split_mix(seed + 1)) {}
  uint64_t next() { return split_mix(state_ += 0x9e3779b97f4a7c15ull); }
  /// In (0, 1).
  double uniform() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1.0p-53; }
  int64_t between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(2 * M_PI * uniform()); }
  /// Of mean `shape`. Source: Marsaglia and Tsang 2000.
  double gamma(double shape) {
    if (shape < 1) return gamma(shape + 1) * std::pow(uniform(), 1 / shape);
    const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
    for (;;) {
      const double x = normal();
      const double v = std::pow(1 + c * x, 3);
      if (v > 0 && std::log(uniform()) < 0.5 * x * x + d - d * v + d * std::log(v)) return d * v;
    }
  }

 private:
  uint64_t state_;
};

int64_t length_near(LoadRandom& random, int64_t mean, double ratio) {
  const auto spread = static_cast<int64_t>(static_cast<double>(mean) * ratio);
  return random.between(std::max<int64_t>(1, mean - spread), mean + spread);
}

std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream stream(read_text_file(path, kMaxFileBytes));
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) {
    if (line.ends_with('\r')) line.pop_back();
    lines.push_back(std::move(line));
  }
  return lines;
}

std::vector<Wish> jsonl_wishes(const LoadPlan& plan) {
  std::vector<Wish> wishes;
  const std::vector<std::string> lines = lines_of(plan.dataset_path);
  for (size_t i = 0; i < lines.size() && std::ssize(wishes) < plan.num_prompts; ++i) {
    if (lines[i].empty()) continue;
    const std::string where = fmt::format("{}: line {}", plan.dataset_path, i + 1);
    const boost::json::value line = parse_json(lines[i], where);
    const boost::json::object* object = line.if_object();
    CARAVAN_CHECK_CODE(object != nullptr, kCorrupt, "{}: expected an object", where);
    const boost::json::value* text = object->if_contains("prompt");
    if (text == nullptr) text = object->if_contains("instruction");
    const boost::json::value* turns = object->if_contains("turns");
    if (text == nullptr && turns != nullptr && turns->is_array() && !turns->as_array().empty()) {
      text = &turns->as_array().front();
    }
    CARAVAN_CHECK_CODE(text != nullptr && text->is_string(), kCorrupt,
                       "{}: expected \"prompt\", \"instruction\" or \"turns\" with text", where);
    Wish wish;
    wish.text = std::string(text->as_string());
    wish.output_len = plan.random_output_len;
    if (const auto* tokens = object->if_contains("output_tokens")) {
      CARAVAN_CHECK_CODE(tokens->is_int64() && tokens->as_int64() >= 1, kCorrupt,
                         "{}: output_tokens: expected a whole number from 1", where);
      wish.output_len = tokens->as_int64();
    }
    if (plan.output_len > 0) wish.output_len = plan.output_len;
    wishes.push_back(std::move(wish));
  }
  CARAVAN_CHECK_CODE(!wishes.empty(), kCorrupt, "{}: no prompt in it", plan.dataset_path);
  // Fewer lines than prompts: from the start again.
  const size_t count = wishes.size();
  while (std::ssize(wishes) < plan.num_prompts) {
    Wish again = wishes[wishes.size() % count];
    wishes.push_back(std::move(again));
  }
  return wishes;
}

/// Lines of verse: shared beginnings, which a prefix cache may keep, and ends of their own.
std::vector<Wish> sonnet_wishes(const LoadPlan& plan, LoadRandom& random) {
  constexpr size_t kBytesPerToken = 4;
  std::vector<std::string> lines = lines_of(plan.dataset_path);
  std::erase(lines, "");
  CARAVAN_CHECK_CODE(!lines.empty(), kCorrupt, "{}: no line in it", plan.dataset_path);
  const auto prefix_bytes = static_cast<size_t>(plan.sonnet_prefix_len) * kBytesPerToken;
  const auto prompt_bytes = static_cast<size_t>(plan.random_input_len) * kBytesPerToken;
  std::string prefix;
  for (size_t i = 0; prefix.size() < prefix_bytes; ++i) prefix += lines[i % lines.size()] + "\n";
  std::vector<Wish> wishes;
  while (std::ssize(wishes) < plan.num_prompts) {
    std::string text = prefix;
    while (text.size() < prompt_bytes) text += lines[random.next() % lines.size()] + "\n";
    wishes.push_back({.text = std::move(text),
                      .input_len = 0,
                      .output_len = plan.random_output_len,
                      .start_s = 0});
  }
  return wishes;
}

template <typename T>
bool parse_number(std::string_view text, T& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size();
}

/// "2023-11-16 18:17:03.9799600,4808,10": seconds of its day, prompt, output.
std::optional<Wish> parse_trace_line(const std::string& line) {
  const size_t first = line.find(','), second = line.find(',', first + 1);
  const size_t space = line.find(' ');
  if (second == std::string::npos || space == std::string::npos || space > first) return {};
  const std::string_view all = line;
  const std::string_view time = all.substr(space + 1, first - space - 1);
  Wish wish;
  int hours = 0, minutes = 0;
  double rest = 0;
  if (time.size() < 8 || time[2] != ':' || time[5] != ':' ||
      !parse_number(time.substr(0, 2), hours) || !parse_number(time.substr(3, 2), minutes) ||
      !parse_number(time.substr(6), rest) ||
      !parse_number(all.substr(first + 1, second - first - 1), wish.input_len) ||
      !parse_number(all.substr(second + 1), wish.output_len) || wish.input_len < 1 ||
      wish.output_len < 1) {
    return {};
  }
  wish.start_s = hours * 3600 + minutes * 60 + rest;
  return wish;
}

std::vector<Wish> trace_wishes(const LoadPlan& plan) {
  std::vector<Wish> wishes;
  const std::vector<std::string> lines = lines_of(plan.dataset_path);
  for (size_t i = 1; i < lines.size() && std::ssize(wishes) < plan.num_prompts; ++i) {
    if (lines[i].empty()) continue;
    std::optional<Wish> wish = parse_trace_line(lines[i]);
    CARAVAN_CHECK_CODE(wish.has_value(), kCorrupt,
                       "{}: line {}: expected TIMESTAMP,ContextTokens,GeneratedTokens",
                       plan.dataset_path, i + 1);
    if (!wishes.empty() && wish->start_s + 43200 < wishes.front().start_s) wish->start_s += 86400;
    wishes.push_back(std::move(*wish));
  }
  CARAVAN_CHECK_CODE(!wishes.empty(), kCorrupt, "{}: no request in it", plan.dataset_path);
  const double began = wishes.front().start_s;
  for (Wish& wish : wishes) wish.start_s = std::max(0.0, wish.start_s - began);
  return wishes;
}

boost::json::value random_prompt(const LoadPlan& plan, int64_t length, LoadRandom& random) {
  if (plan.sends_text || plan.is_chat) {
    // Words of one token each in GPT-2's vocabulary.
    static constexpr const char* kWords[] = {"the", "of",   "and",  "to",    "in",   "is",  "was",
                                             "for", "with", "that", "water", "time", "man", "year",
                                             "day", "way",  "life", "world", "hand", "part"};
    std::string text;
    for (int64_t i = 0; i < length; ++i) {
      if (i > 0) text += ' ';
      text += kWords[random.next() % std::size(kWords)];
    }
    return boost::json::string(text);
  }
  boost::json::array ids;
  for (int64_t i = 0; i < length; ++i) ids.push_back(random.between(0, plan.vocab_size - 1));
  return ids;
}

std::string body_of(const LoadPlan& plan, const Wish& wish, LoadRandom& random) {
  boost::json::value prompt =
      wish.text ? boost::json::value(*wish.text) : random_prompt(plan, wish.input_len, random);
  boost::json::object body;
  if (!plan.model.empty()) body["model"] = plan.model;
  if (plan.is_chat) {
    body["messages"] =
        boost::json::array{boost::json::object{{"role", "user"}, {"content", std::move(prompt)}}};
  } else {
    body["prompt"] = std::move(prompt);
  }
  body["max_tokens"] = wish.output_len;
  body["temperature"] = plan.temperature;
  if (plan.ignores_eos) body["ignore_eos"] = true;
  body["stream"] = true;
  body["stream_options"] = boost::json::object{{"include_usage", true}};
  return to_json_text(body);
}

void check_plan(const LoadPlan& plan) {
  CARAVAN_CHECK(plan.num_prompts >= 1 && plan.num_prompts <= 10'000'000,
                "--num-prompts {}: expected 1 to 10000000", plan.num_prompts);
  CARAVAN_CHECK(plan.random_input_len >= 1 && plan.random_output_len >= 1,
                "--random-input-len {}, --random-output-len {}: expected at least 1",
                plan.random_input_len, plan.random_output_len);
  CARAVAN_CHECK(plan.random_range_ratio >= 0 && plan.random_range_ratio < 1,
                "--random-range-ratio {}: expected from 0 to below 1", plan.random_range_ratio);
  CARAVAN_CHECK(plan.request_rate >= 0, "--request-rate {}: expected more than 0, or inf",
                plan.request_rate);
  CARAVAN_CHECK(plan.burstiness > 0, "--burstiness {}: expected more than 0", plan.burstiness);
  CARAVAN_CHECK(plan.vocab_size >= 1, "--vocab-size {}: expected at least 1", plan.vocab_size);
  CARAVAN_CHECK(plan.canary_every >= 0, "--canary-every {}: expected 0 or more", plan.canary_every);
  constexpr int64_t kMaxSonnetTokens = 1'000'000;
  CARAVAN_CHECK(
      plan.dataset != "sonnet" ||
          (plan.sonnet_prefix_len >= 0 && plan.sonnet_prefix_len <= plan.random_input_len &&
           plan.random_input_len <= kMaxSonnetTokens),
      "--sonnet-prefix-len {}, --random-input-len {}: expected 0 to {}, the prefix the shorter",
      plan.sonnet_prefix_len, plan.random_input_len, kMaxSonnetTokens);
  CARAVAN_CHECK(plan.dataset == "random" || !plan.dataset_path.empty(),
                "--dataset-name {} needs --dataset-path FILE", plan.dataset);
}

}  // namespace

std::vector<LoadRequest> make_load(const LoadPlan& plan) {
  check_plan(plan);
  LoadRandom random(plan.seed);
  std::vector<Wish> wishes;
  if (plan.dataset == "jsonl") {
    wishes = jsonl_wishes(plan);
  } else if (plan.dataset == "sonnet") {
    wishes = sonnet_wishes(plan, random);
  } else if (plan.dataset == "trace") {
    wishes = trace_wishes(plan);
  } else {
    for (int64_t i = 0; i < plan.num_prompts; ++i) {
      const int64_t input = length_near(random, plan.random_input_len, plan.random_range_ratio);
      const int64_t output = length_near(random, plan.random_output_len, plan.random_range_ratio);
      wishes.push_back(
          {.text = std::nullopt, .input_len = input, .output_len = output, .start_s = 0});
    }
  }
  std::vector<LoadRequest> requests;
  requests.reserve(wishes.size());
  double start_s = 0;
  for (const Wish& wish : wishes) {
    requests.push_back({.start_s = wish.start_s, .body = body_of(plan, wish, random)});
    if (plan.request_rate > 0) {
      requests.back().start_s = start_s;
      start_s += random.gamma(plan.burstiness) / (plan.burstiness * plan.request_rate);
    }
  }
  std::stable_sort(requests.begin(), requests.end(),
                   [](const auto& a, const auto& b) { return a.start_s < b.start_s; });
  if (plan.canary_every > 0) {
    LoadPlan greedy = plan;
    greedy.temperature = 0;
    const std::string canary = body_of(greedy, wishes.front(), random);
    const auto step = static_cast<size_t>(plan.canary_every);
    for (size_t i = 0; i < requests.size(); i += step) requests[i].body = canary;
  }
  return requests;
}

}  // namespace caravan
