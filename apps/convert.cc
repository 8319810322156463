#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "apps/kv_calibration_flags.h"
#include "apps/model_flags.h"
#include "convert/byte_size.h"
#include "convert/hf_converter.h"
#include "core/error.h"
#include "core/log.h"

namespace caravan {

namespace {

struct Flags {
  ConvertOptions options;
  std::string dtype = "auto";
  std::string kv_cache_dtype = "int8";
  KvCalibrationFlags calibration;
  int processes = 0;
};

void run_convert(Flags& flags) {
  flags.options.dtype = dtype_flag(flags.dtype, "--dtype");
  if (flags.processes > 0) {
    log_info("--processes has no meaning here: tensors stream through one process");
  }
  // Before the hours that a large model takes.
  if (std::filesystem::exists(flags.options.input)) warn_without_tokenizer(flags.options.input);
  if (flags.calibration.is_wanted()) {
    const std::optional<DType> kv_dtype = kv_dtype_flag(flags.kv_cache_dtype);
    CARAVAN_CHECK(kv_dtype && is_quantized_kv(*kv_dtype),
                  "--kv-cache-dtype {}: expected int8 or fp8: only they have scales",
                  printable(flags.kv_cache_dtype));
    flags.options.kv_calibration =
        flags.calibration.run(open_model_dir(flags.options.input), *kv_dtype, flags.options.dtype);
  }
  const ConvertResult result = convert_checkpoint(flags.options);
  if (result.num_resumed > 0) {
    log_info("{} of {} tensors were there from an earlier run", result.num_resumed,
             result.num_tensors);
  }
  if (!result.skipped.empty()) {
    log_info("left out: {} tensors that are not weights, the first {}", result.skipped.size(),
             printable(result.skipped.front()));
  }
  log_info("{}: {} tensors, {}, {}, {} rank{}; copied: {}", flags.options.output,
           result.num_tensors, format_bytes(result.num_bytes), dtype_name(result.dtype),
           flags.options.tensor_parallel, flags.options.tensor_parallel == 1 ? "" : "s",
           result.copied_files.empty() ? "nothing"
                                       : fmt::format("{}", fmt::join(result.copied_files, " ")));
}

}  // namespace

void add_convert_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "convert",
      "Convert a Hugging Face directory (safetensors or pytorch_model.bin, single or sharded) into "
      "a "
      "checkpoint directory, tensor by tensor in bounded memory. A killed conversion leaves "
      "OUTPUT.partial and the same command continues it; nothing appears under OUTPUT before it is "
      "whole. A value outside the range of the dtype is an error that names tensor and index.");
  command
      ->add_option("--model,-m,-i,--in-file,--in_file,--model-dir,--model_dir",
                   flags->options.input, "Hugging Face directory")
      ->required();
  command
      ->add_option("--output,-o,--out-dir,--out_dir,--output-dir,--output_dir",
                   flags->options.output, "Checkpoint directory to write; must not exist")
      ->required();
  command
      ->add_option("--dtype,-t,--storage-type,--storage_type", flags->dtype,
                   "Matrices: float16, bfloat16 or float32; auto: as stored. Biases and LayerNorm "
                   "parameters are always float32")
      ->check([](const std::string& value) {
        // "-tp 2" of hf_gpt_convert.py arrives here as -t with the value "p".
        CARAVAN_CHECK(value != "p", "-tp: write --tensor-parallel N");
        return std::string();
      })
      ->capture_default_str();
  command
      ->add_option("--tensor-parallel,--tensor_parallel,--tensor-parallelism,--tensor_parallelism",
                   flags->options.tensor_parallel,
                   "Split into this many ranks; heads, hidden and MLP size must divide")
      ->capture_default_str();
  command->add_flag("--force", flags->options.replace, "Replace the output when it exists");
  command->add_flag("--restart", flags->options.restart,
                    "Begin anew instead of continuing what a killed run left");
  flags->calibration.add_to(*command);
  command
      ->add_option("--kv-cache-dtype,--kv_cache_dtype", flags->kv_cache_dtype,
                   "The cache that the scales are for: int8 or fp8")
      ->capture_default_str()
      ->group("Scales of an int8 or fp8 KV cache");
  command->add_option("--processes,-p", flags->processes,
                      "Accepted for compatibility; has no meaning here");
  command->callback([flags] { run_convert(*flags); });
}

}  // namespace caravan
