#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "format/kv_scales.h"
#include "format/model_config.h"
#include "format/weight_spec.h"

namespace caravan {

/// The part of one tensor that one tensor-parallel rank holds: rows [row_begin, row_end) of it, of
/// each row the given columns, then zero_rows rows of zeros. A vector counts as one row.
struct WeightSlice {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t row_size = 0;                              // elements of a whole row
  std::vector<std::pair<int64_t, int64_t>> columns;  // [begin, end) pairs, in order
  int64_t zero_rows = 0;                             // padding of the vocabulary
  Shape shape;                                       // of the slice

  bool has_whole_rows() const {
    return columns.size() == 1 && columns[0].first == 0 && columns[0].second == row_size;
  }
};

/// Errors: kInvalidArgument naming the tensor when its size does not divide by tensor_parallel.
WeightSlice weight_slice(const WeightSpec& spec, int rank, int tensor_parallel);

/// Errors: kInvalidArgument naming the field when heads, hidden or MLP size do not divide.
void check_tensor_parallel(const ModelConfig& config, int tensor_parallel);

struct ConvertOptions {
  std::string input;           // Hugging Face directory
  std::string output;          // checkpoint directory to make
  std::optional<DType> dtype;  // of matrices; none: as the source's wte is stored
  int tensor_parallel = 1;
  std::optional<KvCalibration> kv_calibration;  // scales to store beside the weights
  bool replace = false;                         // an existing output
  bool restart = false;                         // throw away what a killed run left
};

struct ConvertResult {
  DType dtype = DType::kF32;
  int64_t num_tensors = 0;
  int64_t num_resumed = 0;  // tensors an earlier, killed run had finished
  int64_t num_bytes = 0;    // of the rank files
  bool has_own_head = false;
  std::vector<std::string> skipped;
  std::vector<std::string> copied_files;
};

/// Hugging Face directory -> checkpoint directory: config.json with a "caravan" object,
/// rank{r}.safetensors under canonical names in the source's orientation, matrices in `dtype`,
/// vectors (biases, LayerNorm) in float32, tokenizer files. Tensors stream through in pieces of a
/// few MiB. Killed at any moment it leaves "<output>.partial", which the next call with the same
/// arguments and sources continues; the result is byte-identical. On an error nothing is left.
/// Errors: those of open_model_dir, TensorSource and resolve_gpt2_weights; kInvalidArgument for a
/// value outside the dtype's range (tensor and index named) or sizes that do not divide; kIo.
ConvertResult convert_checkpoint(const ConvertOptions& options);

}  // namespace caravan
