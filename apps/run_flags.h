#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "apps/model_flags.h"
#include "apps/prompt_line.h"
#include "apps/result_flags.h"

namespace caravan {

/// The flags of `caravan run`.
struct RunFlags {
  ModelFlags model;
  std::optional<std::string> prompt;
  std::string input;
  ResultFlags results;
  std::string prompt_template = "none";
  bool is_template_given = false;
  std::string instruction;
  std::string input_text;
  std::string truncate = "none";
  SamplingParams sampling;
  std::string seed = "0";
  std::vector<std::string> logit_bias;
  bool parse_special = false;
  int num_return = 1;
  int64_t max_batch_size = 8;
  bool is_json = false;

  void add_to(CLI::App& command);
  /// Errors: kInvalidArgument.
  void check() const;
  SamplingParams sampling_params() const;
  PromptDefaults prompt_defaults() const;
  /// Rows of JSON: --json, or a file.
  bool writes_json() const { return is_json || results.is_file(); }
};

}  // namespace caravan
