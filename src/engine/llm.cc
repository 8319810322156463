#include "engine/llm_opener.h"

#include <algorithm>
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
  size_t index;
  Detokenizer detokenizer;
  StopStrings stops;
  std::string text;
  int64_t num_tokens = 0;
};

/// The streams of one call. Whatever throws in it, a user's callback too, leaves the engine without
/// them.
struct Streams {
  explicit Streams(LlmEngine& llm_engine) : engine(llm_engine) {}
  ~Streams() {
    for (const auto& [id, stream] : by_id) engine.cancel(id);
  }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  LlmEngine& engine;
  std::map<int64_t, TextStream> by_id;  // by the engine's id
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
  return LlmEngine(dir,
                   create_backend({.device = options.device,
                                   .cpu_isa = options.cpu_isa,
                                   .num_threads = options.num_threads,
                                   .cuda_kernels = options.cuda_kernels}),
                   engine);
}

}  // namespace

struct Llm::Impl {
  Impl(const LlmOptions& options, ModelDir model_dir, Tokenizer loaded_tokenizer)
      : dir(std::move(model_dir)),
        tokenizer(std::move(loaded_tokenizer)),
        engine(make_engine(options, dir)) {}

  ModelDir dir;
  Tokenizer tokenizer;
  LlmEngine engine;
};

Llm::Llm(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Llm::Llm(Llm&&) noexcept = default;
Llm& Llm::operator=(Llm&&) noexcept = default;
Llm::~Llm() = default;

Llm Llm::open(const LlmOptions& options) {
  return LlmOpener::open(options, open_model_dir(options.model),
                         Tokenizer::from_directory(options.model));
}

Llm LlmOpener::open(const LlmOptions& options, ModelDir dir, Tokenizer tokenizer) {
  return Llm(std::make_unique<Llm::Impl>(options, std::move(dir), std::move(tokenizer)));
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

std::vector<int32_t> Llm::encode(std::string_view text) const {
  return impl_->tokenizer.encode(text);
}
std::string Llm::decode(const std::vector<int32_t>& ids) const {
  std::string bytes;
  for (const int32_t id : ids) {
    CARAVAN_CHECK(id >= 0 && id < vocab_size(), "token id {} is outside the vocabulary of {}", id,
                  vocab_size());
    bytes += impl_->tokenizer.token_bytes(id);
  }
  return bytes;
}
int64_t Llm::vocab_size() const { return impl_->dir.config.vocab_size; }
int64_t Llm::max_seq_len() const { return impl_->engine.runner().max_seq_len(); }

std::vector<Completion> Llm::generate(const std::vector<std::vector<int32_t>>& prompts,
                                      const std::vector<SamplingParams>& params,
                                      const OnText& on_text) {
  CARAVAN_CHECK(params.size() == 1 || params.size() == prompts.size(),
                "{} sampling settings for {} prompts, expected one or one for each", params.size(),
                prompts.size());
  const auto params_of = [&](size_t i) -> const SamplingParams& {
    return params[params.size() == 1 ? 0 : i];
  };
  for (size_t i = 0; i < prompts.size(); ++i) {
    impl_->engine.check_request(prompts[i], params_of(i));
  }
  Streams streams(impl_->engine);
  for (size_t i = 0; i < prompts.size(); ++i) {
    const SamplingParams& p = params_of(i);
    TextStream stream{i, Detokenizer(impl_->tokenizer), StopStrings(p.stop), "", 0};
    streams.by_id.emplace(impl_->engine.add_request(prompts[i], p), std::move(stream));
  }
  const auto show = [&](TextStream& stream, const std::string& text) {
    if (text.empty()) return;
    stream.text += text;
    if (on_text) on_text(stream.index, text);
  };
  const auto on_token = [&](const Sequence& sequence, int32_t token) {
    TextStream& stream = streams.by_id.at(sequence.id);
    const std::vector<int32_t>& stops = sequence.params.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) return true;
    const std::string text = stream.detokenizer.push(token);
    const bool may_stop = ++stream.num_tokens > sequence.params.min_output_len;
    show(stream, may_stop ? stream.stops.push(text) : text);
    return stream.stops.found();
  };
  std::vector<Completion> completions(prompts.size());
  while (impl_->engine.has_unfinished()) {
    const std::vector<std::unique_ptr<Sequence>> finished = impl_->engine.step(on_token);
    CARAVAN_CHECK_CODE(impl_->engine.last_step().num_tokens > 0, kInternal,
                       "{} sequences are unfinished and none can run", streams.by_id.size());
    for (const auto& sequence : finished) {
      TextStream& stream = streams.by_id.at(sequence->id);
      show(stream, stream.stops.push(stream.detokenizer.flush()));
      show(stream, stream.stops.flush());
      const auto first_output = sequence->token_ids.begin() + sequence->num_prompt_tokens;
      completions[stream.index] = {.prompt_ids = {sequence->token_ids.begin(), first_output},
                                   .output_ids = {first_output, sequence->token_ids.end()},
                                   .text = std::move(stream.text),
                                   .finish_reason = sequence->finish_reason,
                                   .output_logprobs = std::move(sequence->scored),
                                   .prompt_logprobs = std::move(sequence->prompt_scored),
                                   .timings = timings_of(*sequence)};
      streams.by_id.erase(sequence->id);
    }
  }
  return completions;
}

Completion Llm::generate(std::string_view prompt, const SamplingParams& params,
                         const OnText& on_text) {
  return std::move(
      generate(std::vector<std::vector<int32_t>>{encode(prompt)}, {params}, on_text).front());
}

}  // namespace caravan
