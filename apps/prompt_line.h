#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "caravan/llm.h"
#include "core/error.h"
#include "core/json.h"
#include "server/request_schema.h"

namespace caravan {

/// What a line of `run --input` does not say: the flags.
struct PromptDefaults {
  bool is_camel = false;  // --template camel
  bool parse_special = false;
  std::string truncate = "none";
  int64_t num_return = 1;
  SamplingParams sampling = {};
};

/// One prompt of `run --input`.
struct PromptLine {
  LlmRequest request;  // the prompt after the template, and the sampling of the first completion
  int64_t num_return = 1;
  std::string truncate = "none";
};

/// One text of `score`.
struct ScoreLine {
  std::string text;
  std::vector<int32_t> ids;
  bool is_ids = false;
  bool parse_special = false;
};

/// "id" and "custom_id" of a line, strings or numbers, to be given back as they are. Others are
/// left out: parse() refuses them.
boost::json::object line_names(const boost::json::object& line);

/// Reads lines of `run --input` and `score`. A line has a prompt, and settings that go before the
/// flags, under the names of OpenAI's and vLLM's completions; or it is a line of OpenAI's batch
/// format for /v1/completions. Every field is honoured or refused. Immutable.
class PromptLineParser {
 public:
  PromptLineParser(const ApiLimits& limits, PromptDefaults defaults);

  /// Errors: kCorrupt, "WHERE: FIELD: got what, expected what".
  PromptLine parse(const boost::json::object& line, const std::string& where) const;

 private:
  PromptLine parse_fields(const boost::json::object& fields, const std::string& path,
                          const std::string& where) const;

  PromptDefaults defaults_;
  int32_t vocab_size_;
  boost::json::object schema_;
};

/// {"text"} or {"ids"}, with "prompt" and "prompt_ids" as other names of the same, "parse_special",
/// "id" and "custom_id". Errors: as PromptLineParser::parse.
ScoreLine parse_score_line(const boost::json::object& line, bool parse_special,
                           const std::string& where);

/// Whether an error is of one line, not of the run, when it comes of reading the line.
bool is_of_the_line(const Error& error);

/// "-1": a random one; else the number. Errors: kInvalidArgument.
uint64_t parse_seed(const std::string& text);

}  // namespace caravan
