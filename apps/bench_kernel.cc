#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>

#include "apps/bench_flags.h"
#include "core/error.h"
#include "models/device_batch.h"
#include "ops/ops.h"

namespace caravan {

namespace {

struct KernelFlags {
  BenchFlags bench;
  std::string op;
  std::vector<int64_t> num_tokens{1, 8, 64, 512};
  std::vector<int64_t> contexts{512};
  std::vector<int64_t> batch_sizes{1, 8, 32};
};

constexpr const char* kOps[] = {"linear", "layer_norm", "attention", "embedding", "sample"};
constexpr int64_t kMaxTokens = 65536;
constexpr int64_t kMaxBatch = 4096;
// Operands rotate over so much memory that no cache still holds them: the L2 of an H100 has 50 MB,
// the L3 of a server processor up to 400 MB.
constexpr double kDeviceColdBytes = 256e6;
constexpr double kHostColdBytes = 768e6;
constexpr double kMaxCopies = 64;
// One recording of a device: so long that its start weighs nothing, and at least 24 operators.
constexpr double kUnitSeconds = 1e-3;
constexpr int kMinUnitOps = 24;
constexpr int kMaxUnitOps = 400;
constexpr double kMeasurementSeconds = 4e-3;
constexpr int kMeasurements = 11;

/// Times single operators of a model's shape, as the model calls them.
class KernelBench {
 public:
  KernelBench(Backend& backend, const ModelConfig& config, BenchReport& report, DType dtype,
              DType kv_dtype)
      : backend_(backend),
        config_(config),
        report_(report),
        dtype_(dtype),
        activation_(backend.activation_dtype(dtype)),
        kv_dtype_(kv_dtype),
        is_device_(!backend.reads_host_memory()) {}

  void linear(const std::vector<int64_t>& num_tokens) {
    struct Layer {
      const char* name;
      int64_t in, out;
      Activation activation;
    };
    const int64_t hidden = config_.hidden_size;
    const Layer layers[] = {{"c_attn", hidden, 3 * hidden, Activation::kNone},
                            {"attn.c_proj", hidden, hidden, Activation::kNone},
                            {"c_fc", hidden, config_.ffn_size, config_.activation},
                            {"mlp.c_proj", config_.ffn_size, hidden, Activation::kNone},
                            {"head", hidden, config_.vocab_size, Activation::kNone}};
    for (const Layer& layer : layers) {
      const bool is_head = std::strcmp(layer.name, "head") == 0;
      LinearWeight weight{.data = nullptr,
                          .dtype = dtype_,
                          .layout = backend_.linear_layout(dtype_),
                          .in_features = layer.in,
                          .out_features = layer.out,
                          .bias = nullptr};
      const Buffer bias = random(layer.out, DType::kF32, 0.02f);
      if (!is_head) weight.bias = bias.as<const float>();
      const int64_t count = linear_num_elements(weight.layout, layer.in, layer.out);
      const std::vector<Buffer> weights =
          random_copies(count, dtype_, 0.035f, static_cast<double>(count) * size_of(dtype_));
      for (const int64_t tokens : num_tokens) {
        const DType out_dtype = is_head ? DType::kF32 : activation_;
        const int64_t columns = is_head ? backend_.row_stride(layer.out) : layer.out;
        const Work work = linear_work(tokens, weight, activation_, out_dtype);
        const Buffer x = random(tokens * layer.in, activation_, 1.0f);
        const Buffer y = backend_.allocate(bytes(tokens * columns, out_dtype));
        measure(
            {.test = "linear",
             .label = fmt::format("linear {} {}->{} T={}", layer.name, layer.in, layer.out, tokens),
             .fields = {{"layer", layer.name},
                        {"in_features", layer.in},
                        {"out_features", layer.out},
                        {"tokens", tokens}},
             .seconds = {},
             .num_tokens = 0,
             .work = work,
             .bound = Bound::kRoofline,
             .floor_seconds = std::nullopt},
            weights.size(), [&](size_t copy) {
              LinearWeight w = weight;
              w.data = weights[copy].data();
              ops::linear(backend_, {.x = {x.data(), activation_, Shape{tokens, layer.in}},
                                     .weight = w,
                                     .activation = layer.activation,
                                     .y = {y.data(), out_dtype, Shape{tokens, columns}}});
            });
      }
    }
  }

  /// With the residual's addition, as in every layer.
  void layer_norm(const std::vector<int64_t>& num_tokens) {
    const int64_t hidden = config_.hidden_size;
    const Buffer weight = random(hidden, DType::kF32, 0.02f, 1.0f);
    const Buffer bias = random(hidden, DType::kF32, 0.02f);
    for (const int64_t tokens : num_tokens) {
      const Work work = layer_norm_work(tokens, hidden, activation_);
      const int64_t count = tokens * hidden;
      const std::vector<Buffer> x = random_copies(count, DType::kF32, 1.0f, work.bytes);
      const std::vector<Buffer> delta = random_copies(count, activation_, 1.0f, work.bytes);
      const std::vector<Buffer> y = random_copies(count, activation_, 1.0f, work.bytes);
      const Shape shape{tokens, hidden};
      measure({.test = "layer_norm",
               .label = fmt::format("add + layer_norm {} T={}", hidden, tokens),
               .fields = {{"hidden_size", hidden}, {"tokens", tokens}},
               .seconds = {},
               .num_tokens = 0,
               .work = work,
               .bound = Bound::kCopy,
               .floor_seconds = std::nullopt},
              x.size(), [&](size_t copy) {
                ops::layer_norm(backend_, {.x = {x[copy].data(), DType::kF32, shape},
                                           .delta = {delta[copy].data(), activation_, shape},
                                           .delta_bias = bias.as<const float>(),
                                           .weight = {weight.data(), DType::kF32, Shape{hidden}},
                                           .bias = {bias.data(), DType::kF32, Shape{hidden}},
                                           .epsilon = config_.layer_norm_epsilon,
                                           .y = {y[copy].data(), activation_, shape}});
              });
    }
  }

  void attention_decode(int64_t batch_size, int64_t context) {
    Batch batch(backend_.kv_block_size());
    const int32_t id = 0;
    const int64_t blocks = ceil_div(context, backend_.kv_block_size());
    for (int64_t s = 0; s < batch_size; ++s) {
      batch.add_sequence(&id, 1, context - 1, block_table(s * blocks, blocks), LogitsWanted::kLast);
    }
    attention(batch, batch_size * blocks,
              {.test = "attention_decode",
               .label = fmt::format("attention decode {} x d{}", batch_size, context),
               .fields = {{"batch_size", batch_size}, {"tokens", context}},
               .seconds = {},
               .num_tokens = 0,
               .work = attention_decode_work(batch_size, context, config_.hidden_size, activation_,
                                             kv_dtype_),
               .bound = Bound::kRoofline,
               .floor_seconds = std::nullopt});
  }

  /// One prompt, or several of the model's longest length.
  void attention_prefill(int64_t num_tokens) {
    Batch batch(backend_.kv_block_size());
    Work work;
    const std::vector<int32_t> ids(static_cast<size_t>(num_tokens), 0);
    int64_t blocks = 0;
    for (int64_t left = num_tokens; left > 0;) {
      const int64_t length = std::min(left, config_.max_seq_len);
      const int64_t own_blocks = ceil_div(length, backend_.kv_block_size());
      batch.add_sequence(ids.data(), length, 0, block_table(blocks, own_blocks),
                         LogitsWanted::kLast);
      work += attention_prefill_work(1, length, config_.hidden_size, activation_, kv_dtype_);
      blocks += own_blocks;
      left -= length;
    }
    const std::string length =
        batch.num_seqs() == 1
            ? fmt::format("{}", num_tokens)
            : fmt::format("{} as {} x {}", num_tokens, batch.num_seqs(), config_.max_seq_len);
    attention(batch, blocks,
              {.test = "attention_prefill",
               .label = fmt::format("attention prefill {}", length),
               .fields = {{"batch_size", batch.num_seqs()}, {"tokens", num_tokens}},
               .seconds = {},
               .num_tokens = 0,
               .work = work,
               .bound = Bound::kRoofline,
               .floor_seconds = std::nullopt});
  }

  void embedding(const std::vector<int64_t>& num_tokens) {
    const int64_t hidden = config_.hidden_size;
    const LinearLayout layout = backend_.linear_layout(dtype_);
    const Buffer wte =
        random(linear_num_elements(layout, hidden, config_.vocab_size), dtype_, 0.035f);
    const Buffer wpe = random(config_.max_seq_len * hidden, dtype_, 0.035f);
    for (const int64_t tokens : num_tokens) {
      const Work work = embedding_work(tokens, hidden, dtype_);
      const size_t copies = num_copies(work.bytes);
      const std::vector<int32_t> ids =
          random_token_ids(tokens * static_cast<int64_t>(copies), config_.vocab_size);
      std::vector<int32_t> positions(static_cast<size_t>(tokens));
      for (size_t i = 0; i < positions.size(); ++i) {
        positions[i] = static_cast<int32_t>(static_cast<int64_t>(i) % config_.max_seq_len);
      }
      const Buffer device_ids = upload(ids.data(), ids.size() * sizeof(int32_t));
      const Buffer device_positions = upload(positions.data(), positions.size() * sizeof(int32_t));
      const std::vector<Buffer> out = random_copies(tokens * hidden, DType::kF32, 1.0f, work.bytes);
      measure({.test = "embedding",
               .label = fmt::format("embedding {} T={}", hidden, tokens),
               .fields = {{"hidden_size", hidden}, {"tokens", tokens}},
               .seconds = {},
               .num_tokens = 0,
               .work = work,
               .bound = Bound::kCopy,
               .floor_seconds = std::nullopt},
              copies, [&](size_t copy) {
                const int32_t* at =
                    device_ids.as<const int32_t>() + static_cast<int64_t>(copy) * tokens;
                ops::embedding(backend_,
                               {.token_ids = {at, DType::kI32, Shape{tokens}},
                                .positions = {device_positions.data(), DType::kI32, Shape{tokens}},
                                .sampled = {},
                                .wte = {.data = wte.data(),
                                        .dtype = dtype_,
                                        .layout = layout,
                                        .in_features = hidden,
                                        .out_features = config_.vocab_size,
                                        .bias = nullptr},
                                .wpe = {wpe.data(), dtype_, Shape{config_.max_seq_len, hidden}},
                                .out = {out[copy].data(), DType::kF32, Shape{tokens, hidden}}});
              });
    }
  }

  void sample(const std::vector<int64_t>& batch_sizes) {
    struct Variant {
      const char* name;
      RowSampling row;
    };
    const Variant variants[] = {{"greedy", {}},
                                {"top-k 40", {.temperature = 0.8f, .top_k = 40}},
                                {"top-p 0.95", {.temperature = 0.8f, .top_p = 0.95f}}};
    const int64_t stride = backend_.row_stride(config_.vocab_size);
    for (const int64_t num_rows : batch_sizes) {
      const Work work{
          .flops = static_cast<double>(num_rows * config_.vocab_size),
          .bytes = static_cast<double>(bytes(num_rows * config_.vocab_size, DType::kF32))};
      const std::vector<Buffer> logits =
          random_copies(num_rows * stride, DType::kF32, 5.0f, work.bytes);
      const Buffer tokens = backend_.allocate(bytes(num_rows, DType::kI32));
      const Buffer host_tokens = backend_.allocate_host(bytes(num_rows, DType::kI32));
      for (const Variant& variant : variants) {
        std::vector<RowSampling> rows(static_cast<size_t>(num_rows), variant.row);
        for (size_t i = 0; i < rows.size(); ++i) rows[i].seed = i;
        const Buffer device_rows = upload(rows.data(), rows.size() * sizeof(RowSampling));
        measure(
            {.test = "sample",
             .label = fmt::format("sample {} {} x {}", variant.name, num_rows, config_.vocab_size),
             .fields = {{"variant", variant.name}, {"batch_size", num_rows}},
             .seconds = {},
             .num_tokens = 0,
             .work = work,
             .bound = Bound::kRead,
             .floor_seconds = std::nullopt},
            logits.size(), [&](size_t copy) {
              ops::sample(backend_,
                          {.logits = {logits[copy].data(), DType::kF32, Shape{num_rows, stride}},
                           .vocab_size = config_.vocab_size,
                           .rows = device_rows.as<const RowSampling>(),
                           .is_greedy = variant.row.temperature == 0.0f,
                           .seen = nullptr,
                           .tokens = {tokens.data(), DType::kI32, Shape{num_rows}},
                           .host_tokens = host_tokens.as<int32_t>()});
            });
      }
    }
  }

 private:
  static double size_of(DType dtype) { return static_cast<double>(dtype_size(dtype)); }
  static size_t bytes(int64_t count, DType dtype) {
    return static_cast<size_t>(count) * dtype_size(dtype);
  }

  static std::vector<int32_t> block_table(int64_t first, int64_t count) {
    std::vector<int32_t> table(static_cast<size_t>(count));
    for (size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<int32_t>(first) + static_cast<int32_t>(i);
    return table;
  }

  size_t num_copies(double op_bytes) const {
    const double cold = is_device_ ? kDeviceColdBytes : kHostColdBytes;
    return static_cast<size_t>(std::clamp(std::ceil(cold / op_bytes), 2.0, kMaxCopies));
  }
  Buffer random(int64_t count, DType dtype, float scale, float mean = 0.0f) {
    Buffer buffer = backend_.allocate(bytes(count, dtype));
    backend_.fill_random(buffer.data(), dtype, count, mean, scale, next_seed_++);
    return buffer;
  }
  /// As many as operators of `op_bytes` need for cold caches.
  std::vector<Buffer> random_copies(int64_t count, DType dtype, float scale, double op_bytes) {
    std::vector<Buffer> buffers;
    while (buffers.size() < num_copies(op_bytes)) buffers.push_back(random(count, dtype, scale));
    return buffers;
  }
  Buffer upload(const void* data, size_t num_bytes) {
    Buffer buffer = backend_.allocate(num_bytes);
    backend_.copy_from_host(data, buffer.data(), num_bytes);
    return buffer;
  }

  void attention(const Batch& batch, int64_t num_blocks, const BenchRow& row) {
    // Layers of one cache are the copies.
    ModelConfig layers = config_;
    layers.num_layers = static_cast<int64_t>(num_copies(row.work.bytes));
    const KvCache cache(backend_, layers, kv_dtype_, num_blocks,
                        random_model_kv_scales(layers, kv_dtype_));
    const int64_t count = num_blocks * backend_.kv_block_size() * config_.hidden_size;
    // Values up to 1, in elements.
    const float one = is_quantized_kv(kv_dtype_) ? kv_element_max(kv_dtype_) / kRandomKvMax : 1.0f;
    for (int64_t i = 0; i < layers.num_layers; ++i) {
      backend_.fill_random(cache.layer(i).k, kv_dtype_, count, 0.0f, one, next_seed_++);
      backend_.fill_random(cache.layer(i).v, kv_dtype_, count, 0.0f, one, next_seed_++);
    }
    BatchTensors tensors;
    std::optional<DeviceBatch> device_batch;
    if (is_device_) {
      device_batch.emplace(
          backend_, DeviceBatchLimits{.max_num_tokens = batch.num_tokens(),
                                      .max_num_seqs = batch.num_seqs(),
                                      .max_num_logits = batch.num_logits(),
                                      .max_blocks_per_seq = ceil_div(batch.max_context_len(),
                                                                     backend_.kv_block_size())});
      tensors = device_batch->prepare(batch, 0, batch.max_context_len(), nullptr, 0, 0);
      device_batch->copy(0);
    } else {
      tensors = batch.tensors();
    }
    const int64_t tokens = batch.num_tokens();
    const int64_t hidden = config_.hidden_size;
    const Buffer qkv = random(tokens * 3 * hidden, activation_, 1.0f);
    const Buffer out = backend_.allocate(bytes(tokens * hidden, activation_));
    measure(row, static_cast<size_t>(layers.num_layers), [&](size_t copy) {
      ops::attention(backend_, {.qkv = {qkv.data(), activation_, Shape{tokens, 3 * hidden}},
                                .slot_mapping = tensors.slot_mapping,
                                .batch = tensors.attention,
                                .cache = cache.layer(static_cast<int64_t>(copy)),
                                .scale = config_.attention_scale(0),
                                .out = {out.data(), activation_, Shape{tokens, hidden}}});
    });
  }

  /// Times `op`, called with 0, 1, ... copies - 1 in turn. A device plays recordings of many
  /// operators, several recordings a measurement.
  void measure(BenchRow row, size_t copies, const std::function<void(size_t copy)>& op) {
    int ops = 1;
    if (is_device_) {
      const double floor = std::max(
          3e-6, floor_seconds(row.work, row.bound, report_.subject().ceilings).value_or(0));
      ops = static_cast<int>(
          std::clamp(kUnitSeconds / floor, double{kMinUnitOps}, double{kMaxUnitOps}));
      ops = std::max(ops, static_cast<int>(copies));
    }
    size_t next = 0;
    const uint64_t key = next_key_++;
    const auto run_unit = [&] {
      backend_.run_captured(key, [&] {
        for (int i = 0; i < ops; ++i) op(next++ % copies);
      });
    };
    const auto seconds_of = [&](int units) {
      const auto start = BenchClock::now();
      for (int i = 0; i < units; ++i) run_unit();
      backend_.synchronize();
      return seconds_since(start);
    };
    seconds_of(3);  // the second run is recorded
    const double unit_seconds = seconds_of(1);
    const int units =
        static_cast<int>(std::clamp(std::ceil(kMeasurementSeconds / unit_seconds), 1.0, 1e4));
    for (int i = 0; i < kMeasurements; ++i)
      row.seconds.push_back(seconds_of(units) / (units * ops));
    row.fields["num_copies"] = copies;
    row.fields["num_ops"] = units * ops;
    report_.add(row);
  }

  Backend& backend_;
  const ModelConfig& config_;
  BenchReport& report_;
  DType dtype_;
  DType activation_;
  DType kv_dtype_;
  bool is_device_;
  uint64_t next_seed_ = 1;
  uint64_t next_key_ = 1;
};

void run_kernel(KernelFlags flags) {
  if (flags.bench.model.model.empty() && flags.bench.random_weights.empty()) {
    flags.bench.random_weights = "camel-5b";
  }
  const ModelDir dir = flags.bench.open();
  const ModelConfig& config = dir.config;
  const bool is_all = flags.op == "all";
  CARAVAN_CHECK(is_all || std::find(std::begin(kOps), std::end(kOps), flags.op) != std::end(kOps),
                "{}: expected linear, layer_norm, attention, embedding, sample or all",
                printable(flags.op));
  const std::unique_ptr<Backend> backend = create_backend(flags.bench.model.backend());
  CARAVAN_CHECK_CODE(flags.op != "sample" || backend->samples_on_device(), kUnsupported,
                     "sample: {} leaves the choice of tokens to the host", backend->description());
  const int64_t max_tokens = check_sizes("--num-tokens", flags.num_tokens, kMaxTokens);
  const int64_t max_context = check_sizes("--contexts", flags.contexts, config.max_seq_len);
  const int64_t max_batch = check_sizes("--batch-sizes", flags.batch_sizes, kMaxBatch);
  const DType dtype = flags.bench.weight_dtype(dir);
  const DType kv_dtype = kv_dtype_flag(flags.bench.model.kv_cache_dtype).value_or(dtype);
  CARAVAN_CHECK_CODE(backend->takes_kv_dtype(kv_dtype, dtype), kUnsupported,
                     "a {} KV cache with {} weights: {} does not have it", dtype_name(kv_dtype),
                     dtype_name(dtype), backend->description());
  BenchReport report({.model = flags.bench.model_name(),
                      .weight_bytes = 0,
                      .backend = backend->description(),
                      .dtype = dtype_name(dtype),
                      .kv_cache_dtype = dtype_name(kv_dtype),
                      .ceilings = backend->measure_ceilings(dtype)},
                     flags.bench.is_json);
  backend->reserve_workspace(Gpt2Model::workspace_spec(
      config,
      {.max_num_tokens = std::max(max_tokens, max_batch),
       .max_num_seqs = std::max(max_batch, ceil_div(max_tokens, config.max_seq_len)),
       .max_num_logits = max_batch,
       .max_context_len = std::max(max_context, std::min(max_tokens, config.max_seq_len))}));
  KernelBench bench(*backend, config, report, dtype, kv_dtype);
  const auto wants = [&](const char* op) { return is_all || flags.op == op; };
  if (wants("linear")) bench.linear(flags.num_tokens);
  if (wants("layer_norm")) bench.layer_norm(flags.num_tokens);
  if (wants("attention")) {
    for (const int64_t batch_size : flags.batch_sizes) {
      for (const int64_t context : flags.contexts) bench.attention_decode(batch_size, context);
    }
    for (const int64_t num_tokens : flags.num_tokens) {
      if (num_tokens > 1) bench.attention_prefill(num_tokens);
    }
  }
  if (wants("embedding")) bench.embedding(flags.num_tokens);
  if (wants("sample") && backend->samples_on_device()) bench.sample(flags.batch_sizes);
}

}  // namespace

void add_bench_kernel_command(CLI::App& bench) {
  auto flags = std::make_shared<KernelFlags>();
  CLI::App* kernel = bench.add_subcommand(
      "kernel",
      "Single operators of a model's shape with cold caches: the median time of one, its GB/s or "
      "TFLOP/s, and the share of the ceiling that bounds it (the roofline for linear and "
      "attention, "
      "copy for layer_norm and embedding, read for sample)");
  kernel
      ->add_option(
          "op", flags->op,
          "linear, layer_norm, attention, embedding, sample (on devices that do it) or all")
      ->required();
  flags->bench.add_to(*kernel);
  add_sizes(*kernel, "--num-tokens", flags->num_tokens,
            "Rows of linear, layer_norm and embedding; prompt lengths of attention");
  add_sizes(*kernel, "--contexts,--context", flags->contexts,
            "Context lengths of decoding attention");
  add_sizes(*kernel, "--batch-sizes", flags->batch_sizes,
            "Sequences of decoding attention, rows of sample");
  kernel->callback([flags] { run_kernel(*flags); });
}

}  // namespace caravan
