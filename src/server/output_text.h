#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sampling/stop_strings.h"
#include "tokenizer/detokenizer.h"

namespace caravan {

struct OutputTextOptions {
  std::vector<std::string> stops = {};
  bool skips_special_tokens = true;
  bool includes_stop = false;  // show what ended the output
  int64_t min_tokens = 0;      // stop strings count in the text after so many tokens
};

/// The way of one output from tokens to text: whole UTF-8 characters, held back while they may be
/// part of a stop string.
class OutputText {
 public:
  /// The tokenizer must outlive this object.
  OutputText(const Tokenizer& tokenizer, OutputTextOptions options);

  /// Text that may be shown with this token. `ends_output`: it is the end-of-text or a stop token,
  /// which are only shown with includes_stop.
  std::string push(int32_t id, bool ends_output);
  /// The rest, when there will be no more tokens.
  std::string finish();

  bool found_stop() const { return stops_.found(); }
  const std::string& stop_string() const { return stops_.matched(); }
  int64_t num_tokens() const { return num_tokens_; }
  /// Code points of the text before the token that comes next, shown or held back; an unfinished
  /// character counts when it is complete.
  int64_t num_code_points() const { return num_code_points_; }
  /// As if the text came after so many code points (echo).
  void start_at(int64_t num_code_points) { num_code_points_ = num_code_points; }

 private:
  std::string show(const std::string& text);

  Detokenizer detokenizer_;
  StopStrings stops_;
  OutputTextOptions options_;
  int64_t num_tokens_ = 0;
  int64_t num_code_points_ = 0;
};

}  // namespace caravan
