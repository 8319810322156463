#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace caravan {

/// One object that a pickle described. Objects refer to each other by index into Pickle::objects;
/// they may form cycles, so nothing here walks them recursively.
struct PickleObject {
  enum class Kind : uint8_t {
    kNone,
    kBool,         // integer is 0 or 1
    kInteger,      // integer
    kOther,        // a value that nothing here needs: a float, a long integer, bytes
    kString,       // text
    kTuple,        // items
    kList,         // items
    kDict,         // items: key, value, key, value, ...
    kOrderedDict,  // the same
    kStorageType,  // dtype: torch.FloatStorage and its kin
    kFunction,     // integer is an index into the table of allowed functions
    kSet,          // items are dropped
    kStorage,      // text is its key, dtype, integer is its number of elements
    kTensor,       // items: storage, sizes, strides (tuples of as many integers from 0 on, when at
                   // most 4); text is the storage's key, integer the offset in elements. Nothing
                   // else is checked.
  };
  Kind kind = Kind::kNone;
  DType dtype = DType::kF32;
  int64_t integer = 0;
  std::string_view text{};  // points into the pickle's bytes
  std::vector<uint32_t> items{};
};

struct Pickle {
  std::vector<PickleObject> objects;
  uint32_t root = 0;
  size_t end = 0;  // offset of the byte after STOP
  const PickleObject& operator[](uint32_t index) const { return objects[index]; }
};

/// Runs the pickle that begins at `bytes[begin]` in a machine that knows tensors, storages,
/// numbers, strings and containers; docs/formats.md lists its opcodes and globals. Nothing is
/// imported or called. Memory is bounded by 2^20 opcodes, about 100 MB; time is linear in the
/// opcodes and the bytes. `bytes` must outlive the result. Errors: kUnsupported for an opcode,
/// global or call outside the list, named; kCorrupt for a pickle that breaks the format. Messages
/// start "<where>: offset N: ", N counted from bytes[0].
Pickle run_pickle(std::span<const std::byte> bytes, size_t begin, const std::string& where);

}  // namespace caravan
