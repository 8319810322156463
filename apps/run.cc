#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <numeric>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "apps/speed.h"
#include "caravan/llm.h"
#include "core/error.h"
#include "core/jsonl.h"
#include "core/log.h"
#include "engine/llm_opener.h"
#include "engine/prompt_template.h"
#include "format/model_dir.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

struct RunFlags {
  ModelFlags model;
  std::string prompt;
  std::string input;
  std::string prompt_template = "none";
  std::string instruction;
  std::string input_text;
  std::string truncate = "none";
  SamplingParams sampling;
  std::vector<std::string> logit_bias;
  int num_return = 1;
  int64_t max_batch_size = 8;
  bool is_json = false;
};

struct Prompt {
  std::vector<int32_t> ids;
  int64_t num_dropped = 0;
};

/// The text of one prompt from flags or a JSON line. {"prompt"} stands for itself; {"instruction",
/// "input"} goes through the camel template.
std::string prompt_text(const RunFlags& flags, const std::string& prompt,
                        const std::string& instruction, const std::string& input_text,
                        const std::string& where) {
  if (flags.prompt_template == "none") {
    CARAVAN_CHECK(instruction.empty() && input_text.empty(),
                  "{}: an instruction needs --template camel", where);
    CARAVAN_CHECK(!prompt.empty(), "{}: the prompt is empty", where);
    return prompt;
  }
  CARAVAN_CHECK(instruction.empty() || prompt.empty(),
                "{}: both a prompt and an instruction were given", where);
  const std::string& task = instruction.empty() ? prompt : instruction;
  CARAVAN_CHECK(!task.empty(), "{}: the instruction is empty", where);
  return camel_prompt(task, input_text);
}

std::vector<std::string> read_prompts(const RunFlags& flags) {
  if (flags.input.empty()) {
    return {prompt_text(flags, flags.prompt, flags.instruction, flags.input_text, "--prompt")};
  }
  CARAVAN_CHECK(flags.prompt.empty() && flags.instruction.empty(),
                "--input takes the place of --prompt and --instruction: give one of them");
  std::vector<std::string> prompts;
  for_each_json_line(flags.input, [&](const boost::json::object& row, const std::string& where) {
    std::string prompt = string_of(row, "prompt", where);
    if (prompt.empty()) prompt = string_of(row, "text", where);
    prompts.push_back(prompt_text(flags, prompt, string_of(row, "instruction", where),
                                  string_of(row, "input", where), where));
  });
  CARAVAN_CHECK_CODE(!prompts.empty(), kCorrupt, "{}: no prompts", flags.input);
  return prompts;
}

/// Cuts a prompt that leaves no room for the output, if the flags allow it.
Prompt fit(std::vector<int32_t> ids, int64_t limit, const RunFlags& flags) {
  const int64_t room = limit - flags.sampling.max_output_len;
  CARAVAN_CHECK(room > 0, "--max-output-len {} leaves no room for a prompt within {} tokens",
                flags.sampling.max_output_len, limit);
  Prompt prompt{std::move(ids), 0};
  const auto length = static_cast<int64_t>(prompt.ids.size());
  if (length <= room) return prompt;
  CARAVAN_CHECK(flags.truncate != "none",
                "the prompt has {} tokens; with --max-output-len {} at most {} fit in {}: shorten "
                "one, or give --truncate head|tail",
                length, flags.sampling.max_output_len, room, limit);
  prompt.num_dropped = length - room;
  if (flags.truncate == "head") {
    prompt.ids.erase(prompt.ids.begin(), prompt.ids.begin() + prompt.num_dropped);
  } else {
    prompt.ids.resize(static_cast<size_t>(room));
  }
  log_warning("prompt cut to {} tokens: {} dropped from its {}", room, prompt.num_dropped,
              flags.truncate);
  return prompt;
}

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

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kError:
      return "error";
    default:
      return "length";
  }
}

boost::json::object logprob_json(const Llm& llm, const TokenLogprob& token) {
  // JSON has no infinity: the least number stands for a probability of zero, as in vLLM's answers.
  constexpr float kLeast = -9999.0f;
  std::string text;  // a token may be part of a character
  append_sanitized_utf8(llm.decode({token.token_id}), true, text);
  return {{"id", token.token_id},
          {"token", std::move(text)},
          {"logprob", std::max(token.logprob, kLeast)},
          {"rank", token.rank}};
}

boost::json::array logprobs_json(const Llm& llm, const std::vector<ScoredToken>& tokens) {
  boost::json::array rows;
  for (const ScoredToken& token : tokens) {
    if (!token.logprob) continue;
    boost::json::object row = logprob_json(llm, *token.logprob);
    boost::json::array top;
    for (const TokenLogprob& other : token.top_logprobs) top.push_back(logprob_json(llm, other));
    row["top"] = std::move(top);
    rows.push_back(std::move(row));
  }
  return rows;
}

boost::json::object to_json(const Llm& llm, const Completion& completion, int64_t num_dropped) {
  const RequestTimings& t = completion.timings;
  const double seconds = t.decode_ms / 1000;
  boost::json::object timings{
      {"prompt_n", t.num_prompt_tokens},
      {"queue_ms", t.queue_ms},
      {"prompt_ms", t.prefill_ms},
      {"predicted_n", t.num_output_tokens},
      {"predicted_ms", t.decode_ms},
      {"predicted_per_second",
       seconds > 0 ? static_cast<double>(t.num_output_tokens - 1) / seconds : 0.0}};
  boost::json::object row{{"prompt_ids", boost::json::value_from(completion.prompt_ids)},
                          {"output_ids", boost::json::value_from(completion.output_ids)},
                          {"text", completion.text},
                          {"finish_reason", finish_reason_name(completion.finish_reason)},
                          {"timings", std::move(timings)}};
  if (!completion.output_logprobs.empty()) {
    row["logprobs"] = logprobs_json(llm, completion.output_logprobs);
  }
  if (num_dropped > 0) row["prompt_tokens_dropped"] = num_dropped;
  return row;
}

int64_t longest(const std::vector<Prompt>& prompts) {
  size_t length = 0;
  for (const Prompt& p : prompts) length = std::max(length, p.ids.size());
  return static_cast<int64_t>(length);
}

void run_run(const RunFlags& flags) {
  CARAVAN_CHECK(flags.num_return >= 1, "--num-return {}, expected at least 1", flags.num_return);
  CARAVAN_CHECK(flags.sampling.num_logprobs < 0 || flags.is_json,
                "--logprobs are part of the JSON output: add --json");
  const ModelDir dir = open_model_dir(flags.model.model);
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  const std::vector<std::string> texts = read_prompts(flags);
  std::vector<Prompt> prompts;
  Tokenizer tokenizer = Tokenizer::from_directory(flags.model.model);
  for (const std::string& text : texts) {
    prompts.push_back(fit(tokenizer.encode(text), limit, flags));
  }
  const auto num_requests = static_cast<int64_t>(prompts.size()) * flags.num_return;
  const LlmOptions options{
      .model = flags.model.model,
      .dtype = flags.model.dtype,
      .kv_cache_dtype = flags.model.kv_cache_dtype,
      .device = flags.model.device,
      .cpu_isa = flags.model.cpu_isa,
      .cuda_kernels = flags.model.cuda_kernels,
      .num_threads = flags.model.num_threads,
      .max_batch_size = std::min(num_requests, flags.max_batch_size),
      .max_seq_len = std::min(limit, longest(prompts) + flags.sampling.max_output_len),
      .max_num_batched_tokens = 512,
      .verify_weights = !flags.model.skips_verification};
  check_memory(dir, flags.model,
               {.dtype = std::nullopt,
                .kv_cache_dtype = std::nullopt,
                .max_num_batched_tokens = options.max_num_batched_tokens,
                .max_num_logits = options.max_batch_size,
                .max_seq_len = options.max_seq_len,
                .max_batch_size = options.max_batch_size});
  Llm llm = LlmOpener::open(options, dir, std::move(tokenizer));

  SamplingParams sampling = flags.sampling;
  for (const std::string& bias : flags.logit_bias) {
    sampling.logit_bias.push_back(parse_logit_bias(bias));
  }
  std::vector<std::vector<int32_t>> requests;
  std::vector<SamplingParams> params;
  for (const Prompt& prompt : prompts) {
    for (int i = 0; i < flags.num_return; ++i) {
      requests.push_back(prompt.ids);
      params.push_back(sampling);
      params.back().seed += static_cast<uint64_t>(i);
    }
  }
  const bool streams = requests.size() == 1 && !flags.is_json;
  const std::vector<Completion> completions =
      llm.generate(requests, params, [&](size_t, std::string_view text) {
        if (!streams) return;
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      });
  for (size_t i = 0; i < completions.size(); ++i) {
    if (completions[i].finish_reason == FinishReason::kError) {
      log_warning("completion {} ended after {} tokens: the model's logits are not finite", i,
                  completions[i].output_ids.size());
    }
    if (flags.is_json) {
      const size_t prompt = i / static_cast<size_t>(flags.num_return);
      std::printf("%s\n",
                  boost::json::serialize(to_json(llm, completions[i], prompts[prompt].num_dropped))
                      .c_str());
    } else if (streams) {
      std::printf("\n");
    } else {
      std::printf("--- %zu\n%s\n", i, completions[i].text.c_str());
    }
  }
  report_speed(llm, completions, flags.model);
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command =
      app.add_subcommand("run", "Complete one prompt (streamed) or a file of prompts");
  flags->model.add_to(*command);
  command->add_option("--prompt,-p", flags->prompt, "Text to complete");
  command->add_option("--input,-f", flags->input,
                      "JSON Lines file (- for standard input): {\"prompt\"} or {\"instruction\", "
                      "\"input\"} a line");
  command
      ->add_option("--template", flags->prompt_template,
                   "none, or camel: the instruction prompt of camel-5b")
      ->check(CLI::IsMember({"none", "camel"}))
      ->capture_default_str();
  command->add_option("--instruction", flags->instruction, "Instruction for --template camel");
  command->add_option("--input-text", flags->input_text,
                      "Further context of the instruction, for --template camel");
  command
      ->add_option("--max-output-len,--max_output_len,-n", flags->sampling.max_output_len,
                   "Most tokens to write")
      ->capture_default_str();
  command
      ->add_option("--min-output-len,--min_output_len", flags->sampling.min_output_len,
                   "Tokens before which neither end of text nor a stop token is chosen")
      ->capture_default_str();
  command->add_flag("--ignore-eos", flags->sampling.ignore_eos, "Go on past the end-of-text token");
  command
      ->add_option("--temperature", flags->sampling.temperature,
                   "0 takes the most likely token always (greedy)")
      ->capture_default_str();
  command->add_option("--top-k", flags->sampling.top_k, "Choose among the K most likely; 0: all")
      ->capture_default_str();
  command
      ->add_option("--top-p", flags->sampling.top_p,
                   "Choose among the fewest tokens whose probabilities reach P")
      ->capture_default_str();
  command
      ->add_option("--min-p", flags->sampling.min_p,
                   "Choose among the tokens at least P times as likely as the most likely one")
      ->capture_default_str();
  command
      ->add_option("--repetition-penalty", flags->sampling.repetition_penalty,
                   "Above 1: tokens that were there already become less likely")
      ->capture_default_str();
  command
      ->add_option("--presence-penalty", flags->sampling.presence_penalty,
                   "Taken from the logits of tokens that the output has")
      ->capture_default_str();
  command
      ->add_option("--frequency-penalty", flags->sampling.frequency_penalty,
                   "The same, times how often the output has them")
      ->capture_default_str();
  command
      ->add_option("--logit-bias", flags->logit_bias,
                   "ID:BIAS, added to the logit of a token; may be repeated")
      ->allow_extra_args(false);
  command->add_option("--seed", flags->sampling.seed, "Same seed and settings: same text")
      ->capture_default_str();
  command->add_option("--stop", flags->sampling.stop, "Text that ends the output; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--stop-token-id", flags->sampling.stop_token_ids,
                   "Token that ends the output and is not part of its text; may be repeated")
      ->allow_extra_args(false);
  command
      ->add_option("--logprobs", flags->sampling.num_logprobs,
                   "With --json: log probability and rank of each token, and the K most likely "
                   "tokens in its place; -1: none")
      ->capture_default_str();
  command
      ->add_option("--num-return", flags->num_return,
                   "Completions of each prompt, with seeds SEED, SEED+1, ...")
      ->capture_default_str();
  command
      ->add_option("--truncate", flags->truncate,
                   "A prompt that is too long: none (an error), head or tail (drop that end)")
      ->check(CLI::IsMember({"none", "head", "tail"}))
      ->capture_default_str();
  command
      ->add_option("--max-batch-size,--max_batch_size", flags->max_batch_size,
                   "Prompts that run at once")
      ->capture_default_str();
  command->add_flag(
      "--json", flags->is_json,
      "One object a completion: prompt_ids, output_ids, text, finish_reason, timings");
  command->callback([flags] { run_run(*flags); });
}

}  // namespace caravan
