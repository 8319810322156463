#include "eval/rouge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "eval/lcs.h"
#include "eval/numpy_random.h"
#include "eval/porter_stemmer.h"
#include "eval/quantile.h"
#include "eval/rouge_tokenizer.h"

namespace caravan {
namespace {

using Strings = std::vector<std::string>;

std::string fixture(const std::string& name) {
  std::ifstream file(std::string(CARAVAN_SOURCE_DIR) + "/tests/data/rouge/" + name);
  EXPECT_TRUE(file.is_open()) << name;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

Strings lines_of(const std::string& text) {
  Strings lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Words as rouge-score's tokenizer gives them, with NLTK's stemmer.

TEST(RougeTokenizerTest, WordsAreRunsOfAsciiLettersAndDigits) {
  EXPECT_EQ(rouge_tokenize("The U.S. isn't No. 1\n(2nd)", false),
            (Strings{"the", "u", "s", "isn", "t", "no", "1", "2nd"}));
  EXPECT_EQ(rouge_tokenize("caf\xc3\xa9s na\xc3\xafve", false), (Strings{"caf", "s", "na", "ve"}));
  EXPECT_EQ(rouge_tokenize("", false), Strings{});
  EXPECT_EQ(rouge_tokenize(" \t\n.,;\xe2\x80\x94 ", false), Strings{});
  EXPECT_EQ(rouge_tokenize(std::string_view("a\0b", 3), false), (Strings{"a", "b"}));
}

TEST(RougeTokenizerTest, LowersAsPythonDoes) {
  EXPECT_EQ(rouge_tokenize("10 \xe2\x84\xaa\x41 x\xe2\x84\xaa", false),
            (Strings{"10", "ka", "xk"}));                                            // Kelvin sign
  EXPECT_EQ(rouge_tokenize("a\xc4\xb0stanbul", false), (Strings{"ai", "stanbul"}));  // I with dot
  // An "I with dot" whose second byte is missing, a dotless i, a long s, a full-width A.
  EXPECT_EQ(rouge_tokenize("a\xc4z \xc4\xb1x \xc5\xbfy \xef\xbc\xa1z \xe2\x84", false),
            (Strings{"a", "z", "x", "y", "z"}));
}

TEST(RougeTokenizerTest, StemsWordsOfMoreThanThreeCharacters) {
  EXPECT_EQ(rouge_tokenize("Dies tie, was running: its skies", true),
            (Strings{"die", "tie", "was", "run", "its", "sky"}));
}

TEST(PorterStemmerTest, AgreesWithNltk) {
  const std::pair<const char*, const char*> cases[] = {{"caresses", "caress"},
                                                       {"ponies", "poni"},
                                                       {"ties", "tie"},
                                                       {"caress", "caress"},
                                                       {"cats", "cat"},
                                                       {"flies", "fli"},
                                                       {"dies", "die"},
                                                       {"mules", "mule"},
                                                       {"denied", "deni"},
                                                       {"died", "die"},
                                                       {"agreed", "agre"},
                                                       {"feed", "feed"},
                                                       {"owned", "own"},
                                                       {"humbled", "humbl"},
                                                       {"sized", "size"},
                                                       {"meeting", "meet"},
                                                       {"stating", "state"},
                                                       {"siezing", "siez"},
                                                       {"itemization", "item"},
                                                       {"sensational", "sensat"},
                                                       {"traditional", "tradit"},
                                                       {"reference", "refer"},
                                                       {"colonizer", "colon"},
                                                       {"plotted", "plot"},
                                                       {"hopping", "hop"},
                                                       {"tanned", "tan"},
                                                       {"falling", "fall"},
                                                       {"hissing", "hiss"},
                                                       {"fizzed", "fizz"},
                                                       {"failing", "fail"},
                                                       {"filing", "file"},
                                                       {"happy", "happi"},
                                                       {"enjoy", "enjoy"},
                                                       {"spy", "spi"},
                                                       {"sky", "sky"},
                                                       {"skies", "sky"},
                                                       {"dying", "die"},
                                                       {"news", "news"},
                                                       {"innings", "inning"},
                                                       {"howe", "howe"},
                                                       {"proceed", "proceed"},
                                                       {"relational", "relat"},
                                                       {"conditional", "condit"},
                                                       {"rational", "ration"},
                                                       {"valenci", "valenc"},
                                                       {"hesitanci", "hesit"},
                                                       {"digitizer", "digit"},
                                                       {"radicalli", "radic"},
                                                       {"differentli", "differ"},
                                                       {"vileli", "vile"},
                                                       {"analogousli", "analog"},
                                                       {"vietnamization", "vietnam"},
                                                       {"predication", "predic"},
                                                       {"operator", "oper"},
                                                       {"feudalism", "feudal"},
                                                       {"decisiveness", "decis"},
                                                       {"hopefulness", "hope"},
                                                       {"callousness", "callous"},
                                                       {"formaliti", "formal"},
                                                       {"sensitiviti", "sensit"},
                                                       {"sensibiliti", "sensibl"},
                                                       {"triplicate", "triplic"},
                                                       {"formative", "form"},
                                                       {"formalize", "formal"},
                                                       {"electriciti", "electr"},
                                                       {"electrical", "electr"},
                                                       {"hopeful", "hope"},
                                                       {"goodness", "good"},
                                                       {"revival", "reviv"},
                                                       {"allowance", "allow"},
                                                       {"inference", "infer"},
                                                       {"airliner", "airlin"},
                                                       {"gyroscopic", "gyroscop"},
                                                       {"adjustable", "adjust"},
                                                       {"defensible", "defens"},
                                                       {"irritant", "irrit"},
                                                       {"replacement", "replac"},
                                                       {"adjustment", "adjust"},
                                                       {"dependent", "depend"},
                                                       {"adoption", "adopt"},
                                                       {"homologou", "homolog"},
                                                       {"communism", "commun"},
                                                       {"activate", "activ"},
                                                       {"angulariti", "angular"},
                                                       {"homologous", "homolog"},
                                                       {"effective", "effect"},
                                                       {"bowdlerize", "bowdler"},
                                                       {"probate", "probat"},
                                                       {"rate", "rate"},
                                                       {"cease", "ceas"},
                                                       {"controll", "control"},
                                                       {"roll", "roll"},
                                                       {"geology", "geolog"},
                                                       {"theology", "theolog"},
                                                       {"archaeology", "archaeolog"},
                                                       {"rationally", "ration"},
                                                       {"fully", "fulli"},
                                                       {"hopefully", "hope"},
                                                       {"formalli", "formal"},
                                                       {"tied", "tie"},
                                                       {"spied", "spi"},
                                                       {"plied", "pli"},
                                                       {"yyyyyy", "yyyyyi"},
                                                       {"syzygy", "syzygi"},
                                                       {"2nds", "2nd"},
                                                       {"x9ing", "x9ing"},
                                                       {"abilities", "abil"}};
  for (const auto& [word, stem] : cases) EXPECT_EQ(porter_stem(word), stem) << word;
}

TEST(PorterStemmerTest, LongWordsTakeLinearTime) {
  const std::string ys(1'000'000, 'y');
  EXPECT_EQ(porter_stem(ys + "ing"), ys.substr(1) + "i");
  EXPECT_EQ(porter_stem("a" + ys), "a" + ys.substr(1) + "i");
}

// The longest common subsequence, against the table written out.

using Tokens = std::vector<int32_t>;

struct PlainLcs {
  int64_t length = 0;
  std::vector<bool> is_in;
};

PlainLcs plain_lcs(const Tokens& a, const Tokens& b) {
  std::vector<std::vector<int>> table(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      table[i][j] = a[i - 1] == b[j - 1] ? table[i - 1][j - 1] + 1
                                         : std::max(table[i - 1][j], table[i][j - 1]);
    }
  }
  PlainLcs out{table[a.size()][b.size()], std::vector<bool>(a.size())};
  for (size_t i = a.size(), j = b.size(); i > 0 && j > 0;) {
    if (a[i - 1] == b[j - 1]) {
      out.is_in[--i] = true;
      --j;
    } else if (table[i][j - 1] > table[i - 1][j]) {
      --j;
    } else {
      --i;
    }
  }
  return out;
}

TEST(LcsTest, EqualsTheTable) {
  std::mt19937 random(1);
  // Around one machine word and several; all columns kept, and blocks of them computed twice.
  const size_t sizes[] = {0, 1, 2, 7, 63, 64, 65, 127, 128, 129, 300};
  int64_t num_cases = 0;
  for (const size_t m : sizes) {
    for (const size_t n : sizes) {
      for (const uint32_t num_kinds : {1u, 2u, 5u, 60u, 1000u}) {
        Tokens a(m);
        Tokens b(n);
        for (int32_t& token : a) token = static_cast<int32_t>(random() % num_kinds);
        for (int32_t& token : b) token = static_cast<int32_t>(random() % num_kinds) - 3;
        const PlainLcs want = plain_lcs(a, b);
        for (const size_t max_kept_words : {size_t{1} << 20, size_t{0}}) {
          Lcs lcs(a, max_kept_words);
          ASSERT_EQ(lcs.length(b), want.length) << m << " " << n << " " << num_kinds;
          std::vector<bool> is_in(m);
          lcs.mark(b, is_in);
          ASSERT_EQ(is_in, want.is_in) << m << " " << n << " " << num_kinds;
          ASSERT_EQ(lcs.length(b), want.length);  // nothing is left behind by a call
          ++num_cases;
        }
      }
    }
  }
  EXPECT_EQ(num_cases, 11 * 11 * 5 * 2);
}

TEST(LcsTest, MarksUnite) {
  Lcs lcs(Tokens{1, 2, 3, 4, 5});
  std::vector<bool> is_in(5);
  lcs.mark(Tokens{1, 2, 6, 7, 8}, is_in);
  lcs.mark(Tokens{1, 3, 8, 9, 5}, is_in);
  EXPECT_EQ(is_in, (std::vector<bool>{true, true, true, false, true}));
}

// Scores against Google's fixtures, whose values are those of ROUGE-1.5.5.

int check_score(const boost::json::object& want, const RougeScore& got, double tolerance,
                const std::string& what) {
  int num_values = 0;
  for (const auto& [name, value] :
       {std::pair{"p", got.precision}, {"r", got.recall}, {"f", got.fmeasure}}) {
    EXPECT_NEAR(value, want.at(name).to_number<double>(), tolerance) << what << " " << name;
    ++num_values;
  }
  return num_values;
}

/// Checks the kinds that `want` names; returns how many values that were.
int check_scores(const boost::json::object& want, const RougeScores& got, double tolerance) {
  int num_values = 0;
  for (const auto& [name, member] : kRougeKinds<RougeScore>) {
    const boost::json::value* score = want.if_contains(name);
    if (score == nullptr) continue;
    num_values +=
        check_score(score->as_object(), got.*member, tolerance, to_json_text(want) + " " + name);
  }
  return num_values;
}

TEST(RougeScorerTest, GooglesFixtures) {
  const boost::json::value expected = parse_json(fixture("google_expected.json"), "fixture");
  const Strings targets = lines_of(fixture("google_target.txt"));
  const Strings predictions = lines_of(fixture("google_prediction.txt"));
  int num_values = 0;
  for (const boost::json::value& pair : expected.at("pairs").as_array()) {
    const auto line = pair.at("line").to_number<size_t>();
    const RougeScorer scorer(pair.at("stem").as_bool());
    num_values +=
        check_scores(pair.as_object(), scorer.score(targets.at(line), predictions.at(line)), 5e-6);
  }
  const boost::json::object& multi = expected.at("multi").as_object();
  num_values += check_scores(multi,
                             RougeScorer(true).score(fixture("google_target_multi.0.txt"),
                                                     fixture("google_prediction_multi.0.txt")),
                             5e-6);
  for (const boost::json::value& pair : expected.at("inline").as_array()) {
    const boost::json::string& target = pair.at("target").as_string();
    const boost::json::string& prediction = pair.at("prediction").as_string();
    num_values += check_scores(pair.as_object(),
                               RougeScorer(false).score({target.data(), target.size()},
                                                        {prediction.data(), prediction.size()}),
                               5e-10);
  }
  EXPECT_EQ(num_values, 54);
}

TEST(RougeScorerTest, EmptyTextsScoreZero) {
  const RougeScorer scorer(false);
  for (const auto& [target, prediction] :
       {std::pair{"", ""}, {"a b", ""}, {"", "a b"}, {"\n\n", "\n"}, {"a b", "/"}}) {
    const RougeScores scores = scorer.score(target, prediction);
    for (const auto& [name, member] : kRougeKinds<RougeScore>) {
      EXPECT_EQ(scores.*member, RougeScore{}) << name << " of " << target << ", " << prediction;
    }
  }
  EXPECT_EQ(scorer.score("one", "one").rouge2, RougeScore{});  // no pair of words
  EXPECT_EQ(scorer.score("one", "one").rougeLsum, (RougeScore{1, 1, 1}));
}

TEST(RougeScorerTest, LongTextsTakeLittleMemory) {
  // The table of these has 10^10 cells; a bit for each would be 1.25 GB.
  std::string text;
  for (int i = 0; i < 100'000; ++i) text += i % 3 == 0 ? "a " : "b ";
  const RougeScores scores = RougeScorer(false).score(text, text);
  EXPECT_EQ(scores.rougeL, (RougeScore{1, 1, 1}));
  EXPECT_EQ(scores.rougeLsum, (RougeScore{1, 1, 1}));
}

// Aggregation against figures of rouge-score 0.1.2 with NumPy 2.4.6.

TEST(RougeAggregateTest, EqualsBootstrapAggregator) {
  // prediction i: every (i mod 3 + 1)-th word from word i on, "and" on a new line.
  const Strings words = {"the", "quick", "brown", "fox", "jumps", "over",
                         "the", "lazy",  "dog",   "and", "runs",  "home"};
  std::vector<RougeScores> scores;
  for (size_t i = 0; i < 12; ++i) {
    std::string prediction;
    for (size_t k = i; k < 12; k += i % 3 + 1) {
      if (k > i) prediction += words[k] == "and" ? "\n" : " ";
      prediction += words[k];
    }
    scores.push_back(RougeScorer(false).score(
        "the quick brown fox jumps over the lazy dog and runs home", prediction));
  }
  const RougeIntervals got = aggregate_rouge(scores);
  EXPECT_EQ(got.rouge1.low,
            (RougeScore{0x1.0000000000000p+0, 0x1.e38e38e38e38fp-3, 0x1.6d11d11d11d13p-2}));
  EXPECT_EQ(got.rouge1.mid,
            (RougeScore{0x1.0000000000000p+0, 0x1.78e38e38e38e3p-2, 0x1.fa37a37a37a38p-2}));
  EXPECT_EQ(got.rouge1.high,
            (RougeScore{0x1.0000000000000p+0, 0x1.0aaaaaaaaaaabp-1, 0x1.45b127df4ac18p-1}));
  EXPECT_EQ(got.rouge2.low,
            (RougeScore{0x1.5555555555555p-4, 0x1.364d9364d9365p-5, 0x1.aaaaaaaaaaaabp-5}));
  EXPECT_EQ(got.rouge2.mid,
            (RougeScore{0x1.5555555555555p-2, 0x1.745d1745d1745p-3, 0x1.be9e3abb3fe9fp-3}));
  EXPECT_EQ(got.rouge2.high,
            (RougeScore{0x1.2aaaaaaaaaaabp-1, 0x1.ba2e8ba2e8ba4p-2, 0x1.ec1bea2a6cc1cp-2}));
  EXPECT_EQ(got.rougeL.low,
            (RougeScore{0x1.0000000000000p+0, 0x1.e38e38e38e390p-3, 0x1.78134e01ace7ap-2}));
  EXPECT_EQ(got.rougeL.mid,
            (RougeScore{0x1.0000000000000p+0, 0x1.78e38e38e38e3p-2, 0x1.f81f81f81f821p-2}));
  EXPECT_EQ(got.rougeL.high,
            (RougeScore{0x1.0000000000000p+0, 0x1.0e38e38e38e39p-1, 0x1.49f49f49f49f5p-1}));
  EXPECT_EQ(got.rougeLsum.low,
            (RougeScore{0x1.0000000000000p+0, 0x1.f1c71c71c71c7p-3, 0x1.76d7d3e3a4a0bp-2}));
  EXPECT_EQ(got.rougeLsum.mid,
            (RougeScore{0x1.0000000000000p+0, 0x1.78e38e38e38e4p-2, 0x1.fe37e37e37e38p-2}));
  EXPECT_EQ(got.rougeLsum.high,
            (RougeScore{0x1.0000000000000p+0, 0x1.1555555555555p-1, 0x1.4a08208208209p-1}));
  std::mt19937 random(0);
  const RougeIntervals same = aggregate_rouge(scores, random);
  const RougeIntervals next = aggregate_rouge(scores, random);
  EXPECT_EQ(same.rougeLsum.high, got.rougeLsum.high);
  EXPECT_NE(next.rouge1.low, got.rouge1.low);  // the generator went on
}

TEST(RougeAggregateTest, OneScoreIsItsOwnInterval) {
  const RougeScores one{
      .rouge1 = {0.5, 0.25, 1.0 / 3}, .rouge2 = {}, .rougeL = {}, .rougeLsum = {}};
  const RougeIntervals got = aggregate_rouge(std::vector{one});
  EXPECT_EQ(got.rouge1.low, one.rouge1);
  EXPECT_EQ(got.rouge1.mid, one.rouge1);
  EXPECT_EQ(got.rouge1.high, one.rouge1);
}

TEST(RougeAggregateTest, RefusesNonsense) {
  const std::vector<RougeScores> one(1);
  EXPECT_THROW(aggregate_rouge({}), Error);
  EXPECT_THROW(aggregate_rouge(one, 0, {.num_samples = 0, .confidence = 0.95}), Error);
  EXPECT_THROW(aggregate_rouge(one, 0, {.num_samples = 10, .confidence = 1.5}), Error);
}

TEST(NumpyRandomTest, DrawsAsLegacyChoice) {
  const std::pair<size_t, std::vector<size_t>> cases[] = {
      {1, {0, 0, 0, 0, 0, 0, 0, 0}},
      {2, {1, 0, 1, 0, 1, 1, 1, 1}},
      {5, {4, 1, 3, 3, 4, 1, 0, 1}},
      {100, {47, 68, 25, 67, 83, 23, 92, 57}},
      {1000, {175, 196, 537, 502, 579, 211, 919, 615}}};
  for (const auto& [n, want] : cases) {  // np.random.seed(7); np.random.choice(n, 8)
    std::mt19937 random(7);
    for (const size_t index : want) EXPECT_EQ(random_index(random, n), index) << n;
  }
  std::mt19937 random(0);
  EXPECT_THROW(random_index(random, 0), Error);
}

TEST(QuantileTest, InterpolatesFromTheNearerEnd) {
  const std::vector<double> values = {1, 2, 4};
  EXPECT_EQ(sorted_quantile(values, 0), 1);
  EXPECT_EQ(sorted_quantile(values, 0.25), 1.5);
  EXPECT_EQ(sorted_quantile(values, 0.5), 2);
  EXPECT_EQ(sorted_quantile(values, 0.875), 3.5);
  EXPECT_EQ(sorted_quantile(values, 1), 4);
  EXPECT_EQ(sorted_quantile(std::vector{3.0}, 0.3), 3);
  EXPECT_THROW(sorted_quantile({}, 0.5), Error);
  EXPECT_THROW(sorted_quantile(values, 1.1), Error);
}

}  // namespace
}  // namespace caravan
