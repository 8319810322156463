#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "apps/bench_serve_load.h"
#include "apps/bench_serve_report.h"
#include "apps/sse_parser.h"
#include "core/error.h"

namespace caravan {
namespace {

std::vector<std::string> events_of(const std::vector<std::string>& pieces) {
  SseParser parser;
  std::vector<std::string> events;
  for (const std::string& piece : pieces) {
    parser.push(piece, [&](std::string_view data) { events.emplace_back(data); });
  }
  return events;
}

TEST(SseParser, EveryCutGivesTheSameEvents) {
  const std::string stream =
      ": ping\n\ndata: one\n\nevent: x\r\ndata:two\r\ndata:  three\r\n\r\nid: 7\n\ndata\n\ndata: "
      "[DONE]\n\ndata: unfinished";
  const std::vector<std::string> wanted{"one", "two\n three", "", "[DONE]"};
  EXPECT_EQ(events_of({stream}), wanted);
  for (size_t cut = 0; cut <= stream.size(); ++cut) {
    EXPECT_EQ(events_of({stream.substr(0, cut), stream.substr(cut)}), wanted) << cut;
  }
  std::vector<std::string> bytes;
  for (const char c : stream) bytes.emplace_back(1, c);
  EXPECT_EQ(events_of(bytes), wanted);
}

LoadResult failure(const std::string& error) {
  LoadResult result;
  result.is_done = true;
  result.error = error;
  return result;
}

LoadResult result(double first, double end, int64_t tokens, std::vector<double> gaps) {
  return {.is_done = true,
          .error = "",
          .sent_s = 0,
          .first_token_s = first,
          .end_s = end,
          .gaps_s = std::move(gaps),
          .num_prompt_tokens = 10,
          .num_output_tokens = tokens,
          .text = ""};
}

TEST(LoadSummaryTest, KnownAnswers) {
  std::vector<LoadResult> results{result(0.1, 0.5, 5, {0.1, 0.1, 0.2}), result(0.3, 0.3, 1, {})};
  results.push_back(failure("timeout"));
  results.push_back(failure("timeout"));
  const LoadSummary s = summarize_load(results, 2, {{"ttft", 200}, {"tpot", 100.1}});
  EXPECT_EQ(s.num_succeeded, 2);
  EXPECT_EQ(s.num_failed, 2);
  EXPECT_EQ(s.errors.at("timeout"), 2);
  EXPECT_EQ(s.num_input_tokens, 20);
  EXPECT_EQ(s.num_output_tokens, 6);
  EXPECT_DOUBLE_EQ(s.requests_per_s, 1);
  EXPECT_DOUBLE_EQ(s.output_tokens_per_s, 3);
  EXPECT_DOUBLE_EQ(s.total_tokens_per_s, 13);
  EXPECT_DOUBLE_EQ(s.good_requests_per_s, 0.5);
  EXPECT_DOUBLE_EQ(s.ttft.mean, 200);
  EXPECT_DOUBLE_EQ(s.ttft.median, 200);
  EXPECT_NEAR(s.ttft.p99, 298, 1e-9);
  EXPECT_DOUBLE_EQ(s.tpot.mean, 100);  // one request alone has more than one token
  EXPECT_DOUBLE_EQ(s.itl.median, 100);
  EXPECT_NEAR(s.itl.mean, 400.0 / 3, 1e-9);
  EXPECT_DOUBLE_EQ(s.e2el.mean, 400);
  const std::string report = load_report(s, 8, 0, true);
  EXPECT_NE(report.find("Successful requests:                     2         \n"),
            std::string::npos);
  EXPECT_NE(report.find("Mean TTFT (ms):                          200.00    \n"),
            std::string::npos);
  EXPECT_EQ(load_json(s).at("p99_ttft_ms").as_double(), s.ttft.p99);
}

TEST(LoadSummaryTest, NothingSucceeded) {
  const LoadSummary s = summarize_load({failure("x")}, 0, {});
  EXPECT_EQ(s.num_succeeded, 0);
  EXPECT_EQ(s.ttft.mean, 0);
  EXPECT_EQ(s.output_tokens_per_s, 0);
}

TEST(MakeLoad, RandomPromptsHaveTheirLengths) {
  LoadPlan plan;
  plan.model = "m";
  plan.num_prompts = 50;
  plan.random_input_len = 20;
  plan.random_output_len = 10;
  plan.random_range_ratio = 0.5;
  plan.vocab_size = 7;
  plan.ignores_eos = true;
  const std::vector<LoadRequest> load = make_load(plan);
  ASSERT_EQ(load.size(), 50u);
  std::set<size_t> lengths;
  for (const LoadRequest& request : load) {
    EXPECT_EQ(request.start_s, 0);
    const boost::json::value body = parse_json(request.body, "body");
    const auto& prompt = body.at("prompt").as_array();
    EXPECT_GE(prompt.size(), 10u);
    EXPECT_LE(prompt.size(), 30u);
    lengths.insert(prompt.size());
    for (const auto& id : prompt) EXPECT_LT(id.as_int64(), 7);
    EXPECT_GE(body.at("max_tokens").as_int64(), 5);
    EXPECT_LE(body.at("max_tokens").as_int64(), 15);
    EXPECT_TRUE(body.at("stream").as_bool());
    EXPECT_TRUE(body.at("ignore_eos").as_bool());
    EXPECT_EQ(body.at("model").as_string(), "m");
  }
  EXPECT_GT(lengths.size(), 5u);
  EXPECT_EQ(make_load(plan).back().body, load.back().body);
  plan.seed = 1;
  EXPECT_NE(make_load(plan).back().body, load.back().body);
}

TEST(MakeLoad, GapsHaveTheMeanAndSpreadOfTheirDistribution) {
  for (const double burstiness : {0.25, 1.0, 4.0}) {
    LoadPlan plan;
    plan.num_prompts = 20001;
    plan.random_input_len = 1;
    plan.request_rate = 50;
    plan.burstiness = burstiness;
    const std::vector<LoadRequest> load = make_load(plan);
    double sum = 0, squares = 0;
    for (size_t i = 1; i < load.size(); ++i) {
      const double gap = load[i].start_s - load[i - 1].start_s;
      sum += gap;
      squares += gap * gap;
    }
    const double mean = sum / 20000, variance = squares / 20000 - mean * mean;
    // Standard errors: 1 / sqrt(20000 burstiness) of the mean, a few times that of the variance.
    EXPECT_NEAR(mean * 50, 1, 4 / std::sqrt(20000 * burstiness)) << burstiness;
    EXPECT_NEAR(variance * 2500 * burstiness, 1, 0.15) << burstiness;
  }
}

class LoadFileTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directory(directory_); }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string write(const std::string& text) const {
    std::ofstream(directory_ + "/file") << text;
    return directory_ + "/file";
  }
  const std::string directory_ = testing::TempDir() + "caravan-load-" +
                                 testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(LoadFileTest, JsonlFromTheStartAgain) {
  LoadPlan plan;
  plan.dataset = "jsonl";
  plan.num_prompts = 3;
  plan.dataset_path =
      write("{\"prompt\":\"a\",\"output_tokens\":3}\n\n{\"turns\":[\"b\",\"c\"]}\n");
  std::vector<LoadRequest> load = make_load(plan);
  ASSERT_EQ(load.size(), 3u);
  EXPECT_EQ(parse_json(load[0].body, "").at("prompt").as_string(), "a");
  EXPECT_EQ(parse_json(load[0].body, "").at("max_tokens").as_int64(), 3);
  EXPECT_EQ(parse_json(load[1].body, "").at("prompt").as_string(), "b");
  EXPECT_EQ(load[2].body, load[0].body);
  plan.is_chat = true;
  load = make_load(plan);
  EXPECT_EQ(parse_json(load[1].body, "").at("messages").at(0).at("content").as_string(), "b");
  plan.dataset_path = write("{\"prompt\":\"a\"}\n{\"text\":1}\n");
  try {
    make_load(plan);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kCorrupt);
    EXPECT_NE(std::string(e.what()).find("line 2"), std::string::npos) << e.what();
  }
}

TEST_F(LoadFileTest, SonnetsBeginAlike) {
  LoadPlan plan;
  plan.dataset = "sonnet";
  plan.num_prompts = 20;
  plan.random_input_len = 100;
  plan.sonnet_prefix_len = 10;
  std::string verse;
  for (int i = 0; i < 50; ++i) verse += "this is the line of number " + std::to_string(i) + "\n\n";
  plan.dataset_path = write(verse);
  std::set<std::string> ends;
  for (const LoadRequest& request : make_load(plan)) {
    const boost::json::value body = parse_json(request.body, "");
    const std::string text(body.at("prompt").as_string());
    const std::string prefix = "this is the line of number 0\nthis is the line of number 1\n";
    EXPECT_EQ(text.substr(0, prefix.size()), prefix);
    EXPECT_GE(text.size(), 400u);
    EXPECT_LT(text.size(), 440u);
    ends.insert(text.substr(prefix.size()));
  }
  EXPECT_EQ(ends.size(), 20u);
  plan.sonnet_prefix_len = 101;
  EXPECT_THROW(make_load(plan), Error);
  plan.sonnet_prefix_len = 10;
  plan.dataset_path = write("\n\n");
  EXPECT_THROW(make_load(plan), Error);
}

TEST(MakeLoad, TheCanaryIsEverySoManyth) {
  LoadPlan plan;
  plan.num_prompts = 11;
  plan.random_input_len = 5;
  plan.temperature = 1;
  plan.request_rate = 5;
  plan.canary_every = 4;
  const std::vector<LoadRequest> load = make_load(plan);
  EXPECT_EQ(parse_json(load[0].body, "").at("temperature").to_number<double>(), 0);
  for (size_t i = 0; i < load.size(); ++i) {
    EXPECT_EQ(load[i].body == load[0].body, i % 4 == 0) << i;
    if (i > 0) {
      EXPECT_GT(load[i].start_s, load[i - 1].start_s);
    }
  }
  plan.canary_every = -1;
  EXPECT_THROW(make_load(plan), Error);
}

TEST_F(LoadFileTest, TraceKeepsTimesAndLengths) {
  LoadPlan plan;
  plan.dataset = "trace";
  plan.num_prompts = 10;
  plan.dataset_path = write(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.5000000,4,10\r\n2023-11-17 "
      "00:00:01.0,2,3\r\n");
  const std::vector<LoadRequest> load = make_load(plan);
  ASSERT_EQ(load.size(), 2u);
  EXPECT_DOUBLE_EQ(load[0].start_s, 0);
  EXPECT_DOUBLE_EQ(load[1].start_s, 1.5);
  EXPECT_EQ(parse_json(load[1].body, "").at("prompt").as_array().size(), 2u);
  EXPECT_EQ(parse_json(load[1].body, "").at("max_tokens").as_int64(), 3);
  for (const char* line :
       {"x", "2023-11-16 1:2:3,4,5", "2023-11-16 18:17:03.9,0,5", "2023-11-16 18:17:03.9,4,5x"}) {
    plan.dataset_path = write(std::string("T,C,G\n") + line + "\n");
    EXPECT_THROW(make_load(plan), Error) << line;
  }
}

TEST(ParseServerUrl, PartsAndErrors) {
  const ServerAddress a = parse_server_url("http://localhost:8000/prefix/");
  EXPECT_EQ(a.host, "localhost");
  EXPECT_EQ(a.port, "8000");
  EXPECT_EQ(a.prefix, "/prefix");
  EXPECT_EQ(parse_server_url("http://[::1]:81").host, "::1");
  EXPECT_EQ(parse_server_url("http://[::1]:81").port, "81");
  EXPECT_EQ(parse_server_url("http://host").port, "80");
  for (const char* bad : {"https://host", "host:80", "http://", "http://:80", "http://h:x"}) {
    EXPECT_THROW(parse_server_url(bad), Error) << bad;
  }
}

}  // namespace
}  // namespace caravan
