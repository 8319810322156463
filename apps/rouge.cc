#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "apps/rouge_report.h"
#include "core/error.h"
#include "core/json_text.h"
#include "eval/predictions.h"
#include "eval/rouge.h"

namespace caravan {

namespace {

struct RougeFlags {
  std::string predictions;
  std::string references;
  bool use_stemmer = false;
  bool is_json = false;
  bool is_per_example = false;
};

void print_example_json(const Prediction& prediction, const RougeScores& scores) {
  boost::json::object row{{"line", prediction.line}};
  if (!prediction.id.empty()) row["id"] = prediction.id;
  row["scores"] = rouge_to_json(scores);
  std::printf("%s\n", to_json_text(row).c_str());
}

void print_total_json(const RougeFlags& flags, size_t num_examples,
                      const RougeIntervals& intervals) {
  boost::json::object row{{"num_examples", num_examples}, {"use_stemmer", flags.use_stemmer}};
  for (const auto& kind : rouge_to_json(intervals)) row[kind.key()] = kind.value();
  std::printf("%s\n", to_json_text(row).c_str());
}

void print_example(const Prediction& prediction, const RougeScores& scores) {
  for (const auto& [name, member] : kRougeKinds<RougeScore>) {
    std::printf("%9.4f", 100 * (scores.*member).fmeasure);
  }
  std::printf("  %s\n", prediction.id.empty() ? fmt::format("line {}", prediction.line).c_str()
                                              : printable(prediction.id).c_str());
}

void print_total(const RougeFlags& flags, size_t num_examples, const RougeIntervals& intervals) {
  std::printf("%zu summaries, x100, %s; 95 %% bootstrap intervals (1,000 samples, seed 0)\n",
              num_examples, flags.use_stemmer ? "Porter stems" : "no stemming");
  std::printf("%s", rouge_table(intervals).c_str());
}

void run_rouge(const RougeFlags& flags) {
  std::vector<Prediction> predictions = read_predictions(flags.predictions);
  if (!flags.references.empty()) {
    add_references(predictions, flags.predictions, flags.references);
  }
  const RougeScorer scorer(flags.use_stemmer);
  std::vector<RougeScores> scores;
  if (flags.is_per_example && !flags.is_json) {
    for (const auto& [name, member] : kRougeKinds<RougeScore>) std::printf("%9s", name);
    std::printf("  (fmeasure, x100)\n");
  }
  for (const Prediction& prediction : predictions) {
    CARAVAN_CHECK(prediction.reference,
                  "{}:{}: no member \"reference\": give the references with --references FILE",
                  flags.predictions, prediction.line);
    scores.push_back(scorer.score(*prediction.reference, prediction.text));
    if (!flags.is_per_example) continue;
    if (flags.is_json) {
      print_example_json(prediction, scores.back());
    } else {
      print_example(prediction, scores.back());
    }
  }
  const RougeIntervals intervals = aggregate_rouge(scores);
  if (flags.is_json) {
    print_total_json(flags, scores.size(), intervals);
  } else {
    print_total(flags, scores.size(), intervals);
  }
}

}  // namespace

void add_rouge_command(CLI::App& app) {
  auto flags = std::make_shared<RougeFlags>();
  CLI::App* command = app.add_subcommand(
      "rouge",
      "ROUGE-1, -2, -L and -Lsum of summaries, the same figures as Python's rouge-score 0.1.2 "
      "with its bootstrap (seed 0)");
  command
      ->add_option("--predictions", flags->predictions,
                   "JSON Lines file, or - for standard input: {\"prediction\", \"reference\", "
                   "\"id\"} a line, as summarize writes")
      ->required();
  command->add_option("--references", flags->references,
                      "JSON Lines file with the references: {\"id\", \"reference\"} a line (or "
                      "\"highlights\" or \"summary\"); without ids matched line by line");
  command->add_flag("--use-stemmer", flags->use_stemmer,
                    "Compare words of more than 3 characters by their Porter stem");
  command->add_flag("--per-example", flags->is_per_example, "Each summary's scores too");
  command->add_flag("--json", flags->is_json,
                    "One object: num_examples, use_stemmer, and for each kind low, mid and high "
                    "with precision, recall and fmeasure (0 to 1); with --per-example one object "
                    "for each summary before it");
  command->callback([flags] { run_rouge(*flags); });
}

}  // namespace caravan
