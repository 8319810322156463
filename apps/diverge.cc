#include "eval/diverge.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "apps/commands.h"
#include "apps/model_flags.h"
#include "backend/create_backend.h"
#include "convert/byte_size.h"
#include "convert/memory_plan.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/log.h"
#include "core/mapped_file.h"
#include "tokenizer/tokenizer.h"

namespace caravan {

namespace {

// Text of which the first tokens are taken.
constexpr size_t kMaxTextBytes = size_t{64} << 20;

struct DivergeFlags {
  ModelFlags model;
  std::string against;
  std::string against_dtype = "auto";
  std::string against_kv_cache_dtype = "auto";
  std::string against_device = "cpu";
  std::string against_cpu_isa = "auto";
  std::string against_cuda_kernels = "auto";
  std::string input;
  std::string text;
  std::vector<int32_t> ids;
  int64_t max_num_tokens = 256;
  bool stop_at_first = false;
  bool is_json = false;

  bool is_against_dump() const { return std::filesystem::is_regular_file(against); }
  BackendOptions against_backend() const {
    return {.device = against_device,
            .cpu_isa = against_cpu_isa,
            .num_threads = model.num_threads,
            .cuda_kernels = against_cuda_kernels};
  }
};

LayerStreamOptions stream_options(const std::string& dtype, const char* dtype_name,
                                  const std::string& kv_cache_dtype, const char* kv_name,
                                  const DivergeFlags& flags) {
  return {.dtype = dtype_flag(dtype, dtype_name),
          .kv_cache_dtype = kv_dtype_flag(kv_cache_dtype, kv_name),
          .max_num_batched_tokens = 256,
          .max_num_seqs = 8,
          .verify_weights = !flags.model.skips_verification};
}

// The first tokens of the text, cut into sequences of the model's length.
DivergeInput read_input(const DivergeFlags& flags, int64_t max_seq_len) {
  const int given =
      (flags.input.empty() ? 0 : 1) + (flags.text.empty() ? 0 : 1) + (flags.ids.empty() ? 0 : 1);
  CARAVAN_CHECK(given == 1, "diverge: {} of --input, --text and --ids were given, expected one",
                given);
  DivergeInput input;
  if (!flags.ids.empty()) {
    input.ids = flags.ids;
  } else {
    const std::string text =
        flags.input.empty() ? flags.text : read_text_file(flags.input, kMaxTextBytes);
    input.ids = Tokenizer::from_directory(flags.model.model).encode(text);
  }
  CARAVAN_CHECK(!input.ids.empty(), "diverge: the input has no tokens");
  const auto wanted = static_cast<size_t>(flags.max_num_tokens);
  if (input.ids.size() > wanted) input.ids.resize(wanted);
  for (int64_t done = 0; done < input.num_tokens(); done += input.lengths.back()) {
    input.lengths.push_back(std::min(max_seq_len, input.num_tokens() - done));
  }
  return input;
}

// Refuses what does not fit before anything large is allocated.
void check_fits_in_memory(const DivergeFlags& flags, const ModelDir& dir, const LayerStream* model,
                          const LayerStream* reference, int64_t num_tokens) {
  int64_t host = diverge_bytes(dir.config, num_tokens);
  int64_t device = 0;
  for (const LayerStream* stream : {model, reference}) {
    if (stream == nullptr) continue;
    const int64_t bytes =
        LayerStream::num_bytes(stream->config(), stream->backend(), stream->weight_dtype(),
                               {.kv_cache_dtype = stream->kv_cache_dtype(),
                                .max_num_batched_tokens = 256,
                                .max_num_seqs = 8,
                                .max_seq_len = stream->max_seq_len()})
            .total();
    (stream->backend().reads_host_memory() ? host : device) += bytes;
  }
  log_info("diverge: {} tokens, {} of memory{}", num_tokens, format_bytes(host),
           device > 0 ? fmt::format(", {} on the GPU", format_bytes(device)) : "");
  std::optional<int64_t> available = available_memory_bytes();
  if (flags.model.memory != "auto") available = parse_byte_size(flags.model.memory, "--memory");
  CARAVAN_CHECK_CODE(!available || host <= *available, kOutOfMemory,
                     "diverge needs {}, {} are available: lower --max-tokens", format_bytes(host),
                     format_bytes(*available));
}

void run_diverge(const DivergeFlags& flags) {
  CARAVAN_CHECK(flags.max_num_tokens >= 1, "--max-tokens {}, expected at least 1",
                flags.max_num_tokens);
  const ModelDir dir = open_model_dir(flags.model.model);
  LayerStream model(dir, create_backend(flags.model.backend()),
                    stream_options(flags.model.dtype, "--dtype", flags.model.kv_cache_dtype,
                                   "--kv-cache-dtype", flags));
  DivergeInput input;
  std::unique_ptr<DivergeSide> reference;
  if (flags.is_against_dump()) {
    CARAVAN_CHECK(flags.input.empty() && flags.text.empty() && flags.ids.empty(),
                  "diverge: {} says which tokens it is of; leave --input, --text and --ids out",
                  flags.against);
    auto dump = std::make_unique<DumpSide>(LogitsDump::open(flags.against), dir.config,
                                           dtype_flag(flags.against_dtype, "--against-dtype"),
                                           flags.max_num_tokens);
    input = dump->input();
    check_fits_in_memory(flags, dir, &model, nullptr, input.num_tokens());
    reference = std::move(dump);
  } else {
    const ModelDir against = open_model_dir(flags.against);
    auto stream = std::make_unique<LayerStream>(
        against, create_backend(flags.against_backend()),
        stream_options(flags.against_dtype, "--against-dtype", flags.against_kv_cache_dtype,
                       "--against-kv-cache-dtype", flags));
    input = read_input(flags, std::min(model.max_seq_len(), stream->max_seq_len()));
    check_fits_in_memory(flags, dir, &model, stream.get(), input.num_tokens());
    reference = std::make_unique<ModelSide>(std::move(stream), input);
  }
  const DivergeReport report =
      find_divergence(model, *reference, input, {.stop_at_first = flags.stop_at_first});
  if (flags.is_json) {
    std::printf("%s\n", to_json_text(diverge_json(report)).c_str());
  } else {
    std::printf("%s", diverge_text(report).c_str());
  }
  if (report.first() != nullptr) throw CLI::RuntimeError(1);
}

}  // namespace

void add_diverge_command(CLI::App& app) {
  auto flags = std::make_shared<DivergeFlags>();
  CLI::App* command = app.add_subcommand(
      "diverge",
      "Find the first operator, layer and token at which a model parts from a reference (another "
      "model, device or dtype, or a dump), and the likely cause. Both run one layer at a time, so "
      "memory is bounded. Exit status 1 when they diverge beyond what rounding explains.");
  flags->model.add_to(*command);
  command
      ->add_option("--against", flags->against,
                   "The reference: a model directory of any kind, or a logits dump (safetensors)")
      ->required();
  command
      ->add_option("--against-dtype", flags->against_dtype,
                   "As --dtype, for the reference; of a dump the dtype it was computed in")
      ->capture_default_str();
  command
      ->add_option("--against-kv-cache-dtype", flags->against_kv_cache_dtype,
                   "As --kv-cache-dtype, for the reference")
      ->capture_default_str();
  command->add_option("--against-device", flags->against_device, "As --device, for the reference")
      ->capture_default_str();
  command
      ->add_option("--against-cpu-isa", flags->against_cpu_isa,
                   "As --cpu-isa, for the reference: reference is the oracle, slow and in float64")
      ->capture_default_str();
  command
      ->add_option("--against-cuda-kernels", flags->against_cuda_kernels,
                   "As --cuda-kernels, for the reference")
      ->capture_default_str();
  command->add_option("--input", flags->input, "Text file; a dump brings its own tokens");
  command->add_option("--text", flags->text, "Text instead of a file");
  command->add_option("--ids", flags->ids, "Token ids instead of text, separated by commas")
      ->delimiter(',');
  command->add_option("--max-tokens", flags->max_num_tokens, "Tokens compared, from the start")
      ->capture_default_str();
  command->add_flag("--stop-at-first", flags->stop_at_first,
                    "Load no layer after the first that diverges");
  command->add_flag("--json", flags->is_json, "Print JSON");
  command->callback([flags] { run_diverge(*flags); });
}

}  // namespace caravan
