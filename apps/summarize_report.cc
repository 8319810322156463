#include "apps/summarize_report.h"

#include <algorithm>
#include <numeric>

#include "apps/rouge_report.h"
#include "core/error.h"
#include "eval/quantile.h"

namespace caravan {

namespace {

struct Latency {
  double mean = 0, median = 0, p99 = 0;  // seconds
};

std::optional<Latency> latency_of(std::vector<double> seconds) {
  if (seconds.empty()) return std::nullopt;
  std::sort(seconds.begin(), seconds.end());
  const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  return Latency{sum / static_cast<double>(seconds.size()), sorted_quantile(seconds, 0.5),
                 sorted_quantile(seconds, 0.99)};
}

}  // namespace

std::string summarize_text(const SummarizeReport& report) {
  const SummarizeRun& run = report.run;
  std::string text = fmt::format("Caravan: {}, {}\n", report.model, report.device);
  if (report.num_articles_cut > 0) {
    text += fmt::format("dropped to make prompts fit: {} tokens of {} of {} articles\n",
                        report.num_dropped_tokens, report.num_articles_cut, run.predictions.size());
  }
  if (run.num_resumed > 0) {
    text += fmt::format("{} of {} predictions were there already\n", run.num_resumed,
                        run.predictions.size());
  }
  if (const auto latency = latency_of(run.batch_seconds)) {
    text += fmt::format(
        "{} articles, {} prompt and {} output tokens in {:.2f} s: {:.1f} output tok/s\n"
        "latency of a batch of {}: mean {:.3f} s, median {:.3f} s, p99 {:.3f} s\n",
        run.predictions.size() - static_cast<size_t>(run.num_resumed), run.num_prompt_tokens,
        run.num_output_tokens, run.seconds(), run.output_tokens_per_second(), report.batch_size,
        latency->mean, latency->median, latency->p99);
  }
  text += "ROUGE x100; 95 % bootstrap intervals (1,000 samples, seed 0)\n";
  text += rouge_table(report.rouge);
  if (report.reference_rouge) {
    text +=
        fmt::format("\nReference: {}\n{}", report.reference, rouge_table(*report.reference_rouge));
    if (const auto& agreement = report.agreement) {
      text += fmt::format(
          "\nequal token by token: {} of {} outputs; common prefix: {:.2f} of {:.2f} tokens on "
          "average\n",
          agreement->num_equal, agreement->num_articles, agreement->mean_common_prefix,
          agreement->mean_output_len);
    }
  }
  if (report.threshold) {
    text += fmt::format("\n{}: rouge1 {:.4f}, must be above {}\n",
                        report.is_accurate() ? "PASS" : "FAIL", report.rouge1(), *report.threshold);
  }
  return text;
}

boost::json::object summarize_json(const SummarizeReport& report) {
  const SummarizeRun& run = report.run;
  boost::json::object json{{"model", report.model},
                           {"device", report.device},
                           {"dataset", report.dataset},
                           {"num_articles", run.predictions.size()},
                           {"num_resumed", run.num_resumed},
                           {"num_articles_cut", report.num_articles_cut},
                           {"num_dropped_tokens", report.num_dropped_tokens},
                           {"batch_size", report.batch_size},
                           {"num_prompt_tokens", run.num_prompt_tokens},
                           {"num_output_tokens", run.num_output_tokens},
                           {"seconds", run.seconds()},
                           {"output_tokens_per_second", run.output_tokens_per_second()},
                           {"rouge", rouge_to_json(report.rouge)}};
  if (const auto latency = latency_of(run.batch_seconds)) {
    json["batch_latency_seconds"] = boost::json::object{
        {"mean", latency->mean}, {"median", latency->median}, {"p99", latency->p99}};
  }
  if (report.reference_rouge) {
    boost::json::object reference{{"path", report.reference},
                                  {"rouge", rouge_to_json(*report.reference_rouge)}};
    if (const auto& agreement = report.agreement) {
      reference["num_equal_outputs"] = agreement->num_equal;
      reference["mean_common_prefix"] = agreement->mean_common_prefix;
      reference["mean_output_len"] = agreement->mean_output_len;
    }
    json["reference"] = std::move(reference);
  }
  if (report.threshold) {
    json["check"] = boost::json::object{{"rouge1", report.rouge1()},
                                        {"threshold", *report.threshold},
                                        {"passed", report.is_accurate()}};
  }
  return json;
}

}  // namespace caravan
