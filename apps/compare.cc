#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "apps/commands.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "eval/equivalence.h"
#include "eval/prediction_comparison.h"

namespace caravan {

namespace {

struct CompareFlags {
  std::string a;
  std::string b;
  std::string references;
  std::string metric = "rouge1";
  EquivalenceOptions options;
  bool use_stemmer = false;
  size_t num_top = 10;
  bool is_json = false;
};

RougeScore RougeScores::*kind_of(const std::string& metric) {
  for (const auto& [name, member] : kRougeKinds<RougeScore>) {
    if (metric == name) return member;
  }
  CARAVAN_FAIL(kInternal, "no kind of ROUGE is called {}", metric);
}

/// Counts over all articles.
struct Counts {
  size_t num_equal_outputs = 0;
  size_t num_different_prompts = 0;
  std::string first_different_prompt;
};

Counts count(const std::vector<ComparedArticle>& articles) {
  Counts counts;
  for (const ComparedArticle& article : articles) {
    counts.num_equal_outputs += article.is_same_output;
    if (article.is_same_prompt) continue;
    if (counts.num_different_prompts++ == 0) counts.first_different_prompt = article.name;
  }
  return counts;
}

std::string token_text(const std::optional<int32_t>& token) {
  return token ? std::to_string(*token) : "end";
}

boost::json::value token_json(const std::optional<int32_t>& token) {
  if (!token) return nullptr;
  return *token;
}

boost::json::object to_json(const ComparedArticle& article) {
  boost::json::object row{{"article", article.name},
                          {"score_a", article.score_a},
                          {"score_b", article.score_b},
                          {"difference", article.difference()},
                          {"same_output", article.is_same_output},
                          {"same_prompt", article.is_same_prompt}};
  if (article.first_difference) {
    row["first_difference"] = {{"position", article.first_difference->position},
                               {"token_a", token_json(article.first_difference->token_a)},
                               {"token_b", token_json(article.first_difference->token_b)}};
  }
  return row;
}

void print_json(const CompareFlags& flags, const Equivalence& result, const Counts& counts,
                const std::vector<ComparedArticle>& articles, const std::vector<size_t>& moved) {
  boost::json::array rows;
  for (const size_t i : moved) rows.push_back(to_json(articles[i]));
  boost::json::object out{{"verdict", verdict_name(result.verdict)},
                          {"metric", flags.metric},
                          {"use_stemmer", flags.use_stemmer},
                          {"num_articles", result.num_articles},
                          {"mean_a", result.mean_a},
                          {"mean_b", result.mean_b},
                          {"mean_difference", result.mean_difference},
                          {"sd_difference", result.sd_difference},
                          {"low", result.low},
                          {"high", result.high},
                          {"margin", flags.options.margin},
                          {"confidence", flags.options.confidence},
                          {"num_samples", flags.options.num_samples},
                          {"seed", flags.options.seed},
                          {"num_needed", nullptr},
                          {"num_equal_outputs", counts.num_equal_outputs},
                          {"num_different_prompts", counts.num_different_prompts},
                          {"moved", std::move(rows)}};
  if (result.num_needed) out["num_needed"] = *result.num_needed;
  std::printf("%s\n", to_json_text(out).c_str());
}

/// The line that says what was decided and why.
std::string reason(const Equivalence& result, const EquivalenceOptions& options) {
  if (result.verdict == Verdict::kPass) {
    return fmt::format("the whole interval lies within +-{}", options.margin);
  }
  if (result.verdict == Verdict::kFail) {
    return fmt::format("the whole interval lies outside +-{}", options.margin);
  }
  std::string text =
      result.num_articles < kMinEquivalenceArticles
          ? fmt::format("{} articles are too few to decide, at least {} are needed",
                        result.num_articles, kMinEquivalenceArticles)
          : fmt::format("the interval reaches across {}{}", options.margin,
                        result.low <= -options.margin && result.high >= options.margin
                            ? " on both sides"
                            : "");
  if (!result.num_needed) {
    return text +
           "; the mean difference itself is not within the margin, so more articles are not "
           "expected to make it pass";
  }
  // By chance, a sample of this size may have missed although most would pass.
  const int64_t needed =
      std::max(*result.num_needed, static_cast<int64_t>(result.num_articles) + 1);
  return text + fmt::format(
                    "; about {} articles in all would pass with a probability of 80 % if "
                    "mean and spread stay as they are",
                    needed);
}

void print_moved(const std::vector<ComparedArticle>& articles, const std::vector<size_t>& moved) {
  if (moved.empty()) return;
  std::printf("\nmoved most:\n%9s %9s %11s  %-34s %s\n", "A", "B", "A - B", "first other token",
              "article");
  for (const size_t i : moved) {
    const ComparedArticle& article = articles[i];
    std::string first;
    if (const auto& difference = article.first_difference) {
      first = fmt::format("at {}: {} and {}", difference->position, token_text(difference->token_a),
                          token_text(difference->token_b));
    }
    std::printf("%9.4f %9.4f %+11.4f  %-34s %s\n", article.score_a, article.score_b,
                article.difference(), first.c_str(), printable(article.name).c_str());
  }
}

void print_text(const CompareFlags& flags, const Equivalence& result, const Counts& counts,
                const std::vector<ComparedArticle>& articles, const std::vector<size_t>& moved) {
  const EquivalenceOptions& options = flags.options;
  std::printf("%s of %zu articles, x100, %s\n", flags.metric.c_str(), result.num_articles,
              flags.use_stemmer ? "Porter stems" : "no stemming");
  std::printf("  A      %9.4f  %s\n", result.mean_a, flags.a.c_str());
  std::printf("  B      %9.4f  %s\n", result.mean_b, flags.b.c_str());
  std::printf(
      "  A - B  %+9.4f  %g %% interval [%+.4f, %+.4f]: paired bootstrap, %d samples, seed %u\n",
      result.mean_difference, 100 * options.confidence, result.low, result.high,
      options.num_samples, options.seed);
  std::printf("  the standard deviation of an article's difference is %.4f\n",
              result.sd_difference);
  std::printf("  %zu of %zu outputs are equal\n", counts.num_equal_outputs, articles.size());
  std::printf("%s: %s (two one-sided tests at %g %% each)\n", verdict_name(result.verdict),
              reason(result, options).c_str(), 50 * (1 - options.confidence));
  print_moved(articles, moved);
}

void run_compare(const CompareFlags& flags) {
  CARAVAN_CHECK(flags.a != "-" || flags.b != "-", "only one of the files can be standard input");
  std::vector<Prediction> a = read_predictions(flags.a);
  std::vector<Prediction> b = read_predictions(flags.b);
  if (!flags.references.empty()) {
    add_references(a, flags.a, flags.references);
    add_references(b, flags.b, flags.references);
  }
  const std::vector<ComparedArticle> articles = compare_predictions(
      a, flags.a, b, flags.b, RougeScorer(flags.use_stemmer), kind_of(flags.metric));
  std::vector<double> scores_a;
  std::vector<double> scores_b;
  for (const ComparedArticle& article : articles) {
    scores_a.push_back(article.score_a);
    scores_b.push_back(article.score_b);
  }
  const Equivalence result = test_equivalence(scores_a, scores_b, flags.options);
  const Counts counts = count(articles);
  if (counts.num_different_prompts > 0) {
    log_warning(
        "the prompts of {} of {} articles differ, \"{}\" first: the two sides were not given the "
        "same input, so this compares more than how they compute",
        counts.num_different_prompts, articles.size(), printable(counts.first_different_prompt));
  }
  const std::vector<size_t> moved = most_moved(articles, flags.num_top);
  (flags.is_json ? print_json : print_text)(flags, result, counts, articles, moved);
  if (result.verdict != Verdict::kPass) throw CLI::RuntimeError(1);
}

}  // namespace

void add_compare_command(CLI::App& app) {
  auto flags = std::make_shared<CompareFlags>();
  CLI::App* command = app.add_subcommand(
      "compare",
      "Are two sets of predictions equally good? PASS when the interval of their mean difference "
      "in ROUGE, from a paired bootstrap over the articles, lies within the margin; FAIL when it "
      "lies outside; else INCONCLUSIVE, with the number of articles that would do. Exit status 0 "
      "for PASS, 1 for the others");
  command->add_option("A", flags->a, "Predictions, JSON Lines as summarize writes them")
      ->required();
  command->add_option("B", flags->b, "Predictions of the same articles")->required();
  command->add_option("--references", flags->references,
                      "JSON Lines file with the references: {\"id\", \"reference\"} a line; "
                      "default those in A and B");
  command->add_option("--metric", flags->metric, "rouge1, rouge2, rougeL or rougeLsum (fmeasure)")
      ->check(CLI::IsMember({"rouge1", "rouge2", "rougeL", "rougeLsum"}))
      ->capture_default_str();
  command->add_option("--margin", flags->options.margin, "Largest difference that is none, x100")
      ->capture_default_str();
  command
      ->add_option("--confidence", flags->options.confidence,
                   "Of the two-sided interval; 0.90 is the classical TOST at 5 %")
      ->capture_default_str();
  command->add_option("--num-samples", flags->options.num_samples, "Bootstrap resamples")
      ->capture_default_str();
  command->add_option("--seed", flags->options.seed, "Of the bootstrap")->capture_default_str();
  command->add_flag("--use-stemmer", flags->use_stemmer,
                    "Compare words of more than 3 characters by their Porter stem");
  command->add_option("--top", flags->num_top, "How many of the articles that moved most to list")
      ->capture_default_str();
  command->add_flag("--json", flags->is_json,
                    "One object: verdict, means, interval, num_needed, counts, moved");
  command->callback([flags] { run_compare(*flags); });
}

}  // namespace caravan
