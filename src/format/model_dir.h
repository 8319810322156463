#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/linear_layout.h"
#include "format/model_config.h"
#include "format/tensor_source.h"
#include "format/weight_checksums.h"
#include "format/weight_spec.h"

namespace caravan {

/// "caravan.format_version" of the directories that this version writes and reads.
inline constexpr int64_t kModelDirFormatVersion = 1;

enum class ModelDirKind : uint8_t { kHuggingFace, kCheckpoint, kEngine };

/// Limits and choices that `caravan build` fixed. Lengths are tokens of one sequence.
struct BuildConfig {
  std::string target = "cpu";
  DType dtype = DType::kF16;
  DType kv_cache_dtype = DType::kF16;  // also kI8, kF8E4M3
  int64_t max_batch_size = 32;
  int64_t max_input_len = 512;
  int64_t max_output_len = 200;
};

/// How the bytes of one tensor of an engine file are to be read. In the file it is one-dimensional
/// when it is packed.
struct EngineTensor {
  DType dtype = DType::kF32;
  LinearLayout layout = LinearLayout::kOutIn;  // matrices; vectors and wpe are plain row-major
  int64_t in_features = 0;                     // matrices; 0 for others
  int64_t out_features = 0;
  uint64_t xxh3 = 0;  // XXH3-64 of the tensor's bytes
};

/// What a directory is, from its config.json: Hugging Face's own, or the same with a "caravan"
/// object that says kind ("checkpoint" or "engine"), format version, and what is below. Engine and
/// checkpoint weights are rank0.safetensors ... rank{tensor_parallel-1}.safetensors.
struct ModelDir {
  std::string path;
  ModelDirKind kind = ModelDirKind::kHuggingFace;
  ModelConfig config;
  int tensor_parallel = 1;
  bool has_own_head = false;                    // checkpoint, engine
  std::optional<BuildConfig> build;             // engine
  std::map<std::string, EngineTensor> tensors;  // engine, by canonical name
  std::optional<DType> kv_scale_dtype;          // checkpoint, engine: stored KV scales are for it
  std::vector<FileChecksums> checksums;         // by rank; empty: the directory has no table
  std::optional<ConfigChecksum> config_checksum;
  boost::json::object caravan;  // the whole "caravan" object, {} if none

  std::string rank_path(int rank) const;  // path/rank{r}.safetensors
};

/// Errors: kNotFound, kCorrupt, kUnsupported (a newer format version, another endianness), naming
/// file and field.
ModelDir open_model_dir(const std::string& path);
/// The same from the text of path/config.json; `config` is what parse_model_config makes of it.
/// An engine's tensor table must name exactly the weights of the architecture, with their sizes.
ModelDir parse_model_dir(std::string_view json, ModelConfig config, const std::string& path);

/// "caravan.build" and one value of "caravan.tensors", as open_model_dir reads them.
boost::json::object build_config_to_json(const BuildConfig& build);
boost::json::object engine_tensor_to_json(const EngineTensor& tensor);

/// The tensor `spec` of an engine, its dtype and size compared with the engine's table. `source` is
/// opened from dir.rank_path(0); spec comes from gpt2_weight_specs. Errors: kCorrupt.
const StoredTensor& find_engine_tensor(const ModelDir& dir, const TensorSource& source,
                                       const WeightSpec& spec);

}  // namespace caravan
