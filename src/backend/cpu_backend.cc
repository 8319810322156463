#include "backend/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "core/cpu_count.h"
#include "core/error.h"
#include "core/split_mix.h"
#include "kernels/cpu/ceilings.h"

namespace caravan {

namespace {

// No cache of a server holds this much.
constexpr size_t kCeilingBytes = size_t{1} << 30;

// Tokens of one block: the 16 lanes along which attention scores are computed.
constexpr int64_t kKvBlockSize = 16;

// Uniform in [-1, 1), of seed and index.
float random_unit(uint64_t seed, uint64_t index) {
  const uint64_t key = (seed + 1) * 0x9e3779b97f4a7c15ull + (index + 1) * 0xbf58476d1ce4e5b9ull;
  return static_cast<float>(split_mix(key) >> 40) * 0x1p-23f - 1.0f;
}

class CpuBackend : public Backend {
 public:
  CpuBackend(CpuIsa isa, int num_threads) : isa_(isa), kernels_(cpu_kernels(isa)) {
    context_.num_threads = num_threads;
  }

  std::string description() const override {
    return fmt::format("cpu ({}, {} thread{})", cpu_isa_name(isa_), context_.num_threads,
                       context_.num_threads == 1 ? "" : "s");
  }
  LinearLayout linear_layout(DType dtype) const override { return cpu_linear_layout(isa_, dtype); }
  bool reads_layout(LinearLayout layout, DType dtype) const override {
    return isa_ == CpuIsa::kReference || layout == linear_layout(dtype);
  }
  DType activation_dtype(DType) const override { return DType::kF32; }
  bool takes_kv_dtype(DType kv, DType) const override {
    return kv == DType::kF32 || kv == DType::kF16 || kv == DType::kBF16 || is_quantized_kv(kv);
  }
  int64_t kv_block_size() const override { return kKvBlockSize; }
  int64_t query_tile() const override { return 0; }
  int64_t row_stride(int64_t num_columns) const override { return num_columns; }

  Buffer allocate(size_t num_bytes) override { return Buffer::host(num_bytes); }
  Buffer allocate_host(size_t num_bytes) override { return Buffer::host(num_bytes); }
  std::optional<int64_t> available_bytes() const override { return std::nullopt; }
  std::optional<int64_t> total_bytes() const override { return std::nullopt; }
  bool reads_host_memory() const override { return true; }
  void copy_from_host(const void* src, void* dst, size_t num_bytes,
                      const CopyPiece& copy_piece) override {
    if (!copy_piece) {
      std::memcpy(dst, src, num_bytes);
      return;
    }
    for (size_t at = 0; at < num_bytes; at += kCopyPiece) {
      copy_piece(at, static_cast<const std::byte*>(src) + at, static_cast<std::byte*>(dst) + at,
                 std::min(kCopyPiece, num_bytes - at));
    }
  }
  void copy_to_host(const void* src, void* dst, size_t num_bytes) override {
    std::memcpy(dst, src, num_bytes);
  }
  void copy_from_host_async(const void* src, void* dst, size_t num_bytes) override {
    std::memcpy(dst, src, num_bytes);
  }
  void synchronize() override {}

  void pack_weight(const void* src, DType src_dtype, LinearLayout src_layout, int64_t in_features,
                   int64_t out_features, DType dtype, void* dst, const CopyPiece&) override {
    Buffer converted;
    if (src_dtype != dtype || reinterpret_cast<uintptr_t>(src) % dtype_size(dtype) != 0) {
      const auto count = static_cast<size_t>(checked_mul(in_features, out_features, "weight"));
      converted = Buffer::host(count * dtype_size(dtype));
      convert_elements_in_parallel(src, src_dtype, converted.data(), dtype, count);
      src = converted.data();
    }
    pack_linear(src, src_layout, dtype, in_features, out_features, linear_layout(dtype), dst);
  }
  void fill_random(void* data, DType dtype, int64_t count, float mean, float scale,
                   uint64_t seed) override {
    constexpr int64_t kPiece = 4096;
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < count; begin += kPiece) {
      float values[kPiece];
      const int64_t size = std::min(kPiece, count - begin);
      for (int64_t i = 0; i < size; ++i) {
        values[i] = mean + scale * random_unit(seed, static_cast<uint64_t>(begin + i));
      }
      convert_elements(
          values, DType::kF32,
          static_cast<std::byte*>(data) + static_cast<size_t>(begin) * dtype_size(dtype), dtype,
          static_cast<size_t>(size));
    }
  }

  size_t workspace_bytes(const WorkspaceSpec& spec) const override {
    return kernels_.scratch_bytes({.num_threads = context_.num_threads,
                                   .max_num_tokens = spec.max_num_tokens,
                                   .max_in_features = spec.max_in_features,
                                   .max_out_features = spec.max_out_features,
                                   .max_context_len = spec.max_context_len,
                                   .head_dim = spec.head_dim});
  }
  void reserve_workspace(const WorkspaceSpec& spec) override {
    const size_t num_bytes = workspace_bytes(spec);
    if (num_bytes <= scratch_.num_bytes()) return;
    scratch_ = Buffer::host(num_bytes);
    context_.scratch = scratch_.as<std::byte>();
    context_.scratch_bytes = num_bytes;
  }

  void embedding(const EmbeddingOp& op) override {
    kernels_.embedding({.num_tokens = op.out.shape[0],
                        .token_ids = op.token_ids.as<int32_t>(),
                        .positions = op.positions.as<int32_t>(),
                        .wte = op.wte,
                        .wpe = op.wpe.data,
                        .wpe_dtype = op.wpe.dtype,
                        .num_positions = op.wpe.shape[0],
                        .out = op.out.as<float>()},
                       context_);
  }
  void layer_norm(const LayerNormOp& op) override {
    const int64_t num_tokens = op.x.shape[0];
    const int64_t hidden_size = op.x.shape[1];
    if (op.delta.data != nullptr) add_delta(op, num_tokens, hidden_size);
    kernels_.layer_norm({.num_tokens = num_tokens,
                         .hidden_size = hidden_size,
                         .x = op.x.as<float>(),
                         .weight = op.weight.as<float>(),
                         .bias = op.bias.as<float>(),
                         .epsilon = op.epsilon,
                         .y = op.y.as<float>()},
                        context_);
  }
  void linear(const LinearOp& op) override {
    kernels_.linear({.num_tokens = op.x.shape[0],
                     .x = op.x.as<float>(),
                     .weight = op.weight,
                     .activation = op.activation,
                     .residual = nullptr,
                     .y = op.y.as<float>()},
                    context_);
  }
  void attention(const AttentionOp& op) override {
    kernels_.append_kv({.num_tokens = op.qkv.shape[0],
                        .qkv = op.qkv.as<float>(),
                        .slot_mapping = op.slot_mapping.as<int64_t>(),
                        .cache = op.cache},
                       context_);
    kernels_.attention({.num_tokens = op.qkv.shape[0],
                        .num_seqs = op.batch.context_lens.shape[0],
                        .qkv = op.qkv.as<float>(),
                        .query_start = op.batch.query_start.as<int32_t>(),
                        .context_lens = op.batch.context_lens.as<int32_t>(),
                        .block_tables = op.batch.block_tables.as<int32_t>(),
                        .max_blocks_per_seq = op.batch.block_tables.shape[1],
                        .cache = op.cache,
                        .scale = op.scale,
                        .out = op.out.as<float>()},
                       context_);
  }
  void gather_rows(const GatherRowsOp& op) override {
    const auto row_bytes = static_cast<size_t>(op.x.shape[1]) * dtype_size(op.x.dtype);
    for (int64_t i = 0; i < op.rows.shape[0]; ++i) {
      std::memcpy(op.out.as<std::byte>() + static_cast<size_t>(i) * row_bytes,
                  op.x.as<std::byte>() + static_cast<size_t>(op.rows.as<int32_t>()[i]) * row_bytes,
                  row_bytes);
    }
  }

  bool samples_on_device() const override { return false; }
  void sample(const SampleOp&) override {
    CARAVAN_FAIL(kUnsupported, "the CPU backend leaves sampling to the host");
  }
  void mark_seen(uint32_t*, int64_t, int64_t, const int32_t*, int64_t) override {
    CARAVAN_FAIL(kUnsupported, "the CPU backend leaves sampling to the host");
  }

  void run_captured(uint64_t, const std::function<void()>& step) override { step(); }
  int64_t mark() override { return 0; }
  void wait_for(int64_t) override {}

  Ceilings measure_ceilings(std::optional<DType> matmul) override {
    const int threads = context_.num_threads;
    Ceilings ceilings{.read_gb_per_s = measure_read_gb_per_s(threads, kCeilingBytes),
                      .copy_gb_per_s = measure_copy_gb_per_s(threads, kCeilingBytes),
                      .matmul_tflops = 0,
                      .host_to_device_gb_per_s = 0,
                      .note = ""};
    if (!matmul) return ceilings;
    if (isa_ == CpuIsa::kAmx && *matmul == DType::kBF16) {
      ceilings.matmul_tflops = measure_amx_bf16_gflops(threads) * 1e-3;
      ceilings.note = "AMX bfloat16 in registers";
    } else {
      ceilings.note = "float32 FMA in registers";
      const CpuIsa wide = cpu_isa_available(CpuIsa::kAvx512) ? CpuIsa::kAvx512 : CpuIsa::kAvx2;
      ceilings.matmul_tflops =
          measure_fma_gflops(isa_ == CpuIsa::kAvx2 ? CpuIsa::kAvx2 : wide, threads) * 1e-3;
    }
    return ceilings;
  }

 private:
  // x += delta + bias, each sum rounded once.
  void add_delta(const LayerNormOp& op, int64_t num_tokens, int64_t hidden_size) const {
    auto* x = op.x.as<float>();
    const auto* delta = op.delta.as<float>();
    const float* bias = op.delta_bias;
#pragma omp parallel for schedule(static) num_threads(context_.num_threads) if (num_tokens > 8)
    for (int64_t t = 0; t < num_tokens; ++t) {
      float* row = x + t * hidden_size;
      const float* from = delta + t * hidden_size;
      for (int64_t i = 0; i < hidden_size; ++i) {
        const float d = bias != nullptr ? from[i] + bias[i] : from[i];
        row[i] = d + row[i];
      }
    }
  }

  CpuIsa isa_;
  const CpuKernels& kernels_;
  CpuContext context_;
  Buffer scratch_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  const CpuIsa isa = options.isa.value_or(best_cpu_isa());
  CARAVAN_CHECK_CODE(cpu_isa_available(isa), kUnsupported,
                     "this processor does not have {} (it has {})", cpu_isa_name(isa),
                     cpu_isa_name(best_cpu_isa()));
  const int num_threads = options.num_threads > 0 ? options.num_threads : num_usable_cpus();
  // OpenMP ends the program, in its own words and at the first request, when it cannot make them.
  const int num_started = 1 + num_startable_threads(num_threads - 1);
  CARAVAN_CHECK_CODE(num_started == num_threads, kOutOfMemory,
                     "{} threads wanted, {} can be made: raise the limit of processes (ulimit -u, "
                     "a container's pids limit), or ask for fewer threads",
                     num_threads, num_started);
  return std::make_unique<CpuBackend>(isa, num_threads);
}

}  // namespace caravan
