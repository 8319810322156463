#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/file_watch.h"
#include "core/op_params.h"
#include "core/progress.h"
#include "core/tensor.h"
#include "format/model_config.h"
#include "format/model_dir.h"
#include "format/tensor_source.h"
#include "format/weight_check.h"
#include "format/weight_spec.h"

namespace caravan {

struct Gpt2LayerNorm {
  ConstTensor weight;  // [hidden_size] f32
  ConstTensor bias;
};

struct Gpt2Embedding {
  LinearWeight wte;
  ConstTensor wpe;  // [max_seq_len, hidden_size]
};

struct Gpt2Layer {
  Gpt2LayerNorm ln_1;
  LinearWeight c_attn;
  LinearWeight attn_c_proj;  // its bias and mlp_c_proj's are added with the residual
  const float* attn_c_proj_bias = nullptr;
  Gpt2LayerNorm ln_2;
  LinearWeight c_fc;
  LinearWeight mlp_c_proj;
  const float* mlp_c_proj_bias = nullptr;
};

struct Gpt2Head {
  Gpt2LayerNorm ln_f;
  LinearWeight head;
};

/// Reads weights of `dtype` from an HF, checkpoint or engine directory: the dtype to compute in.
/// std::nullopt: the engine's own; else the stored one when it is 16 bits wide, else float16.
DType choose_weight_dtype(const ModelDir& dir, const TensorSource& source,
                          std::optional<DType> wanted);

/// When the stored weights are looked at: compared with the directory's table of checksums, if it
/// has one, and for values that are not finite as they are computed with.
enum class WeightCheck : uint8_t {
  kNone,
  kAtLoad,        // each tensor before load_...() returns it
  kInBackground,  // the same, but an engine's mapped tensors by wait_until_checked()
};

/// The weights of one directory, brought to a backend part by part: the only place that knows where
/// each of them goes. A part stays where it can be read: an engine's in its mapped file (nothing is
/// copied), others packed in memory of the backend that the caller's `buffers` own.
class Gpt2Weights {
 public:
  /// Opens the directory; loads nothing yet. `backend` must outlive this.
  /// Errors: kCorrupt or kUnsupported naming the tensor; kInvalidArgument for a dtype that is none.
  static Gpt2Weights open(const ModelDir& dir, Backend& backend, std::optional<DType> dtype,
                          WeightCheck check = WeightCheck::kAtLoad);
  /// Weights drawn at random on the backend, of the spread that GPT-2 is initialized with.
  static Gpt2Weights random(const ModelConfig& config, Backend& backend, DType dtype,
                            uint64_t seed);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  bool has_own_head() const { return has_own_head_; }
  /// Bytes that loading every part once reads.
  uint64_t num_stored_bytes() const;

  /// Returns when everything is known to be right that load_...() left to the background, where
  /// threads look at it from open() on: at once from the second call on. No result of the weights
  /// may leave before. Errors: kCorrupt naming file, tensor, offset, got and expected.
  void wait_until_checked() const;
  /// Throws when a file was written to since open(): what was computed from it is of unknown
  /// weights. Errors: kCorrupt naming the file.
  void check_unchanged() const;
  /// Every part was loaded: check_unchanged() looks only at files that stay mapped.
  void finish_load();

  /// Errors of all four: kOutOfMemory; kCorrupt, kUnsupported naming the tensor.
  Gpt2Embedding load_embedding(std::vector<Buffer>& buffers, Progress* progress = nullptr) const;
  Gpt2Layer load_layer(int64_t index, std::vector<Buffer>& buffers,
                       Progress* progress = nullptr) const;
  /// ln_f and the head. A tied head is `embedding`'s wte, loaded again when that is null.
  Gpt2Head load_head(const Gpt2Embedding* embedding, std::vector<Buffer>& buffers,
                     Progress* progress = nullptr) const;
  /// The kernel may drop the file's pages of all weights; they are read again when touched.
  void release_pages() const;

  /// A weight by its canonical name ("h.3.attn.c_attn.weight"), as a Hugging Face checkpoint lays
  /// it out, row-major, before any rounding to dtype() (an engine's: after). Errors:
  /// kInvalidArgument for a name that the architecture lacks, or random weights.
  std::vector<float> to_host(const std::string& name) const;
  /// Its row `row` alone: one token's or position's embedding.
  std::vector<float> row_to_host(const std::string& name, int64_t row) const;

 private:
  struct Entry {
    WeightSpec spec;
    const StoredTensor* tensor = nullptr;        // null: random
    LinearLayout layout = LinearLayout::kInOut;  // an engine's matrix, as it is packed
    uint64_t seed = 0;                           // random
  };

  Gpt2Weights(ModelConfig config, Backend& backend, DType dtype)
      : config_(std::move(config)), backend_(&backend), dtype_(dtype) {}

  void find_in_engine(const ModelDir& dir);
  void find_in_store(const ModelDir& dir);
  const Entry& entry(const std::string& name) const;

  bool stays_mapped(const Entry& entry) const;
  void start_checks();
  std::unique_ptr<TensorCheck> tensor_check(const Entry& entry) const;
  const void* load(const Entry& entry, LinearLayout& layout, std::vector<Buffer>& buffers,
                   Progress* progress) const;
  LinearWeight matrix(const std::string& name, std::vector<Buffer>& buffers,
                      Progress* progress) const;
  ConstTensor plain(const std::string& name, std::vector<Buffer>& buffers,
                    Progress* progress) const;
  Gpt2LayerNorm layer_norm(const std::string& name, std::vector<Buffer>& buffers,
                           Progress* progress) const;

  ModelConfig config_;
  Backend* backend_;
  DType dtype_;
  bool has_own_head_ = false;
  bool is_engine_ = false;
  std::optional<TensorSource> source_;
  std::map<std::string, Entry> entries_;
  WeightCheck check_ = WeightCheck::kNone;
  std::unique_ptr<WeightFileCheck> file_check_;  // of a checkpoint or engine
  std::unique_ptr<BackgroundCheck> background_;  // after what it reads: ends first
  std::vector<FileWatch> watches_;
};

}  // namespace caravan
