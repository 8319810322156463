#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>

namespace caravan {

/// Shares from 0 to 1; the tables that people print are times 100.
struct RougeScore {
  double precision = 0;  // overlap / prediction
  double recall = 0;     // overlap / target
  double fmeasure = 0;   // 2 * precision * recall / (precision + recall), 0 where both are 0

  bool operator==(const RougeScore&) const = default;
};

/// A value for each kind of ROUGE.
template <typename T>
struct RougeKinds {
  T rouge1;     // words
  T rouge2;     // pairs of words
  T rougeL;     // longest common subsequence of the whole texts
  T rougeLsum;  // union of the longest common subsequences of each target line with each line
};

using RougeScores = RougeKinds<RougeScore>;

/// A kind by its name.
template <typename T>
struct RougeKindName {
  const char* name;
  T RougeKinds<T>::*member;
};
template <typename T>
inline constexpr std::array<RougeKindName<T>, 4> kRougeKinds{
    {{"rouge1", &RougeKinds<T>::rouge1},
     {"rouge2", &RougeKinds<T>::rouge2},
     {"rougeL", &RougeKinds<T>::rougeL},
     {"rougeLsum", &RougeKinds<T>::rougeLsum}}};

/// ROUGE as rouge-score 0.1.2 computes it with its default tokenizer and split_summaries=False
/// (what `datasets` and `evaluate` call "rouge"), bit for bit. A text's lines are the sentences of
/// rougeLsum. Thread safe.
/// Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"; rouge-score 0.1.2,
/// rouge_scorer.py.
class RougeScorer {
 public:
  /// use_stemmer: words of more than 3 characters are compared by their Porter stem.
  explicit RougeScorer(bool use_stemmer) : use_stemmer_(use_stemmer) {}

  /// target: the reference summary. Texts are UTF-8; either may be empty, which scores 0.
  /// Time: words * words / 64 for texts of many words; memory: see Lcs.
  RougeScores score(std::string_view target, std::string_view prediction) const;

 private:
  bool use_stemmer_;
};

/// A bootstrap interval of the mean. `mid` is the median of the resampled means, as in rouge-score.
struct RougeInterval {
  RougeScore low, mid, high;
};

using RougeIntervals = RougeKinds<RougeInterval>;

/// How to resample.
struct RougeBootstrap {
  int num_samples = 1000;
  double confidence = 0.95;
};

/// rouge-score's BootstrapAggregator after np.random.seed(seed), over the four kinds in the order
/// of RougeScores, bit for bit: percentiles of the means of resamples as large as the sample.
/// Errors: kInvalidArgument without scores, or for options outside num_samples > 0 and 0 <=
/// confidence <= 1.
RougeIntervals aggregate_rouge(std::span<const RougeScores> scores, uint32_t seed = 0,
                               const RougeBootstrap& options = {});

/// The same with a generator that goes on from where an earlier aggregation left it, as NumPy's
/// global one does.
RougeIntervals aggregate_rouge(std::span<const RougeScores> scores, std::mt19937& random,
                               const RougeBootstrap& options = {});

}  // namespace caravan
