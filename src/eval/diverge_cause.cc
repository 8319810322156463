#include "eval/diverge_cause.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

#include "core/error.h"

namespace caravan {

namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

/// ||a - b|| / ||b|| over all rows.
double relative_error(const Rows& a, const Rows& b) {
  double difference = 0;
  double norm = 0;
  for (size_t r = 0; r < b.size(); ++r) {
    for (size_t i = 0; i < b[r].size(); ++i) {
      const double d = a[r][i] - b[r][i];
      difference += d * d;
      norm += b[r][i] * b[r][i];
    }
  }
  if (difference == 0) return 0;
  return norm > 0 ? std::sqrt(difference / norm) : HUGE_VAL;
}

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

// 0.000999 is shown as 0.001: an epsilon found from float32 values has few digits.
std::string epsilon_text(double epsilon) {
  const double power = std::pow(10, std::round(std::log10(epsilon)));
  return fmt::format("{:.2g}", std::abs(epsilon / power - 1) < 0.05 ? power : epsilon);
}

/// One operator's search. The members are rows of the diverging tokens, in double.
class CauseFinder {
 public:
  explicit CauseFinder(const DivergedOp& d) : d_(d), config_(d.config) {
    const size_t width = d.wanted.size() / num_rows();
    got_ = cut(d.got, width);
    wanted_ = cut(d.wanted, width);
    if (!d.stream.empty()) {
      const Rows stream = cut(d.stream, width);
      got_ = minus(got_, stream);
      wanted_ = minus(wanted_, stream);
    }
    if (!d.read.empty()) read_ = cut(d.read, d.read.size() / num_rows());
    own_error_ = relative_error(got_, wanted_);
  }

  std::vector<std::string> find() {
    if (find_not_finite()) return std::move(causes_);
    if (d_.reference_weights != nullptr) compare_weights();
    switch (d_.op.kind) {
      case OpKind::kEmbedding:
        try_embeddings();
        break;
      case OpKind::kLn1:
      case OpKind::kLn2:
      case OpKind::kLnF:
        try_layer_norms();
        break;
      case OpKind::kCAttn:
        try_qkv();
        break;
      case OpKind::kAttention:
        try_attentions();
        break;
      case OpKind::kAttnResidual:
      case OpKind::kLayer:
        try_linears();
        break;
      case OpKind::kMlpAct:
        try_activations();
        break;
      case OpKind::kLogits:
        try_heads();
        break;
    }
    take_best(offers_);
    if (causes_.empty()) take_best(vague_offers_);
    if (causes_.empty()) describe();
    return std::move(causes_);
  }

 private:
  size_t num_rows() const {
    // Rows of a part: all tokens, or those of one chunk of the head.
    const auto hidden = static_cast<size_t>(config_.hidden_size);
    switch (d_.op.kind) {
      case OpKind::kCAttn:
        return d_.wanted.size() / (3 * hidden);
      case OpKind::kMlpAct:
        return d_.wanted.size() / static_cast<size_t>(config_.ffn_size);
      case OpKind::kLogits:
        return d_.wanted.size() / static_cast<size_t>(config_.vocab_size);
      default:
        return d_.wanted.size() / hidden;
    }
  }

  Rows cut(std::span<const float> values, size_t width) const {
    Rows rows;
    for (const int64_t row : d_.rows) {
      const auto part = values.subspan(static_cast<size_t>(row) * width, width);
      rows.emplace_back(part.begin(), part.end());
    }
    return rows;
  }
  static Rows minus(Rows a, const Rows& b) {
    for (size_t r = 0; r < a.size(); ++r) {
      for (size_t i = 0; i < a[r].size(); ++i) a[r][i] -= b[r][i];
    }
    return a;
  }

  std::string layer_name(const char* part) const {
    return fmt::format("h.{}.{}", d_.op.layer, part);
  }

  // NaN and infinity, which make everything after them meaningless.
  bool find_not_finite() {
    const auto count = [](std::span<const float> values) {
      return std::count_if(values.begin(), values.end(), [](float x) { return !std::isfinite(x); });
    };
    for (const auto& [who, values] :
         {std::pair{"the reference", d_.wanted}, {"the model", d_.got}}) {
      const auto num_bad = count(values);
      if (num_bad == 0) continue;
      causes_.push_back(
          fmt::format("{} of {} values of {} are not finite: something in its arithmetic "
                      "overflowed, as float16 "
                      "does beyond 65504",
                      num_bad, values.size(), who));
    }
    return !causes_.empty();
  }

  using Offers = std::vector<std::pair<double, std::string>>;

  // Remembers what would make the values `rows`.
  void offer(const Rows& rows, std::string cause) {
    offers_.emplace_back(relative_error(rows, wanted_), std::move(cause));
  }
  // The same for a cause that says less; it counts when no other fits.
  void offer_vague(const Rows& rows, std::string cause) {
    vague_offers_.emplace_back(relative_error(rows, wanted_), std::move(cause));
  }
  // The offer that fits best, if rounding explains the rest.
  void take_best(const Offers& offers) {
    const auto best =
        std::min_element(offers.begin(), offers.end(),
                         [](const auto& a, const auto& b) { return a.first < b.first; });
    if (best == offers.end()) return;
    if (!(best->first <= std::max(d_.bound, 0.02 * own_error_) && best->first < 0.3 * own_error_)) {
      return;
    }
    causes_.push_back(fmt::format("{} (recomputed that way, the reference is met within {:.1e})",
                                  best->second, best->first));
  }

  // Candidates that any operator can have.
  void offer_plain_mistakes(const std::vector<float>* bias, const char* bias_name) {
    if (bias != nullptr) {
      Rows without = got_;
      for (Row& row : without) {
        for (size_t i = 0; i < row.size(); ++i) row[i] -= static_cast<double>((*bias)[i]);
      }
      offer(without, fmt::format("the reference lacks {}", bias_name));
    }
    double dot = 0;
    double norm = 0;
    for (size_t r = 0; r < got_.size(); ++r) {
      for (size_t i = 0; i < got_[r].size(); ++i) {
        dot += got_[r][i] * wanted_[r][i];
        norm += got_[r][i] * got_[r][i];
      }
    }
    if (norm > 0) {
      Rows scaled = got_;
      for (Row& row : scaled) {
        for (double& x : row) x *= dot / norm;
      }
      offer_vague(scaled,
                  fmt::format("the reference's values are {:.6g} times the model's", dot / norm));
    }
    // The same vector missing in every token: a bias of which the model's own says nothing.
    if (got_.size() > 1) {
      Row mean(got_[0].size());
      for (size_t r = 0; r < got_.size(); ++r) {
        for (size_t i = 0; i < mean.size(); ++i) {
          mean[i] += (wanted_[r][i] - got_[r][i]) / static_cast<double>(got_.size());
        }
      }
      Rows moved = got_;
      for (Row& row : moved) {
        for (size_t i = 0; i < mean.size(); ++i) row[i] += mean[i];
      }
      const auto num_different =
          std::count_if(mean.begin(), mean.end(), [&](double x) { return std::abs(x) > 0; });
      if (num_different > 0) {
        offer_vague(moved, "the difference is the same for every token: a bias");
      }
    }
  }

  // W of [in, out] row-major: y = x W + bias.
  Rows linear(const std::vector<float>& w, const std::vector<float>* bias, size_t out,
              const std::function<double(size_t k, size_t n)>& at = nullptr) const {
    Rows y(read_.size(), Row(out));
#pragma omp parallel for schedule(dynamic)
    for (size_t r = 0; r < read_.size(); ++r) {
      for (size_t k = 0; k < read_[r].size(); ++k) {
        const double x = read_[r][k];
        for (size_t n = 0; n < out; ++n) {
          y[r][n] += x * (at ? at(k, n) : static_cast<double>(w[k * out + n]));
        }
      }
      if (bias == nullptr) continue;
      for (size_t n = 0; n < out; ++n) y[r][n] += static_cast<double>((*bias)[n]);
    }
    return y;
  }

  void try_embeddings() {
    const auto position_of = [&](int64_t token) {
      int64_t start = 0;
      for (const int64_t length : d_.input.lengths) {
        if (token < start + length) break;
        start += length;
      }
      return token - start;
    };
    const auto rows_with = [&](int64_t offset, double token_scale, double position_scale) {
      Rows rows;
      for (const int64_t row : d_.rows) {
        const int64_t token = d_.first_token + row;
        const int64_t position =
            std::clamp<int64_t>(position_of(token) + offset, 0, config_.max_seq_len - 1);
        const int32_t id = d_.input.ids[static_cast<size_t>(token)];
        const std::vector<float> wte = d_.weights.row_to_host("wte.weight", id);
        const std::vector<float> wpe = d_.weights.row_to_host("wpe.weight", position);
        Row sum(wte.size());
        for (size_t i = 0; i < sum.size(); ++i) {
          sum[i] = token_scale * static_cast<double>(wte[i]) +
                   position_scale * static_cast<double>(wpe[i]);
        }
        rows.push_back(std::move(sum));
      }
      return rows;
    };
    for (const int64_t offset : {-2, -1, 1, 2}) {
      offer(rows_with(offset, 1, 1),
            fmt::format("the reference's positions are {} {}", std::abs(offset),
                        offset > 0 ? "ahead" : "behind"));
    }
    offer(rows_with(0, 1, 0), "the reference adds no position embedding");
    offer(rows_with(0, 0, 1), "the reference adds no token embedding");
    const double scale = std::sqrt(static_cast<double>(config_.hidden_size));
    offer(rows_with(0, scale, 1), "the reference multiplies wte with sqrt(n_embd)");
  }

  void try_layer_norms() {
    const std::string name = d_.op.kind == OpKind::kLnF   ? "ln_f"
                             : d_.op.kind == OpKind::kLn1 ? layer_name("ln_1")
                                                          : layer_name("ln_2");
    const std::vector<float> weight = d_.weights.to_host(name + ".weight");
    const std::vector<float> bias = d_.weights.to_host(name + ".bias");
    offer_plain_mistakes(&bias, (name + ".bias").c_str());
    if (read_.empty()) return;
    struct Form {
      double epsilon;
      bool is_centered = true;
      bool has_weight = true;
      double divisor_minus = 0;  // of the variance: n - this
    };
    const auto normalize = [&](const Form& form) {
      Rows rows;
      for (const Row& x : read_) {
        const auto n = static_cast<double>(x.size());
        const double mean = form.is_centered ? std::accumulate(x.begin(), x.end(), 0.0) / n : 0.0;
        double variance = 0;
        for (const double v : x) variance += (v - mean) * (v - mean);
        variance /= n - form.divisor_minus;
        Row y(x.size());
        for (size_t i = 0; i < x.size(); ++i) {
          const double w = form.has_weight ? static_cast<double>(weight[i]) : 1;
          y[i] =
              (x[i] - mean) / std::sqrt(variance + form.epsilon) * w + static_cast<double>(bias[i]);
        }
        rows.push_back(std::move(y));
      }
      return rows;
    };
    // The epsilon that the reference's values imply: y - bias = s (x - mean) weight with s^2 = 1 /
    // (variance + epsilon).
    std::vector<double> epsilons;
    for (size_t r = 0; r < read_.size(); ++r) {
      const Row& x = read_[r];
      const auto n = static_cast<double>(x.size());
      const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
      double variance = 0;
      double dot = 0;
      double norm = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        variance += (x[i] - mean) * (x[i] - mean) / n;
        const double z = (x[i] - mean) * static_cast<double>(weight[i]);
        dot += z * (wanted_[r][i] - static_cast<double>(bias[i]));
        norm += z * z;
      }
      if (dot > 0 && norm > 0) epsilons.push_back(norm / dot * (norm / dot) - variance);
    }
    std::sort(epsilons.begin(), epsilons.end());
    const double own = static_cast<double>(config_.layer_norm_epsilon);
    if (!epsilons.empty() && epsilons[epsilons.size() / 2] > 0) {
      const double epsilon = epsilons[epsilons.size() / 2];
      offer(normalize({.epsilon = epsilon}),
            fmt::format("layer_norm_epsilon: {} in the reference instead of {}",
                        epsilon_text(epsilon), epsilon_text(own)));
    }
    offer(normalize({.epsilon = 0}),
          fmt::format("layer_norm_epsilon: 0 in the reference instead of {}", epsilon_text(own)));
    offer(normalize({.epsilon = own, .is_centered = false}),
          "the reference does not subtract the mean (RMSNorm)");
    offer(normalize({.epsilon = own, .has_weight = false}),
          fmt::format("the reference lacks {}.weight", name));
    offer(normalize({.epsilon = own, .divisor_minus = 1}),
          "the reference divides the variance by n - 1");
  }

  void try_qkv() {
    const std::string name = layer_name("attn.c_attn");
    const std::vector<float> bias = d_.weights.to_host(name + ".bias");
    offer_plain_mistakes(&bias, (name + ".bias").c_str());
    const auto hidden = static_cast<size_t>(config_.hidden_size);
    const auto reorder = [&](const std::function<size_t(size_t)>& from) {
      Rows rows = got_;
      for (size_t r = 0; r < rows.size(); ++r) {
        for (size_t i = 0; i < rows[r].size(); ++i) rows[r][i] = got_[r][from(i)];
      }
      return rows;
    };
    std::array<size_t, 3> order = {0, 1, 2};
    while (std::next_permutation(order.begin(), order.end())) {
      offer(reorder([&](size_t i) { return order[i / hidden] * hidden + i % hidden; }),
            fmt::format("the reference's columns of c_attn are {}, {}, {} instead of q, k, v",
                        "qkv"[order[0]], "qkv"[order[1]], "qkv"[order[2]]));
    }
    const auto dim = static_cast<size_t>(config_.head_dim());
    offer(reorder([&](size_t i) {
            const size_t head = i / (3 * dim);
            return i / dim % 3 * hidden + head * dim + i % dim;
          }),
          "the reference's columns of c_attn lie head by head (q, k, v of each)");
    if (read_.empty()) return;
    const std::vector<float> w = d_.weights.to_host(name + ".weight");
    offer(linear(w, &bias, 3 * hidden,
                 [&](size_t k, size_t n) {  // each of q, k and v is square
                   return static_cast<double>(w[n % hidden * 3 * hidden + n / hidden * hidden + k]);
                 }),
          fmt::format("{}.weight: the reference's q, k and v are each the transpose", name));
    offer(linear(w, &bias, 3 * hidden,
                 [&](size_t k, size_t n) { return static_cast<double>(w[n * hidden + k]); }),
          fmt::format("{}.weight: the reference reads it as [out, in]", name));
  }

  // attn.c_proj and mlp.c_proj.
  void try_linears() {
    const std::string name =
        d_.op.kind == OpKind::kAttnResidual ? layer_name("attn.c_proj") : layer_name("mlp.c_proj");
    const std::vector<float> bias = d_.weights.to_host(name + ".bias");
    offer_plain_mistakes(&bias, (name + ".bias").c_str());
    offer(Rows(got_.size(), Row(got_[0].size())),
          "the reference adds nothing to the residual stream");
    if (!d_.stream.empty()) {
      const Rows stream = cut(d_.stream, got_[0].size());
      offer(minus(got_, stream), "the reference does not add the residual stream");
    }
    if (read_.empty()) return;
    const auto out = static_cast<size_t>(config_.hidden_size);
    const size_t in = read_[0].size();
    const std::vector<float> w = d_.weights.to_host(name + ".weight");
    offer(linear(w, &bias, out,
                 [&](size_t k, size_t n) { return static_cast<double>(w[n * in + k]); }),
          in == out ? fmt::format("{}.weight: the reference's is the transpose", name)
                    : fmt::format("{}.weight: the reference reads it as [out, in]", name));
  }

  void try_activations() {
    const std::string name = layer_name("mlp.c_fc");
    offer_plain_mistakes(nullptr, "");
    if (read_.empty()) return;
    const auto out = static_cast<size_t>(config_.ffn_size);
    const std::vector<float> bias = d_.weights.to_host(name + ".bias");
    const std::vector<float> w = d_.weights.to_host(name + ".weight");
    const Rows inner = linear(w, &bias, out);
    const auto apply = [&](Activation activation, const std::vector<float>* minus) {
      Rows rows = inner;
      for (Row& row : rows) {
        for (size_t i = 0; i < row.size(); ++i) {
          row[i] = activate(activation, row[i] - (minus ? static_cast<double>((*minus)[i]) : 0.0));
        }
      }
      return rows;
    };
    for (const Activation activation :
         {Activation::kNone, Activation::kGelu, Activation::kGeluTanh, Activation::kQuickGelu,
          Activation::kRelu, Activation::kSilu, Activation::kTanh}) {
      if (activation == config_.activation) continue;
      offer(apply(activation, nullptr),
            fmt::format("activation_function: {} in the reference instead of {}",
                        activation_name(activation), config_.activation_function));
    }
    offer(apply(config_.activation, &bias), fmt::format("the reference lacks {}.bias", name));
    const size_t in = read_[0].size();
    Rows transposed = linear(
        w, &bias, out, [&](size_t k, size_t n) { return static_cast<double>(w[n * in + k]); });
    for (Row& row : transposed) {
      for (double& x : row) x = activate(config_.activation, x);
    }
    offer(transposed, fmt::format("{}.weight: the reference reads it as [out, in]", name));
  }

  void try_attentions() {
    offer_plain_mistakes(nullptr, "");
    if (d_.read.empty()) return;
    const double own = static_cast<double>(config_.attention_scale(d_.op.layer));
    const double root = 1 / std::sqrt(static_cast<double>(config_.head_dim()));
    const double by_layer = 1 / static_cast<double>(d_.op.layer + 1);
    struct Form {
      double scale;
      int64_t num_later;  // tokens after its own that a query sees
      const char* cause;
    };
    const int64_t all = config_.max_seq_len;
    const std::array<Form, 9> forms = {{
        {1, 0, "scale_attn_weights: the reference does not scale the scores"},
        {root, 0, "attention scale: 1 / sqrt(head_dim) alone in the reference"},
        {root * by_layer, 0,
         "scale_attn_by_inverse_layer_idx: the reference divides scores by the layer's number too"},
        {by_layer, 0, "attention scale: 1 / (layer + 1) alone in the reference"},
        {root * root, 0, "attention scale: 1 / head_dim in the reference"},
        {1 / std::sqrt(static_cast<double>(config_.hidden_size)), 0,
         "attention scale: 1 / sqrt(n_embd) in the reference"},
        {own, all, "the reference lacks the causal mask: tokens see later ones"},
        {own, 1, "the reference's causal mask is one token late: tokens see the next one"},
        {own, -1, "the reference's causal mask is one token early: tokens do not see themselves"},
    }};
    for (const Form& form : forms) {
      if (form.scale == own && form.num_later == 0) continue;
      offer(attention(form.scale, form.num_later), form.cause);
    }
    const double exact = relative_error(attention(own, 0), wanted_);
    if (exact < 0.1 * own_error_) {
      causes_.push_back(fmt::format(
          "the model's kernel: float64 attention over the same q, k and v is within {:.1e} of the "
          "reference, the model within {:.1e}",
          exact, own_error_));
    }
  }

  Rows attention(double scale, int64_t num_later) const {
    const int64_t hidden = config_.hidden_size;
    const int64_t dim = config_.head_dim();
    Rows rows;
    for (const int64_t row : d_.rows) {
      int64_t start = 0;
      int64_t length = 0;
      for (const int64_t one : d_.input.lengths) {
        length = one;
        if (row < start + one) break;
        start += one;
      }
      const int64_t end = std::clamp(row + 1 + num_later, start + 1, start + length);
      Row out(static_cast<size_t>(hidden));
      for (int64_t head = 0; head < config_.num_heads; ++head) {
        const auto at = [&](int64_t token, int64_t part, int64_t i) {
          return static_cast<double>(
              d_.read[static_cast<size_t>((token * 3 + part) * hidden + head * dim + i)]);
        };
        std::vector<double> scores;
        for (int64_t token = start; token < end; ++token) {
          double score = 0;
          for (int64_t i = 0; i < dim; ++i) score += at(row, 0, i) * at(token, 1, i);
          scores.push_back(score * scale);
        }
        const double largest = *std::max_element(scores.begin(), scores.end());
        double sum = 0;
        for (double& score : scores) sum += score = std::exp(score - largest);
        for (int64_t token = start; token < end; ++token) {
          const double p = scores[static_cast<size_t>(token - start)] / sum;
          for (int64_t i = 0; i < dim; ++i) {
            out[static_cast<size_t>(head * dim + i)] += p * at(token, 2, i);
          }
        }
      }
      rows.push_back(std::move(out));
    }
    return rows;
  }

  // The head is as large as wte: the columns that differ most decide, a few hundred rows of it.
  void try_heads() {
    offer_plain_mistakes(nullptr, "");
    if (read_.empty() || !d_.weights.has_own_head()) return;
    const size_t vocab = got_[0].size();
    const size_t num_columns = std::min<size_t>(vocab, 256);
    double with_wte = 0;
    double with_head = 0;
    for (size_t c = 0; c < num_columns; ++c) {
      const size_t n = c * vocab / num_columns;
      const std::vector<float> wte = d_.weights.row_to_host("wte.weight", static_cast<int64_t>(n));
      for (size_t r = 0; r < read_.size(); ++r) {
        double logit = 0;
        for (size_t k = 0; k < wte.size(); ++k) logit += read_[r][k] * static_cast<double>(wte[k]);
        with_wte += (logit - wanted_[r][n]) * (logit - wanted_[r][n]);
        with_head += (got_[r][n] - wanted_[r][n]) * (got_[r][n] - wanted_[r][n]);
      }
    }
    if (with_wte < 0.01 * with_head) {
      causes_.push_back(
          "tied head: the reference's logits are ln_f's times wte, the model has an "
          "lm_head of its own");
    }
  }

  // Names of the stored weights that the operator uses.
  std::vector<std::string> weight_names() const {
    switch (d_.op.kind) {
      case OpKind::kLn1:
        return {layer_name("ln_1.weight"), layer_name("ln_1.bias")};
      case OpKind::kCAttn:
        return {layer_name("attn.c_attn.weight"), layer_name("attn.c_attn.bias")};
      case OpKind::kAttnResidual:
        return {layer_name("attn.c_proj.weight"), layer_name("attn.c_proj.bias")};
      case OpKind::kLn2:
        return {layer_name("ln_2.weight"), layer_name("ln_2.bias")};
      case OpKind::kMlpAct:
        return {layer_name("mlp.c_fc.weight"), layer_name("mlp.c_fc.bias")};
      case OpKind::kLayer:
        return {layer_name("mlp.c_proj.weight"), layer_name("mlp.c_proj.bias")};
      case OpKind::kLnF:
        return {"ln_f.weight", "ln_f.bias"};
      default:
        return {};
    }
  }

  void compare_weights() {
    for (const std::string& name : weight_names()) {
      compare_weight(name, d_.weights.to_host(name), d_.reference_weights->to_host(name));
    }
    if (d_.op.kind == OpKind::kLogits) compare_heads();
    if (d_.op.kind == OpKind::kEmbedding) {
      for (const char* name : {"wte.weight", "wpe.weight"}) {
        const bool is_wte = std::string_view(name) == "wte.weight";
        const int64_t token = d_.first_token + d_.rows.front();
        int64_t position = token;
        for (const int64_t length : d_.input.lengths) {
          if (position < length) break;
          position -= length;
        }
        const int64_t row = is_wte ? d_.input.ids[static_cast<size_t>(token)] : position;
        compare_weight(fmt::format("row {} of {}", row, name), d_.weights.row_to_host(name, row),
                       d_.reference_weights->row_to_host(name, row));
      }
    }
  }

  void compare_heads() {
    const bool own = d_.weights.has_own_head();
    const bool other = d_.reference_weights->has_own_head();
    if (own != other) {
      causes_.push_back(
          fmt::format("tied head: {} has an lm_head of its own, {} multiplies with wte",
                      own ? "the model" : "the reference", own ? "the reference" : "the model"));
      return;
    }
    // The row of the logit that differs most.
    size_t worst = 0;
    for (size_t i = 0; i < got_[0].size(); ++i) {
      if (std::abs(got_[0][i] - wanted_[0][i]) > std::abs(got_[0][worst] - wanted_[0][worst])) {
        worst = i;
      }
    }
    const char* name = own ? "lm_head.weight" : "wte.weight";
    const auto row = static_cast<int64_t>(worst);
    compare_weight(fmt::format("row {} of {}", row, name), d_.weights.row_to_host(name, row),
                   d_.reference_weights->row_to_host(name, row));
  }

  // The sides may store different dtypes, of which a few bits of every element may differ.
  void compare_weight(const std::string& name, const std::vector<float>& a,
                      const std::vector<float>& b) {
    if (a.size() != b.size()) return;
    size_t num_different = 0;
    size_t num_far = 0;
    size_t first = a.size();
    size_t first_far = a.size();
    double largest = 0;
    for (const float x : a) largest = std::max(largest, std::abs(static_cast<double>(x)));
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i]) continue;
      if (num_different++ == 0) first = i;
      const double x = a[i];
      const double y = b[i];
      if (std::abs(x - y) <= 0x1p-7 * std::max(std::abs(x), std::abs(y)) + 1e-6 * largest) continue;
      if (num_far++ == 0) first_far = i;
    }
    const bool is_few = num_different > 0 && num_different <= a.size() / 16;
    if (num_far == 0 && !is_few) return;
    const size_t at = num_far > 0 ? first_far : first;
    const bool is_zero = std::all_of(b.begin(), b.end(), [](float x) { return x == 0; });
    std::string cause;
    if (is_zero) {
      cause = fmt::format("{} is all zeros in the reference", name);
    } else if (is_transpose(a, b)) {
      cause = fmt::format("{}: the reference's is the transpose", name);
    } else {
      cause = fmt::format(
          "{} differs in {} of {} elements, first at {}: {:.6g}, {:.6g} in the "
          "reference",
          name, num_far > 0 ? num_far : num_different, a.size(), index_text(at, a.size()), a[at],
          b[at]);
    }
    causes_.push_back(std::move(cause));
  }

  // In how a matrix lies: [in, out] of a layer's.
  std::string index_text(size_t at, size_t size) const {
    size_t out = 0;
    switch (d_.op.kind) {
      case OpKind::kCAttn:
        out = 3 * static_cast<size_t>(config_.hidden_size);
        break;
      case OpKind::kMlpAct:
        out = static_cast<size_t>(config_.ffn_size);
        break;
      case OpKind::kAttnResidual:
      case OpKind::kLayer:
        out = static_cast<size_t>(config_.hidden_size);
        break;
      default:
        break;
    }
    return out > 0 && size > out ? fmt::format("[{},{}]", at / out, at % out)
                                 : fmt::format("[{}]", at);
  }

  // Square blocks side by side, each of which is the other's transpose: one, or q, k and v.
  bool is_transpose(const std::vector<float>& a, const std::vector<float>& b) const {
    const auto hidden = static_cast<size_t>(config_.hidden_size);
    const size_t blocks = d_.op.kind == OpKind::kCAttn ? 3 : 1;
    if (a.size() != hidden * hidden * blocks) return false;
    const size_t out = hidden * blocks;
    size_t num_wrong = 0;
    for (size_t k = 0; k < hidden; ++k) {
      for (size_t n = 0; n < out; ++n) {
        const double x = a[k * out + n];
        const double y = b[n % hidden * out + n / hidden * hidden + k];
        if (std::abs(x - y) > 0x1p-7 * std::max(std::abs(x), std::abs(y)) + 1e-6) ++num_wrong;
      }
    }
    return num_wrong <= a.size() / 1000;
  }

  // What the difference looks like, when nothing known explains it.
  void describe() {
    const size_t width = got_[0].size();
    std::vector<double> columns(width);
    double total = 0;
    for (size_t r = 0; r < got_.size(); ++r) {
      for (size_t i = 0; i < width; ++i) {
        const double d = got_[r][i] - wanted_[r][i];
        columns[i] += d * d;
        total += d * d;
      }
    }
    std::vector<size_t> order(width);
    std::iota(order.begin(), order.end(), size_t{0});
    const size_t shown = std::min<size_t>(4, width);
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown),
                      order.end(), [&](size_t a, size_t b) { return columns[a] > columns[b]; });
    double sum = 0;
    std::string list;
    for (size_t i = 0; i < shown && sum < 0.99 * total; ++i) {
      sum += columns[order[i]];
      list += fmt::format("{}{}", i == 0 ? "" : ", ", order[i]);
    }
    if (sum >= 0.99 * total) {
      causes_.push_back(fmt::format(
          "the difference lies in {} of {} outputs ({}): single weights or a bias of theirs",
          std::count(list.begin(), list.end(), ',') + 1, width, list));
    }
  }

  const DivergedOp& d_;
  const ModelConfig& config_;
  Rows got_;     // of an operator that adds: without the stream
  Rows wanted_;  // likewise
  Rows read_;    // empty where unknown
  double own_error_ = 0;
  Offers offers_;
  Offers vague_offers_;
  std::vector<std::string> causes_;
};

}  // namespace

std::vector<std::string> config_differences(const ModelConfig& model,
                                            const ModelConfig& reference) {
  std::vector<std::string> facts;
  const auto compare = [&](const char* field, const auto& a, const auto& b) {
    if (a != b) facts.push_back(fmt::format("{}: {}, {} in the reference", field, a, b));
  };
  if (model.activation != reference.activation) {
    compare("activation_function", model.activation_function, reference.activation_function);
  }
  compare("layer_norm_epsilon", model.layer_norm_epsilon, reference.layer_norm_epsilon);
  compare("n_head", model.num_heads, reference.num_heads);
  compare("n_positions", model.max_seq_len, reference.max_seq_len);
  compare("scale_attn_weights", model.scale_attn_weights, reference.scale_attn_weights);
  compare("scale_attn_by_inverse_layer_idx", model.scale_attn_by_inverse_layer_idx,
          reference.scale_attn_by_inverse_layer_idx);
  compare("tie_word_embeddings", model.tie_word_embeddings, reference.tie_word_embeddings);
  return facts;
}

std::vector<std::string> find_causes(const DivergedOp& diverged) {
  if (diverged.rows.empty()) return {};
  return CauseFinder(diverged).find();
}

}  // namespace caravan
