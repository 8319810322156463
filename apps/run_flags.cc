#include "apps/run_flags.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "core/error.h"

namespace caravan {

namespace {

/// "50256:-100" -> {50256, -100}.
std::pair<int32_t, float> parse_logit_bias(const std::string& text) {
  std::pair<int32_t, float> bias;
  const char* end = text.data() + text.size();
  const auto id = std::from_chars(text.data(), end, bias.first);
  bool is_good = id.ec == std::errc() && id.ptr != end && *id.ptr == ':';
  if (is_good) {
    const auto value = std::from_chars(id.ptr + 1, end, bias.second);
    is_good = value.ec == std::errc() && value.ptr == end;
  }
  CARAVAN_CHECK(is_good, "--logit-bias {}: expected ID:BIAS, such as 50256:-100", printable(text));
  return bias;
}

}  // namespace

SamplingParams RunFlags::sampling_params() const {
  SamplingParams params = sampling;
  params.seed = parse_seed(seed);
  for (const std::string& bias : logit_bias) params.logit_bias.push_back(parse_logit_bias(bias));
  return params;
}

PromptDefaults RunFlags::prompt_defaults() const {
  return {.is_camel = prompt_template == "camel",
          .parse_special = parse_special,
          .truncate = truncate,
          .num_return = num_return,
          .sampling = sampling_params()};
}

void RunFlags::check() const {
  CARAVAN_CHECK(num_return >= 1, "--num-return {}, expected at least 1", num_return);
  CARAVAN_CHECK(max_batch_size >= 1, "--max-batch-size {}, expected at least 1", max_batch_size);
  CARAVAN_CHECK(sampling.num_logprobs < 0 || writes_json(),
                "--logprobs are part of the JSON output: add --json");
  CARAVAN_CHECK(input.empty() || (!prompt && instruction.empty() && input_text.empty()),
                "--input takes the place of --prompt and --instruction: give one of them");
  CARAVAN_CHECK(!results.resume || !input.empty(), "--resume needs --input: it continues a batch");
  CARAVAN_CHECK(instruction.empty() || !prompt,
                "--prompt and --instruction: both are the instruction, give one of them");
  CARAVAN_CHECK(prompt_template == "camel" || (instruction.empty() && input_text.empty()),
                "--instruction and --input-text need --template camel");
  results.mode();
  sampling_params();
}

void RunFlags::add_to(CLI::App& command) {
  model.add_to(command);
  command.add_option("--prompt,-p", prompt,
                     "Text to complete; - or no prompt at all: standard input, without its last "
                     "line end");
  command.add_option("--input,-f", input,
                     "JSON Lines file (- for standard input): {\"prompt\"}, {\"prompt_ids\"} or "
                     "{\"instruction\", \"input\"} a line, with settings of its own such as "
                     "\"max_tokens\" and an \"id\" that is given back");
  results.add_to(command);
  command
      .add_option("--template", prompt_template,
                  "none, or camel: the instruction prompt of camel-5b")
      ->check(CLI::IsMember({"none", "camel"}))
      ->capture_default_str();
  command.add_option("--instruction", instruction, "Instruction for --template camel");
  command.add_option("--input-text", input_text,
                     "Further context of the instruction, for --template camel");
  command
      .add_option("--max-output-len,--max_output_len,-n", sampling.max_output_len,
                  "Most tokens to write")
      ->capture_default_str();
  command
      .add_option("--min-output-len,--min_output_len", sampling.min_output_len,
                  "Tokens before which neither end of text nor a stop token is chosen")
      ->capture_default_str();
  command.add_flag("--parse-special", parse_special,
                   "\"<|endoftext|>\" and the like in the prompts are the tokens they name: for "
                   "prompts that you trust");
  command.add_flag("--ignore-eos", sampling.ignore_eos, "Go on past the end-of-text token");
  command
      .add_option("--temperature", sampling.temperature,
                  "0 takes the most likely token always (greedy)")
      ->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "Choose among the K most likely; 0: all")
      ->capture_default_str();
  command
      .add_option("--top-p", sampling.top_p,
                  "Choose among the fewest tokens whose probabilities reach P")
      ->capture_default_str();
  command
      .add_option("--min-p", sampling.min_p,
                  "Choose among the tokens at least P times as likely as the most likely one")
      ->capture_default_str();
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "Above 1: tokens that were there already become less likely")
      ->capture_default_str();
  command
      .add_option("--presence-penalty", sampling.presence_penalty,
                  "Taken from the logits of tokens that the output has")
      ->capture_default_str();
  command
      .add_option("--frequency-penalty", sampling.frequency_penalty,
                  "The same, times how often the output has them")
      ->capture_default_str();
  command
      .add_option("--logit-bias", logit_bias,
                  "ID:BIAS, added to the logit of a token; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--seed", seed,
                  "Same seed and settings: same text; -1: a random one, which the log tells")
      ->capture_default_str();
  command.add_option("--stop", sampling.stop, "Text that ends the output; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--stop-token-id", sampling.stop_token_ids,
                  "Token that ends the output and is not part of its text; may be repeated")
      ->allow_extra_args(false);
  command
      .add_option("--logprobs", sampling.num_logprobs,
                  "With --json: log probability and rank of each token, and the K most likely "
                  "tokens in its place; -1: none")
      ->capture_default_str();
  command
      .add_option("--num-return", num_return,
                  "Completions of each prompt, with seeds SEED, SEED+1, ...")
      ->capture_default_str();
  command
      .add_option("--truncate", truncate,
                  "A prompt that is too long: none (an error), head or tail (drop that end)")
      ->check(CLI::IsMember({"none", "head", "tail"}))
      ->capture_default_str();
  command
      .add_option("--max-batch-size,--max_batch_size", max_batch_size, "Prompts that run at once")
      ->capture_default_str();
  command.add_flag("--json", is_json,
                   "One object a completion: prompt_ids, output_ids, text, finish_reason, timings");
}

}  // namespace caravan
