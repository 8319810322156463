#include "apps/run_batch.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <unordered_map>

#include "apps/completion_json.h"
#include "apps/prompt_tokens.h"
#include "core/error.h"
#include "core/jsonl.h"
#include "core/line_reader.h"
#include "core/log.h"
#include "core/progress.h"
#include "engine/llm_opener.h"
#include "eval/in_order_output.h"
#include "sampling/sampler.h"

namespace caravan {

namespace {

// Prompts that are read ahead of the oldest one that is not done, so that one long answer does not
// leave the others' places empty; and bytes of answers that wait for it.
constexpr int64_t kLeastWindow = 64;
constexpr int64_t kWindowPerSequence = 8;
constexpr size_t kMaxHeldBytes = size_t{64} << 20;

/// Lengths are not known before they are read, so the cache is not sized by them: what
/// max_batch_size sequences of the model's length need, or this if it is less.
constexpr int64_t kMaxCacheBytes = int64_t{4} << 30;

ResultSettings settings_of(const RunFlags& flags) {
  const SamplingParams& s = flags.sampling;
  boost::json::object all = model_settings(flags.model);
  all["--template"] = flags.prompt_template;
  all["--truncate"] = flags.truncate;
  all["--parse-special"] = flags.parse_special;
  all["--max-output-len"] = s.max_output_len;
  all["--min-output-len"] = s.min_output_len;
  all["--ignore-eos"] = s.ignore_eos;
  all["--temperature"] = static_cast<double>(s.temperature);
  all["--top-k"] = s.top_k;
  all["--top-p"] = static_cast<double>(s.top_p);
  all["--min-p"] = static_cast<double>(s.min_p);
  all["--repetition-penalty"] = static_cast<double>(s.repetition_penalty);
  all["--presence-penalty"] = static_cast<double>(s.presence_penalty);
  all["--frequency-penalty"] = static_cast<double>(s.frequency_penalty);
  all["--logit-bias"] = boost::json::value_from(flags.logit_bias);
  all["--seed"] = flags.seed;
  all["--stop"] = boost::json::value_from(s.stop);
  all["--stop-token-id"] = boost::json::value_from(s.stop_token_ids);
  all["--logprobs"] = s.num_logprobs;
  all["--num-return"] = flags.num_return;
  return ResultSettings(all);
}

LlmOptions batch_options(const RunFlags& flags, const ModelDir& dir, int64_t limit) {
  LlmOptions options{.model = flags.model.model,
                     .dtype = flags.model.dtype,
                     .kv_cache_dtype = flags.model.kv_cache_dtype,
                     .device = flags.model.device,
                     .cpu_isa = flags.model.cpu_isa,
                     .cuda_kernels = flags.model.cuda_kernels,
                     .num_threads = flags.model.num_threads,
                     .max_batch_size = flags.max_batch_size,
                     .max_seq_len = limit,
                     .kv_cache_tokens = 0,
                     .max_num_batched_tokens = 512};
  if (dir.build)
    options.max_batch_size = std::min(options.max_batch_size, dir.build->max_batch_size);
  const int64_t bytes_per_token = KvCache::block_bytes(dir.config, DType::kF32, 1);
  options.kv_cache_tokens =
      std::min(options.max_batch_size * limit, std::max(limit, kMaxCacheBytes / bytes_per_token));
  return options;
}

Llm open_llm(const RunFlags& flags, const ModelDir& dir, TokenizerOrReason tokenizer) {
  const int64_t limit = ModelRunner::sequence_limit(dir, 0);
  LlmOptions options = batch_options(flags, dir, limit);
  const int64_t block_size = create_backend(flags.model.backend())->kv_block_size();
  const auto check = [&] {
    check_memory(dir, flags.model,
                 {.dtype = std::nullopt,
                  .kv_cache_dtype = std::nullopt,
                  .max_num_batched_tokens = options.max_num_batched_tokens,
                  .max_num_logits = options.max_batch_size,
                  .max_seq_len = options.max_seq_len,
                  .max_batch_size = options.max_batch_size,
                  .num_kv_blocks = ceil_div(options.kv_cache_tokens, block_size)});
  };
  try {
    check();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory || options.kv_cache_tokens == limit) throw;
    options.kv_cache_tokens = limit;  // one sequence of the greatest length, several short ones
    check();
  }
  return LlmOpener::open(options, dir, std::move(tokenizer));
}

class RunBatch {
 public:
  RunBatch(const RunFlags& flags, const ModelDir& dir, LineReader& reader, ResultLog& log, Llm& llm)
      : flags_(flags),
        parser_({.max_model_len = llm.max_seq_len(),
                 .vocab_size = static_cast<int32_t>(dir.config.vocab_size),
                 .max_logprobs = kMaxLogprobs},
                flags.prompt_defaults()),
        reader_(reader),
        log_(log),
        llm_(llm),
        resumed_(log),
        output_([&](std::string_view text) { log_.write(text); }),
        special_(LlmOpener::tokenizer(llm)),
        progress_("run", static_cast<uint64_t>(reader.count_lines()), "lines"),
        window_(std::max(kLeastWindow, kWindowPerSequence * flags.max_batch_size)) {}

  int run() {
    const auto start = std::chrono::steady_clock::now();
    while (!is_end_ || llm_.num_unfinished() > 0) {
      while (!is_end_ && has_room() && (llm_.num_unfinished() == 0 || reader_.is_ready())) {
        read_line();
      }
      for (FinishedRequest& finished : llm_.step()) finish(finished);
    }
    resumed_.finish();
    progress_.finish();
    CARAVAN_CHECK_CODE(num_prompts_ > 0, kCorrupt, "{}: no prompts", reader_.path());
    report(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return num_failed_ > 0 ? 1 : 0;
  }

 private:
  /// A prompt whose completions are not all done.
  struct Prompt {
    boost::json::object head;  // what its rows begin with
    std::string checksum;
    int64_t num_dropped = 0;
    int64_t num_return = 1;
    int64_t num_left = 0;
  };
  struct Row {
    std::shared_ptr<Prompt> prompt;
    int64_t index = 0;  // of num_return
    int64_t place = 0;  // of the output
  };

  bool has_room() const {
    return output_.num_waiting() < window_ && output_.num_held_bytes() < kMaxHeldBytes;
  }

  void read_line() {
    if (!reader_.next(line_, kMaxJsonLineBytes)) {
      is_end_ = true;
      return;
    }
    if (line_.find_first_not_of(" \t\r") == std::string::npos) return progress_.add(1);
    ++num_prompts_;
    auto prompt = std::make_shared<Prompt>();
    const std::string where = reader_.where();
    if (log_.is_file()) prompt->checksum = line_checksum(line_);
    ResumedLines::Rows there;
    if (log_.is_file()) there = resumed_.take(reader_.number(), prompt->checksum);
    try {
      prompt->head["line"] = reader_.number();
      start(prompt, there, where);
    } catch (const Error& error) {
      // A line that was run before cannot be wrong now, unless it was refused then too.
      if (!is_of_the_line(error) || (there.count > 0 && !there.is_refused)) throw;
      if (there.count == 0) {
        write_error(*prompt, error.what());
      } else {
        ++num_failed_;
        ++num_resumed_;
      }
      progress_.add(1);
    }
  }

  /// Hands the prompt's completions, but for those that are there, to the engine.
  void start(const std::shared_ptr<Prompt>& prompt, const ResumedLines::Rows& there,
             const std::string& where) {
    CARAVAN_CHECK_CODE(!reader_.is_too_long(), kCorrupt,
                       "{}: the line has more than {} bytes; is this JSON Lines?", where,
                       kMaxJsonLineBytes);
    const boost::json::value value = parse_json(line_, where);
    CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected a JSON object", where);
    boost::json::object head = line_names(value.get_object());
    head["line"] = reader_.number();
    prompt->head = std::move(head);
    PromptLine line = parser_.parse(value.get_object(), where);
    if (there.count >= line.num_return || there.is_refused) {
      if (there.has_failed) ++num_failed_;
      ++num_resumed_;
      return progress_.add(1);
    }
    CARAVAN_CHECK_CODE(there.count == 0 || resumed_.is_empty(), kCorrupt,
                       "{}: {} of the {} completions of line {} are missing before it",
                       log_.where(), line.num_return - there.count, line.num_return,
                       reader_.number());
    special_.look_at(line.request, where);
    LlmRequest& request = line.request;
    std::vector<int64_t> ids;
    try {
      std::vector<int32_t> tokens = llm_.prompt_tokens(request);
      prompt->num_dropped =
          cut_prompt(tokens, llm_.max_seq_len(), request.params.max_output_len, line.truncate);
      if (prompt->num_dropped > 0) ++num_cut_;
      request.prompt.clear();
      request.prompt_ids = std::move(tokens);
      request.params.seed += static_cast<uint64_t>(there.count);
      for (int64_t i = there.count; i < line.num_return; ++i, ++request.params.seed) {
        ids.push_back(llm_.submit(request));
      }
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("{}: {}", where, error.what()));
    }
    prompt->num_return = line.num_return;
    prompt->num_left = static_cast<int64_t>(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      rows_[ids[i]] = {prompt, there.count + static_cast<int64_t>(i), output_.reserve()};
    }
  }

  boost::json::object with_checksum(boost::json::object row, const Prompt& prompt) const {
    if (log_.is_file()) row["input_checksum"] = prompt.checksum;
    return row;
  }

  void write_error(const Prompt& prompt, const std::string& message) {
    ++num_failed_;
    std::string text;
    if (flags_.writes_json()) {
      boost::json::object row = prompt.head;
      row["error"] = message;
      text = log_.line_of(with_checksum(std::move(row), prompt));
    } else {
      log_line(LogLevel::kError, message);
    }
    output_.finish(output_.reserve(), std::move(text));
  }

  void finish(FinishedRequest& finished) {
    const Row row = std::move(rows_.at(finished.id));
    rows_.erase(finished.id);
    Completion& completion = finished.completion;
    num_prompt_tokens_ += completion.timings.num_prompt_tokens;
    num_output_tokens_ += completion.timings.num_output_tokens;
    ++num_completions_;
    if (completion.finish_reason == FinishReason::kError) {
      ++num_failed_;
      log_warning("{}:{}: ended after {} tokens: the model's logits are not finite", reader_.path(),
                  row.prompt->head.at("line").get_int64(), completion.output_ids.size());
    }
    std::string text;
    if (flags_.writes_json()) {
      boost::json::object json = row.prompt->head;
      if (row.prompt->num_return > 1) json["index"] = row.index;
      for (auto& member : completion_json(llm_, completion)) {
        json[member.key()] = std::move(member.value());
      }
      if (row.prompt->num_dropped > 0) json["prompt_tokens_dropped"] = row.prompt->num_dropped;
      text = log_.line_of(with_checksum(std::move(json), *row.prompt));
    } else {
      text = fmt::format("--- {}\n{}\n", row.place, completion.text);
    }
    if (--row.prompt->num_left == 0) progress_.add(1);
    output_.finish(row.place, std::move(text));
  }

  void report(double seconds) const {
    special_.report();
    if (num_resumed_ > 0) {
      log_info("{} of {} prompts were there already", num_resumed_, num_prompts_);
    }
    if (num_cut_ > 0) {
      log_warning("{} of {} prompts were cut to leave room for their output", num_cut_,
                  num_prompts_);
    }
    if (num_failed_ > 0) log_warning("{} of {} prompts failed", num_failed_, num_prompts_);
    if (num_completions_ == 0) return;
    log_info("{} completions, {} prompt and {} output tokens in {:.2f} s: {:.1f} output tok/s · {}",
             num_completions_, num_prompt_tokens_, num_output_tokens_, seconds,
             static_cast<double>(num_output_tokens_) / seconds, llm_.description());
  }

  const RunFlags& flags_;
  PromptLineParser parser_;
  LineReader& reader_;
  ResultLog& log_;
  Llm& llm_;
  ResumedLines resumed_;
  InOrderOutput output_;
  SpecialTextWarning special_;
  Progress progress_;
  int64_t window_;
  std::unordered_map<int64_t, Row> rows_;  // of unfinished requests, by the engine's id
  std::string line_;
  bool is_end_ = false;
  int64_t num_prompts_ = 0;
  int64_t num_resumed_ = 0;
  int64_t num_failed_ = 0;
  int64_t num_cut_ = 0;
  int64_t num_completions_ = 0;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_output_tokens_ = 0;
};

}  // namespace

int run_batch(const RunFlags& flags, const ModelDir& dir) {
  LineReader reader(flags.input);
  ResultLog log(flags.results.output, flags.results.mode(), settings_of(flags), flags.input);
  Llm llm = open_llm(flags, dir, try_load_tokenizer(flags.model.model));
  return RunBatch(flags, dir, reader, log, llm).run();
}

}  // namespace caravan
