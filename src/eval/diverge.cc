#include "eval/diverge.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "core/progress.h"
#include "eval/diverge_cause.h"

namespace caravan {

namespace {

// Runs on moved inputs. Their root mean square estimates one token's response; four keep the chance
// small that all miss the direction in which a token of attention is sensitive.
constexpr int kNumMoved = 4;
// How far beyond the measured response of rounding a difference must be (docs/diverge.md).
constexpr double kMargin = 8;
// Rows of logits that are compared at a time.
constexpr int64_t kHeadRows = 64;
// Tokens that causes are looked for in.
constexpr size_t kCauseRows = 8;

double squared(double x) { return x * x; }

bool adds_to_stream(OpKind kind) { return kind == OpKind::kAttnResidual || kind == OpKind::kLayer; }

/// ||a - b|| and the largest |a - b| of one row, in double. NaN wins.
struct RowDifference {
  double norm = 0;
  double largest = 0;
  int64_t index = 0;
};
RowDifference row_difference(std::span<const float> a, std::span<const float> b) {
  RowDifference d;
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double e = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    sum += e * e;
    if (e > d.largest || (std::isnan(e) && !std::isnan(d.largest))) {
      d.largest = e;
      d.index = static_cast<int64_t>(i);
    }
  }
  d.norm = std::sqrt(sum);
  return d;
}

double row_norm(std::span<const float> a) {
  double sum = 0;
  for (const float x : a) sum += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(sum);
}

float largest_magnitude(std::span<const float> a) {
  float largest = 0;
  for (const float x : a) largest = std::max(largest, std::abs(x));
  return largest;
}

/// Sums over the moved runs of one operator's response, by token.
struct Response {
  std::vector<double> norm;     // of squares
  std::vector<double> largest;  // of squares
};

/// The values of one part and what was found out about them.
class Comparison {
 public:
  Comparison(LayerStream& model, DivergeSide& reference, const DivergeInput& input,
             const DivergeOptions& options)
      : model_(model),
        reference_(reference),
        input_(input),
        options_(options),
        hidden_(model.config().hidden_size),
        rounding_(model.config(), rounding_of(model), reference.rounding(),
                  *std::max_element(input.lengths.begin(), input.lengths.end())) {
    report_.model =
        fmt::format("{}, {} weights, {} KV cache", model.backend().description(),
                    dtype_name(model.weight_dtype()), dtype_name(model.kv_cache_dtype()));
    report_.reference = reference.description();
    report_.num_tokens = input.num_tokens();
    report_.num_sequences = static_cast<int64_t>(input.lengths.size());
    report_.num_layers = model.config().num_layers;
    if (reference.config() != nullptr) {
      report_.facts = config_differences(model.config(), *reference.config());
    }
  }

  DivergeReport run() {
    Progress progress("comparing", static_cast<uint64_t>(model_.config().num_layers + 2), "parts");
    embedding();
    progress.add(1);
    for (int64_t i = 0; i < model_.config().num_layers; ++i) {
      if (is_done()) break;
      layer(i);
      progress.add(1);
    }
    if (!is_done()) head();
    progress.finish();
    return std::move(report_);
  }

 private:
  bool is_done() const { return options_.stop_at_first && report_.first() != nullptr; }

  size_t width(const std::vector<float>& values, int64_t num_rows) const {
    return values.size() / static_cast<size_t>(num_rows);
  }

  // The reference's values of `name`; null where it shows none.
  const std::vector<float>* wanted(std::string_view name) const {
    const auto found = wanted_.find(name);
    return found == wanted_.end() ? nullptr : &found->second;
  }

  // Rows of what the reference made take the place of `value`'s.
  bool replace(std::string_view name, int64_t first_row, const Tensor& value) const {
    const std::vector<float>* values = wanted(name);
    if (values == nullptr) return false;
    const auto count = static_cast<size_t>(value.shape.num_elements());
    const auto first = static_cast<size_t>(first_row * value.shape[1]);
    std::memcpy(value.data, values->data() + first, count * sizeof(float));
    return true;
  }

  void record(std::string_view name, const Tensor& value) {
    auto& all = forced_[std::string(name)];
    all.insert(all.end(), value.as<float>(), value.as<float>() + value.shape.num_elements());
  }

  LayerStream::Hook free_hook() {
    return [this](std::string_view name, int64_t first_row, const Tensor& value) {
      compare_free(name, first_row, value);
      return false;
    };
  }
  LayerStream::Hook forced_hook() {
    return [this](std::string_view name, int64_t first_row, const Tensor& value) {
      record(name, value);
      return replace(name, first_row, value);
    };
  }
  LayerStream::Hook moved_hook(int run) {
    return [this, run](std::string_view name, int64_t first_row, const Tensor& value) {
      add_response(name, first_row, value);
      replace(name, first_row, value);
      rounding_.move(*parse_op_name(name), seed(run), part_first_ + first_row,
                     {value.as<float>(), static_cast<size_t>(value.shape.num_elements())});
      return true;
    };
  }
  uint64_t seed(int run) const { return options_.seed * 64 + static_cast<uint64_t>(run); }

  void compare_free(std::string_view name, int64_t first_row, const Tensor& value) {
    const std::vector<float>* values = wanted(name);
    if (values == nullptr) return;
    const auto count = static_cast<size_t>(value.shape.num_elements());
    const float* want = values->data() + first_row * value.shape[1];
    DivergeOp& op = entry(*parse_op_name(name));
    op.is_same_bits = op.is_same_bits && std::memcmp(value.data, want, count * sizeof(float)) == 0;
    const RowDifference d = row_difference({value.as<float>(), count}, {want, count});
    global_[op_index(op)].first += squared(d.norm);
    global_[op_index(op)].second += squared(row_norm({want, count}));
  }

  void add_response(std::string_view name, int64_t first_row, const Tensor& value) {
    const auto found = forced_.find(name);
    Response& response = responses_[std::string(name)];
    response.norm.resize(static_cast<size_t>(part_rows_));
    response.largest.resize(static_cast<size_t>(part_rows_));
    const int64_t w = value.shape[1];
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < value.shape[0]; ++t) {
      const auto row = static_cast<size_t>(first_row + t);
      const RowDifference d =
          row_difference({value.as<float>() + t * w, static_cast<size_t>(w)},
                         {found->second.data() + (first_row + t) * w, static_cast<size_t>(w)});
      response.norm[row] += squared(d.norm);
      response.largest[row] += squared(d.largest);
    }
  }

  DivergeOp& entry(const OpId& id) {
    if (report_.ops.empty() || op_name(report_.ops.back().op) != op_name(id)) {
      for (DivergeOp& op : report_.ops) {
        if (op_name(op.op) == op_name(id)) return op;
      }
      report_.ops.push_back({.op = id});
      global_.emplace_back(0.0, 0.0);
      worst_ratio_.push_back(-1);
    }
    return report_.ops.back();
  }
  size_t op_index(const DivergeOp& op) const {
    return static_cast<size_t>(&op - report_.ops.data());
  }

  void begin_part(OpValues values, int64_t first_token, int64_t num_rows) {
    wanted_ = std::move(values);
    forced_.clear();
    responses_.clear();
    part_first_ = first_token;
    part_rows_ = num_rows;
  }

  void embedding() {
    const auto size = static_cast<size_t>(input_.num_tokens() * hidden_);
    begin_part(reference_.embedding(), 0, input_.num_tokens());
    free_.resize(size);
    model_.load_embedding();
    model_.embed(input_.ids, input_.lengths, free_,
                 [&](std::string_view name, int64_t first_row, const Tensor& value) {
                   compare_free(name, first_row, value);
                   record(name, value);  // it reads nothing that could be the reference's
                   return false;
                 });
    judge({OpKind::kEmbedding}, {}, {});
    const std::vector<float>* values = wanted("embedding");
    states_ = values != nullptr ? *values : free_;
    for (int run = 0; run < kNumMoved; ++run) {
      moved_[run] = states_;
      rounding_.move({OpKind::kEmbedding}, seed(run), 0, moved_[run]);
    }
  }

  void layer(int64_t i) {
    begin_part(reference_.layer(i), 0, input_.num_tokens());
    const std::vector<float> before = states_;
    model_.load_layer(i);
    model_.run_layer(input_.lengths, free_, free_hook());
    model_.run_layer(input_.lengths, states_, forced_hook());
    for (int run = 0; run < kNumMoved; ++run) {
      model_.run_layer(input_.lengths, moved_[run], moved_hook(run));
    }
    const auto made = [&](OpKind kind) -> const std::vector<float>& {
      const std::string name = op_name({kind, i});
      const std::vector<float>* values = wanted(name);
      return values != nullptr ? *values : forced_.at(name);
    };
    // The stream to which the MLP adds is the reference's own where it shows it.
    const bool has_residual = wanted(op_name({OpKind::kAttnResidual, i})) != nullptr;
    const std::vector<float>& middle = has_residual ? made(OpKind::kAttnResidual) : before;
    judge({OpKind::kLn1, i}, before, {});
    judge({OpKind::kCAttn, i}, made(OpKind::kLn1), {});
    judge({OpKind::kAttention, i}, made(OpKind::kCAttn), {});
    judge({OpKind::kAttnResidual, i}, made(OpKind::kAttention), before);
    judge({OpKind::kLn2, i}, made(OpKind::kAttnResidual), {});
    judge({OpKind::kMlpAct, i}, made(OpKind::kLn2), {});
    judge({OpKind::kLayer, i}, made(OpKind::kMlpAct), middle);
  }

  void head() {
    const int64_t total = input_.num_tokens();
    model_.load_head();
    for (int64_t first = 0; first < total; first += kHeadRows) {
      const int64_t num_rows = std::min(kHeadRows, total - first);
      begin_part(reference_.head(first, num_rows), first, num_rows);
      run_head(free_, free_hook(),
               [&](int64_t row, const Tensor& logits) { compare_free("logits", row, logits); });
      run_head(states_, forced_hook(),
               [&](int64_t, const Tensor& logits) { record("logits", logits); });
      for (int run = 0; run < kNumMoved; ++run) {
        run_head(moved_[run], moved_hook(run),
                 [&](int64_t row, const Tensor& logits) { add_response("logits", row, logits); });
      }
      const std::vector<float>* normed = wanted("ln_f");
      const auto begin = static_cast<size_t>(first * hidden_);
      const auto count = static_cast<size_t>(num_rows * hidden_);
      judge({OpKind::kLnF}, std::span<const float>(states_).subspan(begin, count), {});
      judge({OpKind::kLogits}, normed != nullptr ? *normed : forced_.at("ln_f"), {});
    }
  }

  void run_head(const std::vector<float>& states, const LayerStream::Hook& hook,
                const LayerStream::OnLogits& on_logits) {
    const auto begin = static_cast<size_t>(part_first_ * hidden_);
    const auto count = static_cast<size_t>(part_rows_ * hidden_);
    model_.run_head(std::span<const float>(states).subspan(begin, count), on_logits, hook);
  }

  // Mean squares of the moved runs' responses, by token; relative to what the operator made at
  // least the median token's. Where one input outweighs all others, as in the streams of trained
  // models, a token's response is that of one number, and all moves of it may happen to be small.
  static std::vector<double> mean_responses(const std::vector<double>& squares,
                                            const std::vector<RowDifference>& made) {
    std::vector<double> responses(made.size());
    if (squares.empty()) return responses;
    std::vector<double> relative;
    for (size_t i = 0; i < made.size(); ++i) {
      responses[i] = squares[i] / kNumMoved;
      const double r = responses[i] / squared(made[i].norm);
      if (std::isfinite(r)) relative.push_back(r);
    }
    if (relative.empty()) return responses;
    const auto middle = relative.begin() + static_cast<std::ptrdiff_t>(relative.size() / 2);
    std::nth_element(relative.begin(), middle, relative.end());
    for (size_t i = 0; i < made.size(); ++i) {
      responses[i] = std::max(responses[i], *middle * squared(made[i].norm));
    }
    return responses;
  }

  // Compares what `op` made in the forced run with what the reference made. read: its input;
  // stream: what it added to.
  void judge(const OpId& id, std::span<const float> read, std::span<const float> stream) {
    const std::string name = op_name(id);
    const std::vector<float>* want = wanted(name);
    if (want == nullptr) return;
    const std::vector<float>& got = forced_.at(name);
    const Response& response = responses_[name];
    DivergeOp& op = entry(id);
    const auto [difference, norm] = global_[op_index(op)];
    op.global_error = difference == 0 ? 0 : std::sqrt(difference / norm);
    const size_t w = width(*want, part_rows_);
    // What the operator made of its own, without the stream that it added to.
    std::vector<RowDifference> made_rows;
    for (size_t row = 0; row < static_cast<size_t>(part_rows_); ++row) {
      const std::span<const float> r = std::span<const float>(*want).subspan(row * w, w);
      made_rows.push_back(stream.empty()
                              ? RowDifference{.norm = row_norm(r), .largest = largest_magnitude(r)}
                              : row_difference(r, stream.subspan(row * w, w)));
    }
    const std::vector<double> norm_responses = mean_responses(response.norm, made_rows);
    const std::vector<double> largest_responses = mean_responses(response.largest, made_rows);
    std::vector<int64_t> bad_rows;
    for (int64_t t = 0; t < part_rows_; ++t) {
      const auto row = static_cast<size_t>(t);
      const std::span<const float> g = std::span<const float>(got).subspan(row * w, w);
      const std::span<const float> r = std::span<const float>(*want).subspan(row * w, w);
      const RowDifference d = row_difference(g, r);
      const double whole = row_norm(r);
      const RowDifference& made = made_rows[row];
      const double added = made.norm > 0 ? whole / made.norm : 1;
      const double output = rounding_.output_error(id, adds_to_stream(id.kind) ? added : 1);
      const double largest = std::max(made.largest, largest_magnitude(r) / added);
      // The largest of many roundings, uniform, is sqrt(3) of their root mean square.
      const double bound = kMargin * std::sqrt(norm_responses[row] + squared(output * made.norm));
      const double largest_bound =
          kMargin * std::sqrt(largest_responses[row] + 3 * squared(output * largest));
      // One element in many shows in the largest difference before it shows in the norm. Written so
      // that NaN is beyond the bound.
      const double ratio = d.norm == 0 ? 0 : std::max(d.norm / bound, d.largest / largest_bound);
      const bool is_bad = !(ratio <= 1);
      const bool is_by_element = is_bad && d.norm <= bound;  // its largest difference alone
      const auto relative = [&](double x) {
        return x == 0 ? 0 : x / made.norm;  // infinite where nothing was wanted, NaN stays
      };
      const bool is_first_bad = is_bad && op.num_bad == 0;
      double& worst = worst_ratio_[op_index(op)];
      const bool is_worst = !(ratio <= worst) && !std::isnan(worst);
      if (is_worst) {
        worst = ratio;
        op.local_error = relative(is_by_element ? d.largest : d.norm);
        op.bound = relative(is_by_element ? largest_bound : bound);
      }
      if (is_first_bad) {
        op.first_bad_token = part_first_ + t;
        op.first_bad_error = relative(is_by_element ? d.largest : d.norm);
        op.first_bad_bound = relative(is_by_element ? largest_bound : bound);
      }
      if (is_first_bad || (is_worst && op.num_bad == 0)) {
        const auto at = static_cast<size_t>(d.index);
        op.worst = {.token = part_first_ + t, .index = d.index, .got = g[at], .wanted = r[at]};
      }
      op.num_sensitive += relative(bound) >= 1 ? 1 : 0;
      if (is_bad) {
        ++op.num_bad;
        bad_rows.push_back(t);
      }
    }
    if (bad_rows.empty() || has_causes_) return;
    has_causes_ = true;
    // Spread out: the first tokens of a text are often alike.
    std::vector<int64_t> rows;
    const size_t num_rows = std::min(bad_rows.size(), kCauseRows);
    for (size_t i = 0; i < num_rows; ++i) rows.push_back(bad_rows[i * bad_rows.size() / num_rows]);
    const ModelConfig* reference_config = reference_.config();
    report_.causes = find_causes({.op = id,
                                  .config = model_.config(),
                                  .weights = model_.weights(),
                                  .reference_config = reference_config,
                                  .reference_weights = reference_.weights(),
                                  .input = input_,
                                  .first_token = part_first_,
                                  .rows = std::move(rows),
                                  .bound = op.first_bad_bound,
                                  .read = read,
                                  .stream = stream,
                                  .got = got,
                                  .wanted = *want});
  }

  LayerStream& model_;
  DivergeSide& reference_;
  const DivergeInput& input_;
  const DivergeOptions& options_;
  int64_t hidden_;
  RoundingModel rounding_;
  DivergeReport report_;
  std::vector<std::pair<double, double>> global_;  // squared norms, by operator
  std::vector<double> worst_ratio_;
  bool has_causes_ = false;

  std::vector<float> free_;              // [num_tokens, hidden_size]: the model alone
  std::vector<float> states_;            // fed by the reference
  std::vector<float> moved_[kNumMoved];  // likewise, moved

  // The part that is compared.
  int64_t part_first_ = 0;
  int64_t part_rows_ = 0;
  OpValues wanted_;
  OpValues forced_;
  std::map<std::string, Response, std::less<>> responses_;
};

void check_shapes(const ModelConfig& a, const ModelConfig& b) {
  const auto check = [](const char* what, int64_t x, int64_t y) {
    CARAVAN_CHECK(x == y, "diverge: {} is {} in the model, {} in the reference: not the same model",
                  what, x, y);
  };
  check("vocab_size", a.vocab_size, b.vocab_size);
  check("n_embd", a.hidden_size, b.hidden_size);
  check("n_layer", a.num_layers, b.num_layers);
  check("n_inner", a.ffn_size, b.ffn_size);
}

}  // namespace

const DivergeOp* DivergeReport::first() const {
  for (const DivergeOp& op : ops) {
    if (op.num_bad > 0) return &op;
  }
  return nullptr;
}

bool DivergeReport::is_same_bits() const {
  return std::all_of(ops.begin(), ops.end(), [](const DivergeOp& op) { return op.is_same_bits; });
}

DivergeReport find_divergence(LayerStream& model, DivergeSide& reference, const DivergeInput& input,
                              const DivergeOptions& options) {
  CARAVAN_CHECK(input.num_tokens() > 0 &&
                    std::accumulate(input.lengths.begin(), input.lengths.end(), int64_t{0}) ==
                        input.num_tokens(),
                "diverge: {} tokens in sequences of other lengths", input.num_tokens());
  if (reference.config() != nullptr) check_shapes(model.config(), *reference.config());
  return Comparison(model, reference, input, options).run();
}

int64_t diverge_bytes(const ModelConfig& config, int64_t num_tokens) {
  // Reference, free, forced and moved states, and one layer's input; values of a layer of the
  // reference and of the forced run; logits of both.
  const int64_t states = (kNumMoved + 4) * config.hidden_size;
  const int64_t layer = 2 * (8 * config.hidden_size + config.ffn_size);
  const int64_t logits = 2 * std::min(num_tokens, kHeadRows) * config.vocab_size;
  return static_cast<int64_t>(sizeof(float)) *
         checked_add(checked_mul(states + layer, num_tokens, "diverge"), logits, "diverge");
}

}  // namespace caravan
