#include "eval/predictions.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/json_text.h"
#include "eval/prediction_comparison.h"

namespace caravan {
namespace {

using Pairs = std::vector<std::pair<size_t, size_t>>;

class PredictionsTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
    return path(name);
  }

  /// "FOLDER/" taken out of the message of the Error that `call` throws; "" when it throws none.
  template <typename Call>
  std::string message_of(const Call& call) const {
    try {
      call();
    } catch (const Error& e) {
      std::string message = e.what();
      for (size_t at; (at = message.find(folder_ + "/")) != std::string::npos;) {
        message.erase(at, folder_.size() + 1);
      }
      return message;
    }
    return {};
  }
  std::string read_error(const std::string& text) const {
    const std::string file = write("bad", text);
    return message_of([&] { read_predictions(file); });
  }

  std::string folder_ =
      std::filesystem::temp_directory_path() / ("predictions_test_" + std::to_string(::getpid()));
};

TEST_F(PredictionsTest, WhatIsWrittenIsRead) {
  const Prediction written{.id = "a\"1",
                           .index = 4,
                           .prompt_ids = std::vector<int32_t>{1, 50257},
                           .output_ids = std::vector<int32_t>{},
                           .text = "line\n\"two\" caf\xc3\xa9",
                           .reference = "",
                           .num_dropped_tokens = 17,
                           .finish_reason = "length"};
  const std::string row = to_json_text(to_json(written));
  const std::vector<Prediction> read = read_predictions(write("p", row + "\n"));
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(read[0].id, written.id);
  EXPECT_EQ(read[0].index, 4);
  EXPECT_EQ(read[0].prompt_ids, written.prompt_ids);
  EXPECT_EQ(read[0].output_ids, written.output_ids);
  EXPECT_EQ(read[0].text, written.text);
  EXPECT_EQ(read[0].reference, written.reference);
  EXPECT_EQ(read[0].num_dropped_tokens, 17);
  EXPECT_EQ(read[0].finish_reason, "length");
  EXPECT_EQ(read[0].line, 1);
}

TEST_F(PredictionsTest, ForeignNamesAndMissingMembers) {
  const std::vector<Prediction> read = read_predictions(
      write("p", "{\"summary\": \"s\", \"text\": \"t\", \"extra\": [1]}\n\n{\"text\": \"t\"}\n"));
  ASSERT_EQ(read.size(), 2u);
  EXPECT_EQ(read[0].text, "s");
  EXPECT_EQ(read[1].text, "t");
  EXPECT_EQ(read[1].line, 3);
  EXPECT_EQ(read[1].index, -1);
  EXPECT_FALSE(read[1].reference || read[1].prompt_ids || read[1].output_ids);
  EXPECT_EQ(to_json_text(to_json(read[1])), "{\"prediction\":\"t\"}");
  EXPECT_EQ(read_predictions(write("n", "{\"id\": 7, \"text\": \"\"}"))[0].id, "7");
}

TEST_F(PredictionsTest, ErrorsNameTheLine) {
  EXPECT_EQ(read_error(""), "bad: the file has no lines");
  EXPECT_EQ(read_error("{\"text\": \"a\"}\n{\"reference\": \"a\"}\n"),
            "bad:2: no member \"prediction\" (nor \"summary\" or \"text\")");
  EXPECT_EQ(read_error("{\"prediction\": 3}\n"), "bad:1: \"prediction\" is not a string");
  EXPECT_EQ(read_error("{\"text\": \"a\", \"index\": \"4\"}\n"),
            "bad:1: \"index\" is \"4\", expected a whole number");
  EXPECT_EQ(read_error("{\"text\": \"a\", \"output_ids\": [1, 2.5]}\n"),
            "bad:1: \"output_ids\"[1] is 2.5, expected a token id");
  EXPECT_EQ(read_error("{\"text\": \"a\", \"id\": \"\"}\n"), "bad:1: \"id\" is empty");
  EXPECT_EQ(read_error("{\"text\": \"a\", \"id\": \"x\"}\n{\"text\": \"a\"}\n"),
            "bad:2: no \"id\", while line 1 has one: give all lines an id or none");
  EXPECT_EQ(read_error("{\"text\": \"a\"}\n{\"text\": \"a\", \"id\": \"x\"}\n"),
            "bad:1: no \"id\", while line 2 has one: give all lines an id or none");
  EXPECT_EQ(read_error("{\"text\": \"a\", \"id\": \"x\"}\n\n{\"text\": \"b\", \"id\": \"x\"}\n"),
            "bad:3: id \"x\" is the id of line 1 too");
  EXPECT_EQ(read_error("{\"text\": \"\xff\"}\n").substr(0, 6), "bad:1:");
}

TEST_F(PredictionsTest, MatchesByIdOrByLine) {
  const auto rows = [](std::vector<std::string> ids) {
    std::vector<Prediction> out;
    for (const std::string& id : ids) {
      out.emplace_back().id = id;
      out.back().line = static_cast<int64_t>(out.size());
    }
    return out;
  };
  const auto match = [](const auto& a, const auto& b) { return match_predictions(a, "A", b, "B"); };
  EXPECT_EQ(match(rows({"x", "y"}), rows({"y", "x"})), (Pairs{{0, 1}, {1, 0}}));
  EXPECT_EQ(match(rows({"", ""}), rows({"y", "x"})), (Pairs{{0, 0}, {1, 1}}));
  EXPECT_EQ(message_of([&] {
              match(rows({"x", "y"}), rows({"x", "z"}));
            }),
            "A:2: id \"y\" is not in B");
  EXPECT_EQ(message_of([&] { match(rows({"x"}), rows({"x", "z"})); }), "B:2: id \"z\" is not in A");
  EXPECT_EQ(message_of([&] {
              match(rows({"", ""}), rows({""}));
            }),
            "A:2: B has no line for it, only 1");
  EXPECT_EQ(message_of([&] {
              match(rows({""}), rows({"", ""}));
            }),
            "B:2: A has no line for it, only 1");
}

TEST_F(PredictionsTest, ReferencesOfAWholeTestSet) {
  std::vector<Prediction> predictions =
      read_predictions(write("p", "{\"id\": \"b\", \"text\": \"x\"}\n"));
  const std::string references = write("r",
                                       "{\"id\": \"a\", \"highlights\": \"A\", \"article\": "
                                       "\"...\"}\n{\"id\": \"b\", \"reference\": "
                                       "\"B\"}\n");
  add_references(predictions, path("p"), references);
  EXPECT_EQ(predictions[0].reference, "B");
  std::vector<Prediction> other =
      read_predictions(write("o", "{\"id\": \"c\", \"text\": \"x\"}\n"));
  EXPECT_EQ(message_of([&] { add_references(other, path("o"), references); }),
            "o:1: id \"c\" is not in r");
  const std::string bad = write("bad", "{\"id\": \"a\"}\n");
  EXPECT_EQ(message_of([&] { read_references(bad); }),
            "bad:1: no member \"reference\" (nor \"highlights\" or \"summary\")");
}

TEST_F(PredictionsTest, ComparesArticles) {
  const std::vector<Prediction> a = read_predictions(write(
      "a",
      R"({"prediction": "one two", "reference": "one two", "output_ids": [1, 2], "prompt_ids": [9]}
{"prediction": "one", "reference": "one two three", "output_ids": [1], "prompt_ids": [9]}
{"prediction": "same", "reference": "same", "prompt_ids": [9]}
)"));
  const std::vector<Prediction> b =
      read_predictions(write("b",
                             R"({"prediction": "one six", "output_ids": [1, 6], "prompt_ids": [9]}
{"prediction": "one two three", "output_ids": [1, 2, 3], "prompt_ids": [8]}
{"prediction": "same"}
)"));
  const std::vector<ComparedArticle> articles =
      compare_predictions(a, path("a"), b, path("b"), RougeScorer(false), &RougeScores::rouge1);
  ASSERT_EQ(articles.size(), 3u);
  EXPECT_EQ(articles[0].name, "line 1");
  EXPECT_EQ(articles[0].score_a, 100);
  EXPECT_EQ(articles[0].score_b, 50);
  EXPECT_TRUE(articles[0].is_same_prompt);
  ASSERT_TRUE(articles[0].first_difference.has_value());
  EXPECT_EQ(articles[0].first_difference->position, 1u);
  EXPECT_EQ(articles[0].first_difference->token_a, 2);
  EXPECT_EQ(articles[0].first_difference->token_b, 6);
  EXPECT_EQ(articles[1].difference(), -50);
  EXPECT_FALSE(articles[1].is_same_prompt);
  EXPECT_EQ(articles[1].first_difference->token_a, std::nullopt);
  EXPECT_EQ(articles[1].first_difference->token_b, 2);
  EXPECT_TRUE(articles[2].is_same_output);
  EXPECT_TRUE(articles[2].is_same_prompt);  // one side does not tell
  EXPECT_EQ(most_moved(articles, 10), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(most_moved(articles, 1), (std::vector<size_t>{0}));

  const auto compare = [&](const std::string& text_a, const std::string& text_b) {
    const auto x = read_predictions(write("x", text_a));
    const auto y = read_predictions(write("y", text_b));
    return message_of([&] {
      compare_predictions(x, path("x"), y, path("y"), RougeScorer(false), &RougeScores::rouge1);
    });
  };
  EXPECT_EQ(compare("{\"text\": \"a\"}", "{\"text\": \"a\"}"),
            "x:1: no member \"reference\", nor in y:1: give --references FILE");
  EXPECT_EQ(
      compare("{\"text\": \"a\", \"reference\": \"r\"}", "{\"text\": \"a\", \"reference\": \"s\"}"),
      "x:1 and y:1 have different references: give the right ones with --references FILE");
}

}  // namespace
}  // namespace caravan
