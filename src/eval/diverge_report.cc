#include <cmath>

#include "core/error.h"
#include "eval/diverge.h"

namespace caravan {

namespace {

std::string error_text(double x) { return std::isnan(x) ? "nan" : fmt::format("{:.1e}", x); }

// JSON has no infinity.
boost::json::value number(double x) {
  if (std::isfinite(x)) return x;
  return nullptr;
}

boost::json::object element_json(const DivergeElement& e) {
  return {
      {"token", e.token}, {"index", e.index}, {"got", number(e.got)}, {"wanted", number(e.wanted)}};
}

boost::json::array strings(const std::vector<std::string>& lines) {
  boost::json::array array;
  for (const std::string& line : lines) array.emplace_back(line);
  return array;
}

}  // namespace

std::string diverge_text(const DivergeReport& report) {
  std::string text = fmt::format("model:     {}\nreference: {}\n", report.model, report.reference);
  text += fmt::format("input:     {} tokens in {} sequence{}\n", report.num_tokens,
                      report.num_sequences, report.num_sequences == 1 ? "" : "s");
  for (const std::string& fact : report.facts) text += fmt::format("config:    {}\n", fact);
  text += fmt::format("\n{:<20} {:>9} {:>9} {:>9} {:>6} {:>6}  {}\n", "operator", "local", "bound",
                      "global", "beyond", "first", "element: got, wanted");
  for (const DivergeOp& op : report.ops) {
    if (op.is_same_bits) {
      text += fmt::format("{:<20} same bits\n", op_name(op.op));
      continue;
    }
    const std::string first = op.num_bad > 0 ? fmt::format("{}", op.first_bad_token) : "-";
    text += fmt::format("{:<20} {:>9} {:>9} {:>9} {:>6} {:>6}  [{},{}]: {:.6g}, {:.6g}\n",
                        op_name(op.op), error_text(op.local_error), error_text(op.bound),
                        error_text(op.global_error), op.num_bad, first, op.worst.token,
                        op.worst.index, op.worst.got, op.worst.wanted);
  }
  text += "\n";
  int64_t num_sensitive = 0;
  for (const DivergeOp& op : report.ops) num_sensitive += op.num_sensitive;
  if (num_sensitive > 0) {
    text += fmt::format(
        "note: {} values of a token at one operator cannot be judged: rounding alone may change "
        "them altogether; float32 on both sides sees more\n",
        num_sensitive);
  }
  const DivergeOp* first = report.first();
  if (first == nullptr) {
    text += report.is_same_bits() ? "no difference: the same bits at every operator\n"
                                  : "no divergence: rounding explains every difference\n";
    return text;
  }
  text += fmt::format("divergence: {}: token {}, local error {}, bound {}\n", op_name(first->op),
                      first->first_bad_token, error_text(first->first_bad_error),
                      error_text(first->first_bad_bound));
  if (report.causes.empty()) text += "cause: none of the known ones\n";
  for (const std::string& cause : report.causes) text += fmt::format("cause: {}\n", cause);
  return text;
}

boost::json::object diverge_json(const DivergeReport& report) {
  boost::json::array ops;
  for (const DivergeOp& op : report.ops) {
    boost::json::object one{{"op", op_name(op.op)},
                            {"same_bits", op.is_same_bits},
                            {"local_error", number(op.local_error)},
                            {"bound", number(op.bound)},
                            {"global_error", number(op.global_error)},
                            {"num_tokens_beyond", op.num_bad},
                            {"num_tokens_sensitive", op.num_sensitive},
                            {"element", element_json(op.worst)}};
    if (op.num_bad > 0) one["first_token"] = op.first_bad_token;
    ops.emplace_back(std::move(one));
  }
  boost::json::object json{{"model", report.model},
                           {"reference", report.reference},
                           {"num_tokens", report.num_tokens},
                           {"num_sequences", report.num_sequences},
                           {"config_differences", strings(report.facts)},
                           {"ops", std::move(ops)},
                           {"same_bits", report.is_same_bits()}};
  const DivergeOp* first = report.first();
  json["divergence"] = nullptr;
  if (first != nullptr) {
    json["divergence"] = boost::json::object{{"op", op_name(first->op)},
                                             {"token", first->first_bad_token},
                                             {"local_error", number(first->first_bad_error)},
                                             {"bound", number(first->first_bad_bound)},
                                             {"element", element_json(first->worst)},
                                             {"causes", strings(report.causes)}};
  }
  return json;
}

}  // namespace caravan
