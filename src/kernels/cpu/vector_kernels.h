#pragma once

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/embedding.h"
#include "kernels/cpu/kv_append.h"
#include "kernels/cpu/layer_norm.h"
#include "kernels/cpu/linear_fma.h"

namespace caravan::cpu {

template <class V>
size_t scratch_bytes(const CpuScratchSpec& spec) {
  const int64_t linear_bytes =
      fma_scratch_bytes(spec.max_num_tokens, spec.max_in_features, spec.num_threads);
  const int64_t attention_bytes =
      spec.num_threads * attention_thread_bytes(V::kQueryRows, spec.max_context_len, spec.head_dim);
  return static_cast<size_t>(max_of(linear_bytes, attention_bytes));
}

/// All operators over the vector type V.
template <class V>
inline constexpr CpuKernels kVectorKernels = {scratch_bytes<V>, embedding<V>, layer_norm<V>,
                                              linear<V>,        append_kv<V>, attention<V>};

}  // namespace caravan::cpu
