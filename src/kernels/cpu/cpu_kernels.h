#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/op_params.h"

namespace caravan {

/// The instruction sets that have kernels, slowest first. kReference is the oracle: slow, obvious,
/// double accumulation, any layout.
enum class CpuIsa : uint8_t { kReference, kAvx2, kAvx512, kAmx };

const char* cpu_isa_name(CpuIsa isa);  // "reference", "avx2", "avx512", "amx"
std::optional<CpuIsa> parse_cpu_isa(std::string_view name);

/// What this processor and kernel can run; asks Linux for permission to use AMX tiles.
bool cpu_isa_available(CpuIsa isa);
/// The fastest available one. kReference on a processor without AVX2, FMA and F16C.
CpuIsa best_cpu_isa();

/// What a kernel runs on: the OpenMP thread count and scratch memory of scratch_bytes().
struct CpuContext {
  int num_threads = 1;
  std::byte* scratch = nullptr;
  size_t scratch_bytes = 0;
};

/// Largest sizes that the kernels will be called with.
struct CpuScratchSpec {
  int num_threads = 1;
  int64_t max_num_tokens = 0;   // T of one step
  int64_t max_in_features = 0;  // of any linear layer
  int64_t max_out_features = 0;
  int64_t max_context_len = 0;  // tokens of one sequence
  int64_t head_dim = 0;
};

/// One function for each operator. Arguments were validated by src/ops. For kAvx2, kAvx512 and kAmx
/// a row's result does not depend on num_tokens, on the other rows or on num_threads.
struct CpuKernels {
  size_t (*scratch_bytes)(const CpuScratchSpec& spec);
  void (*embedding)(const EmbeddingParams& p, const CpuContext& context);
  void (*layer_norm)(const LayerNormParams& p, const CpuContext& context);
  void (*linear)(const LinearParams& p, const CpuContext& context);
  void (*append_kv)(const AppendKvParams& p, const CpuContext& context);
  void (*attention)(const AttentionParams& p, const CpuContext& context);
};

/// Requires: cpu_isa_available(isa).
const CpuKernels& cpu_kernels(CpuIsa isa);

/// The layout in which `isa` reads weights of `dtype`; kReference reads every layout and prefers
/// the source's own.
LinearLayout cpu_linear_layout(CpuIsa isa, DType dtype);

}  // namespace caravan
