#include "eval/parity.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "eval/distributions.h"
#include "sampling/sampler.h"

namespace caravan {

namespace {

// Positions of one prompt whose logits are compared, from the end. The head is the oracle's most
// expensive step: 50257 x 768 products a position for GPT-2, one by one.
constexpr int64_t kMaxLogitsRows = 8;

/// One sequence on a runner whose cache it has to itself.
class SingleSequence {
 public:
  explicit SingleSequence(ModelRunner& runner)
      : runner_(runner), batch_(runner.cache().block_size()) {
    const int64_t num_blocks = ceil_div(runner.max_seq_len(), runner.cache().block_size());
    block_table_.resize(static_cast<size_t>(num_blocks));
    std::iota(block_table_.begin(), block_table_.end(), 0);
  }

  /// Runs ids as the tokens that follow what was run since restart().
  void forward(std::span<const int32_t> ids, const ForwardObserver& observer = nullptr) {
    batch_.clear();
    batch_.add_sequence(ids.data(), static_cast<int64_t>(ids.size()), num_done_, block_table_,
                        LogitsWanted::kLast);
    runner_.forward(batch_, observer);
    num_done_ += static_cast<int64_t>(ids.size());
  }
  /// [vocab_size] of token `row` of the last forward().
  std::span<const float> logits(int64_t row) { return runner_.logits(row, 1); }
  void restart() { num_done_ = 0; }

 private:
  ModelRunner& runner_;
  Batch batch_;
  std::vector<int32_t> block_table_;
  int64_t num_done_ = 0;
};

bool is_compared(std::string_view name) {
  return name == "embedding" || name == "ln_f" ||
         (name.starts_with("h.") && name.find('.', 2) == std::string_view::npos);
}

/// ||got - wanted|| / ||wanted||, fed in parts, in double.
class RelativeError {
 public:
  void add(std::span<const float> got, std::span<const float> wanted) {
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double d = static_cast<double>(got[i]) - static_cast<double>(wanted[i]);
      difference_ += d * d;
      norm_ += static_cast<double>(wanted[i]) * static_cast<double>(wanted[i]);
    }
  }
  double value() const {
    if (difference_ == 0) return 0;
    return norm_ > 0 ? std::sqrt(difference_ / norm_) : std::numeric_limits<double>::infinity();
  }

 private:
  double difference_ = 0;
  double norm_ = 0;
};

std::vector<int32_t> greedy(SingleSequence& sequence, const std::vector<int32_t>& prompt,
                            int64_t num_tokens) {
  sequence.restart();
  sequence.forward(prompt);
  std::vector<int32_t> ids = {argmax(sequence.logits(static_cast<int64_t>(prompt.size()) - 1))};
  while (static_cast<int64_t>(ids.size()) < num_tokens) {
    sequence.forward({&ids.back(), 1});
    ids.push_back(argmax(sequence.logits(0)));
  }
  return ids;
}

/// Compares one prompt's hidden states and logits.
class PromptComparison {
 public:
  PromptComparison(SingleSequence& oracle, SingleSequence& engine, ParityReport& report)
      : oracle_(oracle), engine_(engine), report_(report) {}

  void run(const std::vector<int32_t>& prompt) {
    states_.clear();
    oracle_.restart();
    oracle_.forward(prompt, [&](std::string_view name, const Tensor& value) {
      if (is_compared(name)) states_.emplace_back(name, copy(value));
    });
    size_t next = 0;
    engine_.restart();
    engine_.forward(prompt, [&](std::string_view name, const Tensor& value) {
      if (is_compared(name)) compare_state(next++, name, value);
    });
    RelativeError logits_error;
    const auto num_rows = static_cast<int64_t>(prompt.size());
    for (int64_t row = std::max<int64_t>(0, num_rows - kMaxLogitsRows); row < num_rows; ++row) {
      compare_logits(row, logits_error);
    }
    report_.logits_error = worst(report_.logits_error, logits_error.value());
  }

 private:
  static std::vector<float> copy(const Tensor& value) {
    const auto* data = value.as<float>();
    return {data, data + value.shape.num_elements()};
  }

  void compare_state(size_t index, std::string_view name, const Tensor& value) {
    CARAVAN_CHECK_CODE(index < states_.size() && states_[index].first == name, kInternal,
                       "parity: the two forward passes differ at step {}", name);
    const std::vector<float>& wanted = states_[index].second;
    RelativeError error;
    error.add({value.as<float>(), wanted.size()}, wanted);
    auto& errors = report_.layer_errors;
    if (errors.size() <= index) errors.emplace_back(name, 0.0);
    errors[index].second = worst(errors[index].second, error.value());
  }

  void compare_logits(int64_t row, RelativeError& error) {
    const std::span<const float> wanted_view = oracle_.logits(row);
    const std::vector<float> wanted(wanted_view.begin(), wanted_view.end());
    const std::span<const float> got = engine_.logits(row);
    error.add(got, wanted);
    const double kl = kl_divergence(wanted, got);
    report_.kl_mean += kl;
    report_.kl_max = worst(report_.kl_max, kl);
    report_.top1_agreement += argmax(wanted) == argmax(got) ? 1 : 0;
    ++report_.num_positions;
  }

  // The larger; NaN wins over everything, so that it cannot hide.
  static double worst(double a, double b) { return std::isnan(a) || a > b ? a : b; }

  SingleSequence& oracle_;
  SingleSequence& engine_;
  ParityReport& report_;
  std::vector<std::pair<std::string, std::vector<float>>> states_;
};

}  // namespace

ParityTolerances parity_tolerances(DType dtype, DType activation_dtype) {
  // An 8-bit cache outweighs every 16-bit rounding.
  if (dtype == DType::kI8) {
    return {.layer_error = 0.15, .kl_mean = 0.1, .kl_max = 1, .top1_agreement = 0.85};
  }
  if (dtype == DType::kF8E4M3) {
    return {.layer_error = 0.4, .kl_mean = 0.6, .kl_max = 6, .top1_agreement = 0.65};
  }
  // 14 roundings a layer instead of 6: errors grow by sqrt(14 / 6).
  if (activation_dtype == DType::kF16) {
    return {.layer_error = 1.6e-2, .kl_mean = 1e-3, .kl_max = 1e-2, .top1_agreement = 0.95};
  }
  if (activation_dtype == DType::kBF16) {
    return {.layer_error = 8e-2, .kl_mean = 3e-2, .kl_max = 3e-1, .top1_agreement = 0.85};
  }
  switch (dtype) {
    case DType::kF32:
      return {.layer_error = 1e-4, .kl_mean = 1e-6, .kl_max = 1e-5, .top1_agreement = 0.99};
    case DType::kF16:
      return {.layer_error = 1e-2, .kl_mean = 1e-3, .kl_max = 1e-2, .top1_agreement = 0.95};
    default:
      return {.layer_error = 5e-2, .kl_mean = 1e-2, .kl_max = 1e-1, .top1_agreement = 0.85};
  }
}

std::vector<std::vector<int32_t>> parity_prompts(int64_t vocab_size, int64_t max_len,
                                                 const Tokenizer* tokenizer) {
  std::vector<std::vector<int32_t>> prompts;
  // Knuth's MMIX generator; its high bits choose the ids.
  uint64_t state = 2463534242u;
  for (const int64_t wanted : {1, 7, 33, 64}) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < std::min(wanted, max_len); ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      ids.push_back(static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocab_size)));
    }
    prompts.push_back(std::move(ids));
  }
  if (tokenizer == nullptr) return prompts;
  for (const char* sentence : {"The quick brown fox jumps over the lazy dog.",
                               "Describe a futuristic device that revolutionizes space travel.",
                               "In 1905 a clerk in Bern wrote four papers; \"annus mirabilis\" is "
                               "what they call it now."}) {
    std::vector<int32_t> ids = tokenizer->encode(sentence);
    if (static_cast<int64_t>(ids.size()) > max_len) ids.resize(static_cast<size_t>(max_len));
    const bool is_in_range =
        std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return id < vocab_size; });
    if (is_in_range) prompts.push_back(std::move(ids));
  }
  return prompts;
}

ParityReport measure_parity(ModelRunner& oracle, ModelRunner& engine,
                            const std::vector<std::vector<int32_t>>& prompts, int64_t greedy_len) {
  ParityReport report;
  report.oracle = oracle.backend().description();
  report.engine = engine.backend().description();
  report.num_prompts = static_cast<int64_t>(prompts.size());
  report.greedy_len = greedy_len;
  report.greedy_prefix_min = greedy_len;
  SingleSequence oracle_sequence(oracle);
  SingleSequence engine_sequence(engine);
  PromptComparison comparison(oracle_sequence, engine_sequence, report);
  for (const std::vector<int32_t>& prompt : prompts) {
    comparison.run(prompt);
    const auto wanted = greedy(oracle_sequence, prompt, greedy_len);
    const auto got = greedy(engine_sequence, prompt, greedy_len);
    const auto first_difference = std::mismatch(wanted.begin(), wanted.end(), got.begin()).first;
    const int64_t prefix = first_difference - wanted.begin();
    report.greedy_prefix_min = std::min(report.greedy_prefix_min, prefix);
    report.greedy_prefix_mean += static_cast<double>(prefix);
  }
  const auto positions = static_cast<double>(std::max<int64_t>(1, report.num_positions));
  report.kl_mean /= positions;
  report.top1_agreement /= positions;
  report.greedy_prefix_mean /= static_cast<double>(std::max<size_t>(1, prompts.size()));
  return report;
}

boost::json::object parity_json(const ParityReport& report, const ParityTolerances& tolerances) {
  boost::json::object layers;
  for (const auto& [name, error] : report.layer_errors) layers[name] = error;
  return {{"oracle", report.oracle},
          {"engine", report.engine},
          {"num_prompts", report.num_prompts},
          {"num_positions", report.num_positions},
          {"layer_errors", std::move(layers)},
          {"logits_error", report.logits_error},
          {"kl_mean", report.kl_mean},
          {"kl_max", report.kl_max},
          {"top1_agreement", report.top1_agreement},
          {"greedy_len", report.greedy_len},
          {"greedy_prefix_min", report.greedy_prefix_min},
          {"greedy_prefix_mean", report.greedy_prefix_mean},
          {"tolerances",
           {{"layer_error", tolerances.layer_error},
            {"kl_mean", tolerances.kl_mean},
            {"kl_max", tolerances.kl_max},
            {"top1_agreement", tolerances.top1_agreement}}}};
}

void check_parity(const ParityReport& report, const ParityTolerances& tolerances) {
  // Written so that NaN fails.
  const auto check = [](const std::string& what, double got, double limit) {
    CARAVAN_CHECK_CODE(got <= limit, kUnsupported,
                       "parity: {} is {:.3g}, at most {:.3g} is allowed; the engine does not "
                       "compute what the model does: choose a finer --dtype",
                       what, got, limit);
  };
  for (const auto& [name, error] : report.layer_errors) {
    check(fmt::format("the relative error after {}", name), error, tolerances.layer_error);
  }
  check("the relative error of the logits", report.logits_error, tolerances.layer_error);
  check("the mean KL divergence", report.kl_mean, tolerances.kl_mean);
  check("the largest KL divergence", report.kl_max, tolerances.kl_max);
  // The tolerance is of the rate; the share of few positions may lie three standard deviations
  // above.
  const double rate = 1 - tolerances.top1_agreement;
  const auto positions = static_cast<double>(std::max<int64_t>(1, report.num_positions));
  check("the share of other most likely tokens", 1 - report.top1_agreement,
        rate + 3 * std::sqrt(rate * (1 - rate) / positions));
}

}  // namespace caravan
