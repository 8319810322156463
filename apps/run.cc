#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "apps/commands.h"
#include "apps/completion_json.h"
#include "apps/prompt_tokens.h"
#include "apps/run_batch.h"
#include "apps/run_flags.h"
#include "apps/sampling_defaults.h"
#include "apps/speed.h"
#include "core/error.h"
#include "core/line_reader.h"
#include "core/log.h"
#include "engine/llm_opener.h"
#include "engine/prompt_template.h"
#include "tokenizer/model_chat_template.h"

namespace caravan {

namespace {

constexpr size_t kMaxPromptBytes = size_t{64} << 20;

/// Standard input without its last line end, which a file's editor puts there.
std::string prompt_from_standard_input() {
  std::string text = read_standard_input(kMaxPromptBytes);
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

/// The text of the one prompt of the flags, or of standard input.
std::string prompt_text(const RunFlags& flags) {
  std::string text;
  if (!flags.instruction.empty()) {
    text = flags.instruction;
  } else if (flags.prompt == "-") {
    text = prompt_from_standard_input();
  } else if (flags.prompt) {
    text = *flags.prompt;
  } else {
    CARAVAN_CHECK(::isatty(STDIN_FILENO) == 0,
                  "no prompt: give --prompt, --input, or a text on standard input");
    text = prompt_from_standard_input();
    CARAVAN_CHECK(!text.empty(),
                  "no prompt: standard input is empty, and there is no --prompt and no --input");
  }
  if (flags.prompt_template != "camel") return text;
  CARAVAN_CHECK(!text.empty(), "--template camel: the instruction is empty");
  return camel_prompt(text, flags.input_text);
}

/// What a model was trained on with its own template is not what goes to it without.
void warn_of_chat_template(const RunFlags& flags) {
  const bool is_camel = flags.prompt_template == "camel";
  if (!is_camel && flags.is_template_given) return;
  const std::optional<std::string> file = model_chat_template(flags.model.model);
  if (!file) return;
  log_warning("{}/{} has the model's own chat template, which run does not read: {}",
              flags.model.model, *file,
              is_camel ? "--template camel is another model's prompt"
                       : "the prompt goes to the model as it is; --template none says that it "
                         "shall");
}

/// The one prompt of the flags or of standard input.
int run_prompt(const RunFlags& flags, const ModelDir& dir) {
  ResultLog log(flags.results.output, flags.results.mode(), ResultSettings());
  TokenizerOrReason tokenizer = try_load_tokenizer(flags.model.model);
  LlmRequest request{.prompt = prompt_text(flags),
                     .prompt_ids = {},
                     .parse_special = flags.parse_special,
                     .params = flags.sampling_params()};
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  std::vector<int32_t> ids = tokenize_prompt(request, tokenizer, dir.config.bos_token_id);
  const int64_t num_dropped = cut_prompt(ids, limit, request.params.max_output_len, flags.truncate);
  if (num_dropped > 0) {
    log_warning("prompt cut to {} tokens: {} dropped from its {}", ids.size(), num_dropped,
                flags.truncate);
  }
  const LlmOptions options{
      .model = flags.model.model,
      .dtype = flags.model.dtype,
      .kv_cache_dtype = flags.model.kv_cache_dtype,
      .device = flags.model.device,
      .cpu_isa = flags.model.cpu_isa,
      .cuda_kernels = flags.model.cuda_kernels,
      .num_threads = flags.model.num_threads,
      .max_batch_size = std::min<int64_t>(flags.num_return, flags.max_batch_size),
      .max_seq_len = std::min(limit, static_cast<int64_t>(ids.size()) +
                                         std::max<int64_t>(0, request.params.max_output_len)),
      .kv_cache_tokens = 0,
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
  SpecialTextWarning special(LlmOpener::tokenizer(llm));
  special.look_at(request, "--prompt");
  special.report();

  const auto num_return = static_cast<size_t>(flags.num_return);
  std::vector<SamplingParams> params(num_return, request.params);
  for (size_t i = 0; i < num_return; ++i) params[i].seed += i;
  if (flags.seed == "-1") log_info("--seed {}", request.params.seed);
  const bool streams = num_return == 1 && !flags.writes_json();
  const std::vector<Completion> completions =
      llm.generate(std::vector(num_return, ids), params, [&](size_t, std::string_view text) {
        if (streams) log.write(text);
      });
  bool has_failed = false;
  for (size_t i = 0; i < completions.size(); ++i) {
    if (completions[i].finish_reason == FinishReason::kError) {
      has_failed = true;
      log_warning("completion {} ended after {} tokens: the model's logits are not finite", i,
                  completions[i].output_ids.size());
    }
    if (flags.writes_json()) {
      boost::json::object row = completion_json(llm, completions[i]);
      if (num_dropped > 0) row["prompt_tokens_dropped"] = num_dropped;
      log.append(std::move(row));
    } else {
      log.write(streams ? "\n" : fmt::format("--- {}\n{}\n", i, completions[i].text));
    }
  }
  report_speed(llm, completions, flags.model);
  return has_failed ? 1 : 0;
}

int run_run(const RunFlags& flags) {
  flags.check();
  const ModelDir dir = open_model_dir(flags.model.model);
  warn_of_chat_template(flags);
  return flags.input.empty() ? run_prompt(flags, dir) : run_batch(flags, dir);
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command =
      app.add_subcommand("run", "Complete one prompt (streamed) or a file of prompts");
  flags->add_to(*command);
  command->callback([flags, command] {
    flags->is_template_given = command->get_option("--template")->count() > 0;
    apply_generation_defaults(*command, flags->model.model, flags->sampling);
    const int status = run_run(*flags);
    if (status != 0) throw CLI::RuntimeError(status);
  });
}

}  // namespace caravan
