#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "format/stored_tensor.h"

namespace caravan {

/// Tensor name -> shard file of a model.safetensors.index.json or pytorch_model.bin.index.json.
/// Shards are plain file names: no path separators, no leading dot. Errors: kCorrupt.
std::map<std::string, std::string> parse_weight_index(std::string_view json,
                                                      const std::string& where);

/// The tensors of a Hugging Face, checkpoint or engine directory, whatever files they lie in:
/// model.safetensors, model.safetensors.index.json + shards, pytorch_model.bin (zip or legacy
/// pickle), pytorch_model.bin.index.json + shards. Files are mapped, never read whole; no code in
/// them is executed. Names are as stored; what training code changed in them or in the matrices of
/// a Hugging Face directory is undone (undo_training_form).
class TensorSource {
 public:
  /// Prefers safetensors over .bin. Errors: kNotFound when no weights are there; kCorrupt with one
  /// line naming file, field, offset, got, wanted; kUnsupported for a pickle that needs anything
  /// but the known globals and opcodes.
  static TensorSource open_directory(const std::string& directory);
  /// One file of either form, by its name's ending.
  static TensorSource open_file(const std::string& path);

  TensorSource(TensorSource&&) noexcept = default;
  TensorSource& operator=(TensorSource&&) noexcept = default;

  /// Sorted by name.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  /// nullptr when absent.
  const StoredTensor* find(const std::string& name) const;

 private:
  TensorSource() = default;
  static TensorSource open_index(const std::string& directory, const std::string& index_path);

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace caravan
