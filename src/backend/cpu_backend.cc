#include "backend/cpu_backend.h"

#include <sched.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace caravan {

namespace {

// Tokens of one block: the 16 lanes along which attention scores are computed.
constexpr int64_t kKvBlockSize = 16;

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
  int64_t kv_block_size() const override { return kKvBlockSize; }

  Buffer allocate(size_t num_bytes) override { return Buffer::host(num_bytes); }
  bool reads_host_memory() const override { return true; }
  void copy_from_host(const void* src, void* dst, size_t num_bytes) override {
    std::memcpy(dst, src, num_bytes);
  }
  void copy_to_host(const void* src, void* dst, size_t num_bytes) override {
    std::memcpy(dst, src, num_bytes);
  }
  void synchronize() override {}

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

  void embedding(const EmbeddingParams& p) override { kernels_.embedding(p, context_); }
  void layer_norm(const LayerNormParams& p) override { kernels_.layer_norm(p, context_); }
  void linear(const LinearParams& p) override { kernels_.linear(p, context_); }
  void append_kv(const AppendKvParams& p) override { kernels_.append_kv(p, context_); }
  void attention(const AttentionParams& p) override { kernels_.attention(p, context_); }
  void gather_rows(const GatherRowsParams& p) override {
    for (int64_t i = 0; i < p.num_rows; ++i) {
      std::memcpy(p.out + i * p.hidden_size, p.x + p.rows[i] * p.hidden_size,
                  static_cast<size_t>(p.hidden_size) * sizeof(float));
    }
  }

 private:
  CpuIsa isa_;
  const CpuKernels& kernels_;
  CpuContext context_;
  Buffer scratch_;
};

}  // namespace

int num_available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

std::unique_ptr<Backend> make_cpu_backend(const CpuBackendOptions& options) {
  const CpuIsa isa = options.isa.value_or(best_cpu_isa());
  CARAVAN_CHECK_CODE(cpu_isa_available(isa), kUnsupported,
                     "this processor does not have {} (it has {})", cpu_isa_name(isa),
                     cpu_isa_name(best_cpu_isa()));
  const int num_threads = options.num_threads > 0 ? options.num_threads : num_available_cores();
  return std::make_unique<CpuBackend>(isa, num_threads);
}

}  // namespace caravan
