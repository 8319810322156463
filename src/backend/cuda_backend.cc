#include "backend/cuda_backend.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <map>
#include <vector>

#include "backend/host_to_device.h"
#include "core/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/ceilings.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/layer_norm.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sampling.h"

namespace caravan {

namespace {

constexpr int64_t kKvBlockSize = 16;
constexpr int64_t kLogitsAlignment = 8;  // elements: 32 bytes
// Up to here a kernel reads pinned memory: the copy engine starts 9 us after the kernel before it
// and lets the next one wait for another 5 (H100), once a decode step.
constexpr size_t kKernelCopyBytes = size_t{1} << 18;
constexpr size_t kStagedCopyBytes = size_t{1} << 20;  // smaller copies go in one piece

static_assert(sizeof(RowSampling) == sizeof(cuda::RowSampling) &&
              offsetof(RowSampling, seed) == offsetof(cuda::RowSampling, seed) &&
              offsetof(RowSampling, history_slot) == offsetof(cuda::RowSampling, history_slot));

cuda::KvCacheArgs cache_args(const KvLayer& c) {
  return {.k = c.k,
          .v = c.v,
          .dtype = c.dtype,
          .num_blocks = c.num_blocks,
          .block_size = c.block_size,
          .num_heads = c.num_heads,
          .head_dim = c.head_dim,
          .k_scale = c.k_scale,
          .v_scale = c.v_scale};
}

/// Recorded steps. Kernels of a step that runs for the first time may have to be loaded, which a
/// recording does not allow, so the first run of a key is not recorded.
class GraphCache {
 public:
  GraphCache() = default;
  GraphCache(const GraphCache&) = delete;
  GraphCache& operator=(const GraphCache&) = delete;
  ~GraphCache() {
    for (auto& [key, exec] : graphs_) {
      if (exec != nullptr) cudaGraphExecDestroy(exec);
    }
  }

  void run(uint64_t key, const std::function<void()>& step, cudaStream_t stream) {
    const auto [entry, is_new] = graphs_.try_emplace(key, nullptr);
    if (is_new) {
      step();
      return;
    }
    if (entry->second == nullptr) entry->second = record(step, stream);
    CARAVAN_CUDA_CHECK(cudaGraphLaunch(entry->second, stream));
  }

 private:
  static cudaGraphExec_t record(const std::function<void()>& step, cudaStream_t stream) {
    CARAVAN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      step();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    CARAVAN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t exec = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    CARAVAN_CUDA_CHECK(status);
    return exec;
  }

  std::map<uint64_t, cudaGraphExec_t> graphs_;
};

class CudaBackend : public Backend {
 public:
  CudaBackend(const CudaBackendOptions& options, const cudaDeviceProp& properties)
      : device_(options.device), name_(properties.name), host_to_device_(options.device) {
    capability_ = properties.major * 10 + properties.minor;
    make_current();
    context_.num_sms = properties.multiProcessorCount;
    context_.compute_capability = options.use_generic_kernels ? 80 : capability_;
    context_.use_pdl = context_.compute_capability == 90;
    CARAVAN_CUDA_CHECK(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
    for (cudaEvent_t& event : events_) {
      CARAVAN_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
  }
  /// Layouts and sizes alone.
  CudaBackend() : device_(0), name_("no GPU"), host_to_device_(0) {}
  CudaBackend(const CudaBackend&) = delete;
  CudaBackend& operator=(const CudaBackend&) = delete;
  ~CudaBackend() override {
    if (context_.stream == nullptr) return;
    cudaSetDevice(device_);
    cudaStreamSynchronize(context_.stream);
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaStreamDestroy(context_.stream);
  }

  std::string description() const override {
    return fmt::format("cuda ({}, sm_{}{})", name_, capability_,
                       context_.compute_capability == capability_ ? "" : ", generic kernels");
  }
  LinearLayout linear_layout(DType dtype) const override {
    return dtype == DType::kF32 ? LinearLayout::kOutIn : LinearLayout::kCore8x8;
  }
  DType activation_dtype(DType dtype) const override { return dtype; }
  bool takes_kv_dtype(DType kv, DType dtype) const override {
    return kv == dtype || is_quantized_kv(kv);
  }
  int64_t kv_block_size() const override { return kKvBlockSize; }
  int64_t query_tile() const override { return cuda::kQueryTile; }
  int64_t row_stride(int64_t num_columns) const override {
    return round_up(num_columns, kLogitsAlignment);
  }

  Buffer allocate(size_t num_bytes) override {
    make_current();
    void* data = nullptr;
    const cudaError_t status = cudaMalloc(&data, std::max<size_t>(num_bytes, 1));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      CARAVAN_FAIL(kOutOfMemory, "{} bytes of GPU memory wanted, {} are free", num_bytes,
                   available_bytes().value_or(0));
    }
    CARAVAN_CUDA_CHECK(status);
    // The map is shared: a buffer may outlive the backend.
    Buffer buffer(data, num_bytes, [allocations = allocations_](void* p, size_t) {
      allocations->erase(reinterpret_cast<uintptr_t>(p));
      cudaFree(p);
    });
    allocations_->emplace(reinterpret_cast<uintptr_t>(data), num_bytes);
    CARAVAN_CUDA_CHECK(cudaMemsetAsync(data, 0, num_bytes, context_.stream));
    synchronize();  // whatever uses it, on whatever stream, finds zeros
    return buffer;
  }
  Buffer allocate_host(size_t num_bytes) override {
    make_current();
    void* data = nullptr;
    CARAVAN_CUDA_CHECK(cudaHostAlloc(&data, std::max<size_t>(num_bytes, 1), cudaHostAllocMapped));
    std::fill_n(static_cast<std::byte*>(data), num_bytes, std::byte{0});
    return Buffer(data, num_bytes, [](void* p, size_t) { cudaFreeHost(p); });
  }
  std::optional<int64_t> available_bytes() const override {
    make_current();
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    CARAVAN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    return static_cast<int64_t>(free_bytes);
  }
  std::optional<int64_t> total_bytes() const override {
    make_current();
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    CARAVAN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    return static_cast<int64_t>(total_bytes);
  }
  bool reads_host_memory() const override { return false; }
  void copy_from_host(const void* src, void* dst, size_t num_bytes,
                      const CopyPiece& copy_piece) override {
    if (num_bytes >= kStagedCopyBytes) {
      host_to_device_.copy(src, dst, num_bytes, context().stream, copy_piece);
      return;
    }
    std::vector<std::byte> staged;  // outlives the copy: synchronize() waits for it
    if (copy_piece && num_bytes > 0) {
      staged.resize(num_bytes);
      copy_piece(0, static_cast<const std::byte*>(src), staged.data(), num_bytes);
      src = staged.data();
    }
    CARAVAN_CUDA_CHECK(
        cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyHostToDevice, context().stream));
    synchronize();
  }
  void copy_to_host(const void* src, void* dst, size_t num_bytes) override {
    CARAVAN_CUDA_CHECK(
        cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyDeviceToHost, context().stream));
    synchronize();
  }
  void copy_from_host_async(const void* src, void* dst, size_t num_bytes) override {
    if (num_bytes <= kKernelCopyBytes) {
      cuda::launch_copy(src, dst, static_cast<int64_t>(num_bytes), context());
      return;
    }
    CARAVAN_CUDA_CHECK(
        cudaMemcpyAsync(dst, src, num_bytes, cudaMemcpyHostToDevice, context().stream));
  }
  void synchronize() override { CARAVAN_CUDA_CHECK(cudaStreamSynchronize(context().stream)); }

  void pack_weight(const void* src, DType src_dtype, LinearLayout src_layout, int64_t in_features,
                   int64_t out_features, DType dtype, void* dst,
                   const CopyPiece& copy_piece) override {
    const auto count = static_cast<size_t>(checked_mul(in_features, out_features, "weight"));
    const size_t num_bytes = count * dtype_size(src_dtype);
    // One tensor after the other: the stage is as large as the largest so far.
    if (stage_.num_bytes() < num_bytes) {
      synchronize();
      stage_ = Buffer();
      stage_ = allocate(num_bytes);
    }
    copy_from_host(src, stage_.data(), num_bytes, copy_piece);
    cuda::launch_pack_weight({.in_features = in_features,
                              .out_features = out_features,
                              .is_in_out = src_layout == LinearLayout::kInOut,
                              .src = stage_.data(),
                              .src_dtype = src_dtype,
                              .dst = dst,
                              .dst_dtype = dtype},
                             context());
  }
  void fill_random(void* data, DType dtype, int64_t count, float mean, float scale,
                   uint64_t seed) override {
    cuda::launch_fill_random(data, dtype, count, mean, scale, seed, context());
  }

  size_t workspace_bytes(const WorkspaceSpec& spec) const override {
    return cuda::attention_workspace_bytes(spec.max_num_seqs, spec.num_heads, spec.head_dim,
                                           spec.max_context_len);
  }
  void reserve_workspace(const WorkspaceSpec& spec) override {
    stage_ = Buffer();  // the weights are loaded
    const size_t num_bytes = workspace_bytes(spec);
    if (num_bytes > workspace_.num_bytes()) workspace_ = allocate(num_bytes);
  }

  void embedding(const EmbeddingOp& op) override {
    // The first operator of a step: all of the batch is there before any other starts, as
    // attention's is_context_settled wants it.
    cuda::LaunchContext plain = context();
    plain.use_pdl = false;
    cuda::launch_embedding({.num_tokens = op.out.shape[0],
                            .hidden_size = op.wte.in_features,
                            .vocab_size = op.wte.out_features,
                            .token_ids = op.token_ids.as<int32_t>(),
                            .sampled = op.sampled.as<int32_t>(),
                            .positions = op.positions.as<int32_t>(),
                            .wte = op.wte.data,
                            .wpe = op.wpe.data,
                            .dtype = op.wte.dtype,
                            .out = op.out.as<float>()},
                           plain);
  }
  void layer_norm(const LayerNormOp& op) override {
    cuda::launch_layer_norm({.num_tokens = op.x.shape[0],
                             .hidden_size = op.x.shape[1],
                             .x = op.x.data,
                             .x_dtype = op.x.dtype,
                             .delta = op.delta.data,
                             .delta_bias = op.delta_bias,
                             .weight = op.weight.as<float>(),
                             .bias = op.bias.as<float>(),
                             .epsilon = op.epsilon,
                             .y = op.y.data,
                             .y_dtype = op.y.dtype},
                            context());
  }
  void linear(const LinearOp& op) override {
    cuda::launch_linear({.num_tokens = op.x.shape[0],
                         .in_features = op.weight.in_features,
                         .out_features = op.weight.out_features,
                         .dtype = op.weight.dtype,
                         .x = op.x.data,
                         .num_readable_rows = bytes_after(op.x.data) /
                                              (op.weight.in_features *
                                               static_cast<int64_t>(dtype_size(op.weight.dtype))),
                         .weight = op.weight.data,
                         .bias = op.weight.bias,
                         .activation = op.activation,
                         .y = op.y.data,
                         .y_stride = op.y.shape[1],
                         .y_dtype = op.y.dtype},
                        context());
  }
  void attention(const AttentionOp& op) override {
    const cuda::AttentionArgs args{.num_tokens = op.qkv.shape[0],
                                   .num_seqs = op.batch.context_lens.shape[0],
                                   .qkv = op.qkv.data,
                                   .dtype = op.qkv.dtype,
                                   .query_start = op.batch.query_start.as<int32_t>(),
                                   .context_lens = op.batch.context_lens.as<int32_t>(),
                                   .block_tables = op.batch.block_tables.as<int32_t>(),
                                   .max_blocks_per_seq = op.batch.block_tables.shape[1],
                                   .max_context_len = op.batch.max_context_len,
                                   .cache = cache_args(op.cache),
                                   .scale = op.scale,
                                   .out = op.out.data,
                                   .workspace = workspace_.data(),
                                   .slot_mapping = op.slot_mapping.as<int64_t>(),
                                   .is_context_settled = true};
    const bool is_fast = cuda::has_fast_attention(op.qkv.dtype, op.cache.dtype, op.cache.head_dim);
    if (is_fast && op.batch.is_decode) {  // writes K and V itself
      cuda::launch_attention_decode(args, context());
      return;
    }
    cuda::launch_append_kv({.num_tokens = op.qkv.shape[0],
                            .qkv = op.qkv.data,
                            .dtype = op.qkv.dtype,
                            .slot_mapping = op.slot_mapping.as<int64_t>(),
                            .cache = args.cache},
                           context());
    if (!is_fast) {
      cuda::launch_attention_simple(args, context());
    } else {
      cuda::launch_attention_prefill(args, op.batch.query_tiles.as<int32_t>(),
                                     op.batch.query_tiles.shape[0], context());
    }
  }
  void gather_rows(const GatherRowsOp& op) override {
    cuda::launch_gather_rows(
        {.num_rows = op.rows.shape[0],
         .row_bytes = op.x.shape[1] * static_cast<int64_t>(dtype_size(op.x.dtype)),
         .rows = op.rows.as<int32_t>(),
         .x = op.x.data,
         .out = op.out.data},
        context());
  }

  bool samples_on_device() const override { return true; }
  void sample(const SampleOp& op) override {
    cuda::launch_sample({.num_rows = op.logits.shape[0],
                         .vocab_size = op.vocab_size,
                         .logits_stride = op.logits.shape[1],
                         .logits = op.logits.as<float>(),
                         .rows = reinterpret_cast<const cuda::RowSampling*>(op.rows),
                         .is_greedy = op.is_greedy,
                         .seen = op.seen,
                         .tokens = op.tokens.as<int32_t>(),
                         .host_tokens = op.host_tokens},
                        context());
  }
  void mark_seen(uint32_t* seen, int64_t slot, int64_t vocab_size, const int32_t* ids,
                 int64_t count) override {
    cuda::launch_mark_seen(seen, slot, vocab_size, ids, count, true, context());
  }

  void run_captured(uint64_t key, const std::function<void()>& step) override {
    graphs_.run(key, step, context().stream);
  }
  int64_t mark() override {
    CARAVAN_CUDA_CHECK(
        cudaEventRecord(events_[static_cast<size_t>(next_event_) % kNumEvents], context().stream));
    return next_event_++;
  }
  void wait_for(int64_t marker) override {
    make_current();
    CARAVAN_CUDA_CHECK(cudaEventSynchronize(events_[static_cast<size_t>(marker) % kNumEvents]));
  }

  Ceilings measure_ceilings(std::optional<DType> matmul) override {
    Ceilings ceilings{.read_gb_per_s = cuda::measure_read_gb_per_s(context()),
                      .copy_gb_per_s = cuda::measure_copy_gb_per_s(context()),
                      .matmul_tflops = 0,
                      .host_to_device_gb_per_s = cuda::measure_host_to_device_gb_per_s(context()),
                      .note = ""};
    if (!matmul) return ceilings;
    const cuda::MatmulCeiling product = cuda::measure_matmul(*matmul, context());
    ceilings.matmul_tflops = product.tflops;
    ceilings.note = product.note;
    return ceilings;
  }

 private:
  static constexpr size_t kNumEvents = 8;

  /// From `data` to the end of the allocation it lies in; 0 when it lies in none.
  int64_t bytes_after(const void* data) const {
    const auto address = reinterpret_cast<uintptr_t>(data);
    auto next = allocations_->upper_bound(address);
    if (next == allocations_->begin()) return 0;
    const auto& [begin, num_bytes] = *std::prev(next);
    return address < begin + num_bytes ? static_cast<int64_t>(begin + num_bytes - address) : 0;
  }

  /// The calling thread's calls go to this device from here on. A thread begins with device 0,
  /// whatever the one that made the backend chose, and may use several backends in turn.
  void make_current() const { CARAVAN_CUDA_CHECK(cudaSetDevice(device_)); }
  const cuda::LaunchContext& context() const {
    make_current();
    return context_;
  }

  int device_;
  std::string name_;
  int capability_ = 0;
  // First address -> bytes of every buffer there is.
  std::shared_ptr<std::map<uintptr_t, size_t>> allocations_ =
      std::make_shared<std::map<uintptr_t, size_t>>();
  cuda::LaunchContext context_;
  cuda::HostToDevice host_to_device_;
  Buffer stage_;      // unpacked weights on their way
  Buffer workspace_;  // attention's
  GraphCache graphs_;
  std::array<cudaEvent_t, kNumEvents> events_{};
  int64_t next_event_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options) {
  if (options.is_plan_only) return std::make_unique<CudaBackend>();
  int num_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&num_devices);
  cudaGetLastError();
  CARAVAN_CHECK_CODE(status == cudaSuccess, kUnsupported, "device cuda: {}",
                     status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice
                         ? "no NVIDIA GPU with a driver for CUDA 13 (580 or newer) was found; use "
                           "--device cpu"
                         : cudaGetErrorString(status));
  CARAVAN_CHECK_CODE(options.device >= 0 && options.device < num_devices, kUnsupported,
                     "device cuda:{}: this machine has {} GPU{}", options.device, num_devices,
                     num_devices == 1 ? "" : "s");
  cudaDeviceProp properties{};
  CARAVAN_CUDA_CHECK(cudaGetDeviceProperties(&properties, options.device));
  CARAVAN_CHECK_CODE(properties.major >= 8, kUnsupported,
                     "device cuda:{}: {} is sm_{}{}, the kernels need sm_80 (A100) or newer",
                     options.device, properties.name, properties.major, properties.minor);
  return std::make_unique<CudaBackend>(options, properties);
}

}  // namespace caravan
