#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <limits>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "convert/byte_size.h"
#include "convert/synth.h"
#include "core/error.h"
#include "core/log.h"
#include "core/tensor.h"

namespace caravan {

namespace {

struct Flags {
  std::string shape = "camel-nano";
  std::string output;
  std::string dtype = "float32";
  std::string max_shard_size = "10GB";
  std::string tokenizer;
  std::string activation_function = "gelu";
  uint64_t seed = 0;
  int64_t n_embd = 64, n_layer = 2, n_head = 2, n_inner = 0, n_positions = 128, vocab_size = 512;
  bool untied = false;
  bool force = false;
};

ModelConfig config_of(const Flags& flags) {
  ModelConfig config;
  if (flags.shape == "custom") {
    config.hidden_size = flags.n_embd;
    config.num_layers = flags.n_layer;
    config.num_heads = flags.n_head;
    config.ffn_size = flags.n_inner != 0
                          ? flags.n_inner
                          : checked_mul(4, flags.n_embd, "--n-embd: four times its value");
    config.max_seq_len = flags.n_positions;
    config.vocab_size = flags.vocab_size;
    config.activation_function = flags.activation_function;
    const auto activation = parse_activation(flags.activation_function);
    CARAVAN_CHECK(activation.has_value(), "--activation-function: unknown name \"{}\"",
                  printable(flags.activation_function));
    config.activation = *activation;
    const auto last_id = static_cast<int32_t>(
        std::clamp<int64_t>(flags.vocab_size - 1, 0, std::numeric_limits<int32_t>::max()));
    config.bos_token_id = std::min(last_id, 50256);
    config.eos_token_ids = {config.bos_token_id};
  } else {
    const auto known = synth_shape(flags.shape);
    CARAVAN_CHECK(known.has_value(), "--shape: unknown shape \"{}\", wanted {} or custom",
                  printable(flags.shape), fmt::join(synth_shape_names(), ", "));
    config = *known;
  }
  config.tie_word_embeddings = !flags.untied;
  return config;
}

void run_synth(const Flags& flags) {
  SynthOptions options;
  options.config = config_of(flags);
  options.seed = flags.seed;
  const auto dtype = parse_dtype(flags.dtype);
  CARAVAN_CHECK(dtype.has_value(), "--dtype: unknown dtype \"{}\"", printable(flags.dtype));
  options.dtype = *dtype;
  options.config.torch_dtype = *dtype;
  options.max_shard_bytes = parse_byte_size(flags.max_shard_size, "--max-shard-size");
  options.tokenizer_directory = flags.tokenizer;
  options.replace = flags.force;
  write_synthetic_model(options, flags.output);
  log_info("{}: {} parameters, {}, seed {}", flags.output,
           group_digits(options.config.num_parameters()), dtype_name(options.dtype), flags.seed);
}

}  // namespace

void add_synth_command(CLI::App& app) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "synth",
      "Write a model of random weights as a Hugging Face directory, for benchmarks and tests. "
      "Every "
      "value is a function of (seed, tensor name, index) alone, whatever the dtype and the shards: "
      "mean 0, standard deviation 0.02, Irwin-Hall of order 4; LayerNorm weights have mean 1.");
  command
      ->add_option("--shape", flags->shape,
                   fmt::format("{} or custom", fmt::join(synth_shape_names(), ", ")))
      ->capture_default_str();
  command->add_option("--output,-o", flags->output, "Directory to write; must not exist")
      ->required();
  command->add_option("--seed", flags->seed, "Seed of the weights")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "float32, float16 or bfloat16")
      ->capture_default_str();
  command
      ->add_option("--max-shard-size,--max_shard_size", flags->max_shard_size,
                   "Begin another file when one would grow beyond this size")
      ->capture_default_str();
  command->add_option("--tokenizer", flags->tokenizer, "Directory to copy tokenizer files from");
  command->add_flag("--untied", flags->untied,
                    "Store an own lm_head.weight and set tie_word_embeddings to false");
  command->add_flag(
      "--force", flags->force,
      "Replace the output when it is a directory that caravan wrote and nobody added to");
  const std::string custom = "With --shape custom";
  command->add_option("--n-embd,--n_embd", flags->n_embd, "Hidden size")
      ->capture_default_str()
      ->group(custom);
  command->add_option("--n-layer,--n_layer", flags->n_layer, "Layers")
      ->capture_default_str()
      ->group(custom);
  command->add_option("--n-head,--n_head", flags->n_head, "Attention heads")
      ->capture_default_str()
      ->group(custom);
  command->add_option("--n-inner,--n_inner", flags->n_inner, "MLP size; 0: four times --n-embd")
      ->capture_default_str()
      ->group(custom);
  command->add_option("--n-positions,--n_positions", flags->n_positions, "Longest sequence")
      ->capture_default_str()
      ->group(custom);
  command->add_option("--vocab-size,--vocab_size", flags->vocab_size, "Rows of wte")
      ->capture_default_str()
      ->group(custom);
  command
      ->add_option("--activation-function,--activation_function", flags->activation_function,
                   "gelu (exact), gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu, tanh")
      ->capture_default_str()
      ->group(custom);
  command->callback([flags] { run_synth(*flags); });
}

}  // namespace caravan
