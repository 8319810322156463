#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/atomic_file.h"
#include "core/mapped_file.h"
#include "core/tensor.h"

namespace caravan {

/// One entry of a safetensors header; offsets are from the start of the file.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t offset = 0;
  uint64_t num_bytes = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;  // "__metadata__"
  std::vector<SafetensorsEntry> entries;        // in file order
  uint64_t data_start = 0;                      // 8 + header length
};

/// Reads and checks the header: length within the file and 100 MB, strict JSON, known dtypes, every
/// range inside the file, equal to shape x dtype, without gaps or overlaps: the format's own rules.
/// `bytes` is the whole file, `where` its name in messages. Errors: kCorrupt, kUnsupported.
SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, const std::string& where);

/// True for the U8 tensors "__pad.N" that SafetensorsWriter puts between aligned tensors.
bool is_safetensors_filler(const SafetensorsEntry& entry);

/// Writes one safetensors file, tensor by tensor, in the order given at construction.
class SafetensorsWriter {
 public:
  struct Spec {
    std::string name;
    DType dtype = DType::kF32;
    Shape shape;
  };
  /// alignment > 8: every tensor starts on a multiple of it in the file. The header is padded with
  /// spaces; between tensors lie U8 filler tensors of zeros named "__pad.N", so that the file stays
  /// valid for every safetensors reader (TensorSource hides them).
  SafetensorsWriter(const FileAt& file, const std::vector<Spec>& tensors,
                    const std::map<std::string, std::string>& metadata, uint64_t alignment = 8);

  /// The next bytes of the next tensor; may be called in pieces. Errors: kIo; kInternal when more
  /// or fewer bytes are given than the header says.
  void write(const void* data, size_t num_bytes);
  /// fsync and rename.
  void finish();

  /// XXH3-64 of the header: everything before the first tensor.
  uint64_t header_checksum() const { return header_checksum_; }

 private:
  struct Range {
    uint64_t offset, end;
  };
  void next_tensor();

  AtomicFile file_;
  uint64_t alignment_;
  uint64_t header_checksum_ = 0;
  std::vector<Range> ranges_;
  size_t current_ = 0;
};

}  // namespace caravan
