#include "engine/llm_opener.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "backend/create_backend.h"
#include "core/error.h"
#include "engine/llm_engine.h"
#include "format/model_dir.h"
#include "sampling/stop_strings.h"
#include "tokenizer/detokenizer.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

std::optional<DType> dtype_option(const std::string& text, const char* what) {
  if (text == "auto") return std::nullopt;
  const std::optional<DType> dtype = parse_dtype(text);
  CARAVAN_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16,
                "{} \"{}\", expected auto, float32, float16 or bfloat16", what, printable(text));
  return dtype;
}

std::optional<DType> kv_dtype_option(const std::string& text) {
  const std::optional<DType> dtype = parse_dtype(text);
  if (dtype && is_quantized_kv(*dtype)) return dtype;
  if (text == "auto") return std::nullopt;
  CARAVAN_CHECK(dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16,
                "kv cache dtype \"{}\", expected auto, float32, float16, bfloat16, int8 or fp8",
                printable(text));
  return dtype;
}

/// One running prompt's way from tokens to text.
struct TextStream {
  std::optional<Detokenizer> detokenizer;  // unset: the model has no tokenizer
  StopStrings stops;
  std::string text;
  int64_t num_tokens = 0;

  std::string push(int32_t token) { return detokenizer ? detokenizer->push(token) : ""; }
  std::string flush() { return detokenizer ? detokenizer->flush() : ""; }
};

LlmEngine make_engine(const LlmOptions& options, const ModelDir& dir) {
  LlmEngineOptions engine;
  engine.runner.dtype = dtype_option(options.dtype, "dtype");
  engine.runner.kv_cache_dtype = kv_dtype_option(options.kv_cache_dtype);
  engine.runner.max_batch_size = options.max_batch_size;
  engine.runner.max_seq_len = options.max_seq_len;
  engine.runner.max_num_logits = options.max_batch_size;
  engine.runner.max_num_batched_tokens =
      std::max(options.max_num_batched_tokens, options.max_batch_size);
  engine.runner.verify_weights = options.verify_weights;
  engine.eos_token_ids = dir.config.eos_token_ids;
  CARAVAN_CHECK(options.max_batch_size >= 1, "max batch size {}, expected at least 1",
                options.max_batch_size);
  if (dir.build) {
    CARAVAN_CHECK(options.max_batch_size <= dir.build->max_batch_size,
                  "{}: {} sequences at once wanted, the engine was built for {}", dir.path,
                  options.max_batch_size, dir.build->max_batch_size);
  }
  std::unique_ptr<Backend> backend = create_backend({.device = options.device,
                                                     .cpu_isa = options.cpu_isa,
                                                     .num_threads = options.num_threads,
                                                     .cuda_kernels = options.cuda_kernels});
  CARAVAN_CHECK(options.kv_cache_tokens >= 0, "KV cache of {} tokens, expected at least 0",
                options.kv_cache_tokens);
  engine.runner.num_kv_blocks = ceil_div(options.kv_cache_tokens, backend->kv_block_size());
  return LlmEngine(dir, std::move(backend), engine);
}

}  // namespace

std::vector<int32_t> tokenize_prompt(const LlmRequest& request, const TokenizerOrReason& tokenizer,
                                     int32_t bos_token_id) {
  if (!request.prompt_ids.empty()) {
    CARAVAN_CHECK(request.prompt.empty(), "both a text and token ids were given as the prompt");
    return request.prompt_ids;
  }
  std::vector<int32_t> ids;
  if (!request.prompt.empty() || tokenizer) {
    ids = tokenizer.value().encode(request.prompt,
                                   {.parse_special = request.parse_special, .add_special = true});
  }
  if (ids.empty()) {
    CARAVAN_CHECK(bos_token_id >= 0,
                  "the prompt is empty, and config.json names no bos_token_id to begin with");
    ids.push_back(bos_token_id);
  }
  return ids;
}

struct Llm::Impl {
  Impl(const LlmOptions& options, ModelDir model_dir, TokenizerOrReason loaded)
      : dir(std::move(model_dir)),
        tokenizer(std::move(loaded)),
        engine(make_engine(options, dir)) {}

  int64_t add(std::span<const int32_t> prompt, const SamplingParams& params);
  /// on_text is told the engine's id of the request.
  std::vector<FinishedRequest> step(
      const std::function<void(int64_t id, std::string_view text)>& on_text);

  ModelDir dir;
  TokenizerOrReason tokenizer;
  LlmEngine engine;
  std::map<int64_t, TextStream> streams;  // of the unfinished requests, by the engine's id
};

int64_t Llm::Impl::add(std::span<const int32_t> prompt, const SamplingParams& params) {
  CARAVAN_CHECK_CODE(params.stop.empty() || tokenizer, kUnsupported,
                     "stop texts need a tokenizer, and this model's cannot be read: {}",
                     tokenizer.reason);
  const int64_t id = engine.add_request(prompt, params);
  TextStream stream{std::nullopt, StopStrings(params.stop), "", 0};
  if (tokenizer) stream.detokenizer.emplace(*tokenizer.tokenizer);
  streams.emplace(id, std::move(stream));
  return id;
}

std::vector<FinishedRequest> Llm::Impl::step(
    const std::function<void(int64_t id, std::string_view text)>& on_text) {
  const auto show = [&](int64_t id, TextStream& stream, const std::string& more) {
    if (more.empty()) return;
    stream.text += more;
    if (on_text) on_text(id, more);
  };
  const auto on_token = [&](const Sequence& sequence, int32_t token) {
    TextStream& stream = streams.at(sequence.id);
    if (engine.ends_output(sequence.params, token)) return true;
    const std::string more = stream.push(token);
    const bool may_stop = ++stream.num_tokens > sequence.params.min_output_len;
    show(sequence.id, stream, may_stop ? stream.stops.push(more) : more);
    return stream.stops.found();
  };
  const std::vector<std::unique_ptr<Sequence>> ended = engine.step(on_token);
  CARAVAN_CHECK_CODE(engine.last_step().num_tokens > 0, kInternal,
                     "{} sequences are unfinished and none can run", streams.size());
  std::vector<FinishedRequest> finished;
  for (const auto& sequence : ended) {
    TextStream& stream = streams.at(sequence->id);
    show(sequence->id, stream, stream.stops.push(stream.flush()));
    show(sequence->id, stream, stream.stops.flush());
    const auto first_output = sequence->token_ids.begin() + sequence->num_prompt_tokens;
    finished.push_back({sequence->id,
                        {.prompt_ids = {sequence->token_ids.begin(), first_output},
                         .output_ids = {first_output, sequence->token_ids.end()},
                         .text = std::move(stream.text),
                         .finish_reason = sequence->finish_reason,
                         .output_logprobs = std::move(sequence->scored),
                         .prompt_logprobs = std::move(sequence->prompt_scored),
                         .timings = timings_of(*sequence)}});
    streams.erase(sequence->id);
  }
  return finished;
}

Llm::Llm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Llm::Llm(Llm&&) noexcept = default;
Llm& Llm::operator=(Llm&&) noexcept = default;
Llm::~Llm() = default;

Llm Llm::open(const LlmOptions& options) {
  return LlmOpener::open(options, open_model_dir(options.model), try_load_tokenizer(options.model));
}

Llm LlmOpener::open(const LlmOptions& options, ModelDir dir, TokenizerOrReason tokenizer) {
  return Llm(std::make_unique<Llm::Impl>(options, std::move(dir), std::move(tokenizer)));
}

const Tokenizer* LlmOpener::tokenizer(const Llm& llm) {
  return llm.impl_->tokenizer ? &*llm.impl_->tokenizer.tokenizer : nullptr;
}

std::string Llm::description() const {
  const ModelRunner& runner = impl_->engine.runner();
  return fmt::format("{}, {} weights", runner.backend().description(),
                     dtype_name(runner.model().weight_dtype()));
}
int64_t Llm::weight_bytes_per_step() const {
  return impl_->engine.runner().model().bytes_per_decode_step();
}
int64_t Llm::kv_bytes_per_token() const {
  return KvCache::block_bytes(impl_->dir.config, impl_->engine.runner().cache().dtype(), 1);
}

bool Llm::has_tokenizer() const { return static_cast<bool>(impl_->tokenizer); }
std::vector<int32_t> Llm::encode(std::string_view text, bool parse_special) const {
  return impl_->tokenizer.value().encode(text, {.parse_special = parse_special});
}
std::vector<int32_t> Llm::prompt_tokens(const LlmRequest& request) const {
  return tokenize_prompt(request, impl_->tokenizer, impl_->dir.config.bos_token_id);
}
std::string Llm::decode(const std::vector<int32_t>& ids) const {
  const Tokenizer& tokenizer = impl_->tokenizer.value();
  std::string bytes;
  for (const int32_t id : ids) {
    CARAVAN_CHECK(id >= 0 && id < vocab_size(), "token id {} is outside the vocabulary of {}", id,
                  vocab_size());
    bytes += tokenizer.token_bytes(id);
  }
  return bytes;
}
int64_t Llm::vocab_size() const { return impl_->dir.config.vocab_size; }
int64_t Llm::max_seq_len() const { return impl_->engine.runner().max_seq_len(); }

int64_t Llm::submit(const LlmRequest& request) {
  return impl_->add(prompt_tokens(request), request.params);
}

std::vector<FinishedRequest> Llm::step() {
  if (impl_->streams.empty()) return {};
  return impl_->step(nullptr);
}

int64_t Llm::num_unfinished() const { return static_cast<int64_t>(impl_->streams.size()); }

std::vector<Completion> Llm::generate(const std::vector<std::vector<int32_t>>& prompts,
                                      const std::vector<SamplingParams>& params,
                                      const OnText& on_text) {
  CARAVAN_CHECK(params.size() == 1 || params.size() == prompts.size(),
                "{} sampling settings for {} prompts, expected one or one for each", params.size(),
                prompts.size());
  CARAVAN_CHECK(impl_->streams.empty(),
                "{} requests of submit() are unfinished: call step() until they are done",
                impl_->streams.size());
  const auto params_of = [&](size_t i) -> const SamplingParams& {
    return params[params.size() == 1 ? 0 : i];
  };
  for (size_t i = 0; i < prompts.size(); ++i) {
    impl_->engine.check_request(prompts[i], params_of(i));
  }
  // Whatever throws, on_text too, leaves the engine without these requests.
  struct Cancel {
    ~Cancel() {
      for (const auto& [id, stream] : impl.streams) impl.engine.cancel(id);
      impl.streams.clear();
    }
    Impl& impl;
  } cancel{*impl_};
  std::map<int64_t, size_t> index_of;
  for (size_t i = 0; i < prompts.size(); ++i) {
    index_of.emplace(impl_->add(prompts[i], params_of(i)), i);
  }
  std::vector<Completion> completions(prompts.size());
  while (!impl_->streams.empty()) {
    std::vector<FinishedRequest> finished = impl_->step([&](int64_t id, std::string_view text) {
      if (on_text) on_text(index_of.at(id), text);
    });
    for (FinishedRequest& request : finished) {
      completions[index_of.at(request.id)] = std::move(request.completion);
    }
  }
  return completions;
}

Completion Llm::generate(std::string_view prompt, const SamplingParams& params,
                         const OnText& on_text) {
  return generate({.prompt = std::string(prompt), .params = params}, on_text);
}

Completion Llm::generate(const LlmRequest& request, const OnText& on_text) {
  return std::move(
      generate(std::vector<std::vector<int32_t>>{prompt_tokens(request)}, {request.params}, on_text)
          .front());
}

}  // namespace caravan
