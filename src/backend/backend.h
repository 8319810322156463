#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/op_params.h"
#include "core/tensor.h"

namespace caravan {

/// Largest sizes of one step; a backend reserves all of its working memory for them at once.
struct WorkspaceSpec {
  int64_t max_num_tokens = 0;
  int64_t max_in_features = 0;
  int64_t max_out_features = 0;
  int64_t max_context_len = 0;
  int64_t head_dim = 0;
};

/// One device. The model never asks which. Operators run in call order; their arguments were
/// checked by src/ops. Not thread safe: one engine owns one backend.
class Backend {
 public:
  virtual ~Backend() = default;

  /// "cpu (avx512, 2 threads)": for people.
  virtual std::string description() const = 0;

  /// The layout in which this backend's kernels read linear weights of `dtype`.
  virtual LinearLayout linear_layout(DType dtype) const = 0;
  /// True when the kernels read `layout` too, if not as fast.
  virtual bool reads_layout(LinearLayout layout, DType dtype) const {
    return layout == linear_layout(dtype);
  }
  /// Tokens of one block of the paged KV cache.
  virtual int64_t kv_block_size() const = 0;

  /// Zeroed device memory. Errors: kOutOfMemory.
  virtual Buffer allocate(size_t num_bytes) = 0;
  /// True when host memory, such as a mapped file, can be read by the kernels as it is.
  virtual bool reads_host_memory() const = 0;
  virtual void copy_from_host(const void* src, void* dst, size_t num_bytes) = 0;
  virtual void copy_to_host(const void* src, void* dst, size_t num_bytes) = 0;
  virtual void synchronize() = 0;

  /// Bytes that reserve_workspace(spec) will allocate.
  virtual size_t workspace_bytes(const WorkspaceSpec& spec) const = 0;
  virtual void reserve_workspace(const WorkspaceSpec& spec) = 0;

  virtual void embedding(const EmbeddingParams& p) = 0;
  virtual void layer_norm(const LayerNormParams& p) = 0;
  virtual void linear(const LinearParams& p) = 0;
  virtual void append_kv(const AppendKvParams& p) = 0;
  virtual void attention(const AttentionParams& p) = 0;
  virtual void gather_rows(const GatherRowsParams& p) = 0;
};

}  // namespace caravan
