#include "format/torch_pickle.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/keyed_hash.h"
#include "core/tensor.h"

namespace caravan {

namespace {

using Kind = PickleObject::Kind;

constexpr size_t kMaxOpcodes = size_t{1} << 20;  // camel-5b in one piece needs about 12,000
constexpr size_t kMaxStack = size_t{1} << 18;
constexpr size_t kMaxGlobalName = 128;
constexpr size_t kMaxIntegerBytes = 8;
constexpr size_t kMaxStorageKey = 64;  // torch writes "0", "1", ... or, in old files, an address

enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kBinbytes = 'B',
  kShortBinbytes = 'C',
  kBinfloat = 'G',
  kBinint = 'J',
  kBinint1 = 'K',
  kBinint2 = 'M',
  kNone = 'N',
  kBinpersid = 'Q',
  kReduce = 'R',
  kBinstring = 'T',
  kShortBinstring = 'U',
  kBinunicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinget = 'h',
  kLongBinget = 'j',
  kBinput = 'q',
  kLongBinput = 'r',
  kSetitem = 's',
  kTuple = 't',
  kSetitems = 'u',
  kEmptyDict = '}',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewtrue = 0x88,
  kNewfalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinunicode = 0x8c,
  kBinunicode8 = 0x8d,
  kBinbytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAdditems = 0x90,
  kFrozenset = 0x91,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kBytearray8 = 0x96,
};

struct RefusedOpcode {
  uint8_t code;
  const char* name;
};
constexpr std::array<RefusedOpcode, 22> kRefusedOpcodes = {{
    {'0', "POP"},          {'1', "POP_MARK"},
    {'2', "DUP"},          {'F', "FLOAT"},
    {'I', "INT"},          {'L', "LONG"},
    {'P', "PERSID"},       {'S', "STRING"},
    {'V', "UNICODE"},      {'d', "DICT"},
    {'g', "GET"},          {'i', "INST"},
    {'l', "LIST"},         {'o', "OBJ"},
    {'p', "PUT"},          {0x81, "NEWOBJ"},
    {0x82, "EXT1"},        {0x83, "EXT2"},
    {0x84, "EXT4"},        {0x92, "NEWOBJ_EX"},
    {0x97, "NEXT_BUFFER"}, {0x98, "READONLY_BUFFER"},
}};

struct StorageType {
  std::string_view name;
  DType dtype;
};
constexpr std::array<StorageType, 10> kStorageTypes = {{{"DoubleStorage", DType::kF64},
                                                        {"FloatStorage", DType::kF32},
                                                        {"HalfStorage", DType::kF16},
                                                        {"BFloat16Storage", DType::kBF16},
                                                        {"LongStorage", DType::kI64},
                                                        {"IntStorage", DType::kI32},
                                                        {"ShortStorage", DType::kI16},
                                                        {"CharStorage", DType::kI8},
                                                        {"ByteStorage", DType::kU8},
                                                        {"BoolStorage", DType::kBool}}};

// What REDUCE makes of the arguments of a global. kPlainValue is a value without a state of its
// own that the hyperparameters of a training checkpoint hold; it is never made.
enum Function : int64_t { kOrderedDictType, kRebuildTensor, kRebuildParameter, kPlainValue };
struct FunctionName {
  std::string_view module;
  std::string_view name;
  Function function;
};
constexpr std::array<FunctionName, 11> kFunctions = {
    {{"collections", "OrderedDict", kOrderedDictType},
     {"torch._utils", "_rebuild_tensor_v2", kRebuildTensor},
     {"torch._utils", "_rebuild_parameter", kRebuildParameter},
     {"torch", "Size", kPlainValue},
     {"torch", "device", kPlainValue},
     {"_codecs", "encode", kPlainValue},   // bytes before protocol 3
     {"__builtin__", "set", kPlainValue},  // protocol 2 names Python 2's module
     {"__builtin__", "frozenset", kPlainValue},
     {"__builtin__", "complex", kPlainValue},
     {"builtins", "set", kPlainValue},
     {"builtins", "complex", kPlainValue}}};

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, size_t begin, const std::string& where)
      : bytes_(bytes), position_(begin), opcode_at_(begin), where_(where) {}

  Pickle run() {
    for (size_t count = 0; count < kMaxOpcodes; ++count) {
      opcode_at_ = position_;
      const auto opcode = static_cast<uint8_t>(*take(1));
      if (opcode == kStop) {
        pickle_.root = pop();
        if (!stack_.empty() || !marks_.empty()) corrupt("objects are left on the stack at STOP");
        pickle_.end = position_;
        return std::move(pickle_);
      }
      step(opcode);
    }
    unsupported(fmt::format("more than {} opcodes", kMaxOpcodes));
  }

 private:
  [[noreturn]] void corrupt(std::string_view what) const {
    CARAVAN_FAIL(kCorrupt, "{}: offset {}: {}", where_, opcode_at_, what);
  }
  [[noreturn]] void unsupported(std::string_view what) const {
    CARAVAN_FAIL(kUnsupported, "{}: offset {}: {}", where_, opcode_at_, what);
  }

  const std::byte* take(size_t count) {
    if (position_ > bytes_.size() || count > bytes_.size() - position_) {
      corrupt("the pickle ends in the middle of an opcode");
    }
    const std::byte* result = bytes_.data() + position_;
    position_ += count;
    return result;
  }
  void skip(size_t count) {
    take(count);
    push({.kind = Kind::kOther});
  }
  // Little-endian, `count` bytes, count <= 8.
  uint64_t take_unsigned(size_t count) {
    const std::byte* bytes = take(count);
    uint64_t value = 0;
    for (size_t i = 0; i < count; ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
    return value;
  }
  std::string_view take_text(size_t count) {
    return {reinterpret_cast<const char*>(take(count)), count};
  }
  std::string_view take_line() {
    const std::string_view rest(reinterpret_cast<const char*>(bytes_.data()) + position_,
                                std::min(bytes_.size() - position_, kMaxGlobalName + 1));
    const size_t end = rest.find('\n');
    if (end == std::string_view::npos) corrupt("a global's name has no end");
    position_ += end + 1;
    return rest.substr(0, end);
  }

  void push_index(uint32_t index) {
    if (stack_.size() >= kMaxStack) {
      unsupported(fmt::format("more than {} objects on the stack", kMaxStack));
    }
    stack_.push_back(index);
  }
  void push(PickleObject object) {
    pickle_.objects.push_back(std::move(object));
    push_index(static_cast<uint32_t>(pickle_.objects.size() - 1));
  }
  void push_text(size_t count) { push({.kind = Kind::kString, .text = take_text(count)}); }
  void push_integer(int64_t value) { push({.kind = Kind::kInteger, .integer = value}); }
  // Objects above the last mark only: an opcode never reaches below it.
  uint32_t pop() {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() <= floor) corrupt("the stack is empty");
    const uint32_t index = stack_.back();
    stack_.pop_back();
    return index;
  }
  std::vector<uint32_t> pop_to_mark() {
    if (marks_.empty()) corrupt("no mark on the stack");
    std::vector<uint32_t> items(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }
  uint32_t top() {
    const uint32_t index = pop();
    stack_.push_back(index);
    return index;
  }
  const PickleObject& at(uint32_t index) const { return pickle_.objects[index]; }

  void step(uint8_t opcode);
  void push_long(size_t count);
  void push_tuple(size_t count);
  void add_items(const std::vector<uint32_t>& items, bool is_dict);
  void memo_put(uint64_t index);
  void memo_get(uint64_t index);
  void push_global(std::string_view module, std::string_view name);
  void push_storage();
  void reduce();
  void push_tensor(const PickleObject& arguments);
  void build();

  std::span<const std::byte> bytes_;
  size_t position_;
  size_t opcode_at_;
  const std::string& where_;
  Pickle pickle_;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;  // stack sizes
  std::vector<std::optional<uint32_t>> memo_;
  uint64_t num_memoized_ = 0;
};

void Machine::step(uint8_t opcode) {
  switch (opcode) {
    case kProto: {
      const uint64_t version = take_unsigned(1);
      if (version < 2 || version > 5) {
        unsupported(fmt::format("pickle protocol {}, expected 2 to 5", version));
      }
      return;
    }
    case kFrame:
      take(8);
      return;
    case kMark:
      if (marks_.size() >= kMaxStack) {
        unsupported(fmt::format("more than {} marks on the stack", kMaxStack));
      }
      return marks_.push_back(stack_.size());
    case kNone:
      return push({.kind = Kind::kNone});
    case kNewtrue:
    case kNewfalse:
      return push({.kind = Kind::kBool, .integer = opcode == kNewtrue});
    case kBinint:
      return push_integer(static_cast<int32_t>(take_unsigned(4)));
    case kBinint1:
      return push_integer(static_cast<int64_t>(take_unsigned(1)));
    case kBinint2:
      return push_integer(static_cast<int64_t>(take_unsigned(2)));
    case kLong1:
      return push_long(take_unsigned(1));
    case kLong4:
      return push_long(take_unsigned(4));
    case kBinfloat:
      return skip(8);
    case kShortBinbytes:
      return skip(take_unsigned(1));
    case kBinbytes:
      return skip(take_unsigned(4));
    case kBinbytes8:
    case kBytearray8:
      return skip(take_unsigned(8));
    case kShortBinstring:
    case kShortBinunicode:
      return push_text(take_unsigned(1));
    case kBinstring:
    case kBinunicode:
      return push_text(take_unsigned(4));
    case kBinunicode8:
      return push_text(take_unsigned(8));
    case kEmptySet:
      return push({.kind = Kind::kSet});
    case kAdditems: {
      pop_to_mark();
      if (at(top()).kind != Kind::kSet) corrupt("items are added to something that is not a set");
      return;
    }
    case kFrozenset:
      pop_to_mark();
      return push({.kind = Kind::kSet});
    case kEmptyTuple:
      return push({.kind = Kind::kTuple});
    case kEmptyList:
      return push({.kind = Kind::kList});
    case kEmptyDict:
      return push({.kind = Kind::kDict});
    case kTuple1:
    case kTuple2:
    case kTuple3:
      return push_tuple(opcode - kTuple1 + size_t{1});
    case kTuple:
      return push({.kind = Kind::kTuple, .items = pop_to_mark()});
    case kAppend:
      return add_items({pop()}, false);
    case kAppends:
      return add_items(pop_to_mark(), false);
    case kSetitem: {
      const uint32_t value = pop();
      const uint32_t key = pop();
      return add_items({key, value}, true);
    }
    case kSetitems:
      return add_items(pop_to_mark(), true);
    case kBinput:
      return memo_put(take_unsigned(1));
    case kLongBinput:
      return memo_put(take_unsigned(4));
    case kMemoize:
      return memo_put(num_memoized_);
    case kBinget:
      return memo_get(take_unsigned(1));
    case kLongBinget:
      return memo_get(take_unsigned(4));
    case kGlobal: {
      const std::string_view module = take_line();
      return push_global(module, take_line());
    }
    case kStackGlobal: {
      const PickleObject& name = at(pop());
      const PickleObject& module = at(pop());
      if (name.kind != Kind::kString || module.kind != Kind::kString) {
        corrupt("STACK_GLOBAL needs two strings");
      }
      return push_global(module.text, name.text);
    }
    case kBinpersid:
      return push_storage();
    case kReduce:
      return reduce();
    case kBuild:
      return build();
    default:
      break;
  }
  for (const RefusedOpcode& refused : kRefusedOpcodes) {
    if (refused.code == opcode) {
      unsupported(fmt::format("the opcode {} is not allowed in a checkpoint", refused.name));
    }
  }
  corrupt(fmt::format("unknown opcode 0x{:02x}", opcode));
}

void Machine::push_long(size_t count) {
  if (count > kMaxIntegerBytes) return skip(count);
  const uint64_t value = take_unsigned(count);
  const unsigned unused_bits = 64 - 8 * static_cast<unsigned>(count);
  push_integer(count == 0 ? 0 : static_cast<int64_t>(value << unused_bits) >> unused_bits);
}

void Machine::push_tuple(size_t count) {
  PickleObject tuple{.kind = Kind::kTuple};
  tuple.items.resize(count);
  for (size_t i = count; i-- > 0;) tuple.items[i] = pop();
  push(std::move(tuple));
}

void Machine::add_items(const std::vector<uint32_t>& items, bool is_dict) {
  PickleObject& target = pickle_.objects[top()];
  if (is_dict) {
    if (target.kind != Kind::kDict && target.kind != Kind::kOrderedDict) {
      corrupt("items are set on something that is not a dict");
    }
    if (items.size() % 2 != 0) corrupt("a key without a value");
  } else if (target.kind != Kind::kList) {
    corrupt("items are appended to something that is not a list");
  }
  target.items.insert(target.items.end(), items.begin(), items.end());
}

// Picklers number the entries as they make them, so no index reaches the number of opcodes.
void Machine::memo_put(uint64_t index) {
  if (index >= kMaxOpcodes) {
    unsupported(fmt::format("memo entry {}, expected less than {}", index, kMaxOpcodes));
  }
  if (index >= memo_.size()) memo_.resize(index + 1);
  if (!memo_[index]) ++num_memoized_;
  memo_[index] = top();
}

void Machine::memo_get(uint64_t index) {
  if (index >= memo_.size() || !memo_[index]) {
    corrupt(fmt::format("memo entry {} was never stored", index));
  }
  push_index(*memo_[index]);
}

void Machine::push_global(std::string_view module, std::string_view name) {
  if (module == "torch") {
    for (const StorageType& type : kStorageTypes) {
      if (name == type.name) return push({.kind = Kind::kStorageType, .dtype = type.dtype});
    }
  }
  for (const FunctionName& function : kFunctions) {
    if (module == function.module && name == function.name) {
      return push({.kind = Kind::kFunction, .integer = function.function});
    }
  }
  if (module == "torch" && parse_dtype(name)) return push({.kind = Kind::kOther});
  unsupported(
      fmt::format("the global {}.{} is not allowed in a checkpoint; save the state dict alone: "
                  "torch.save(model.state_dict(), ...)",
                  printable(module), printable(name)));
}

// ("storage", type, key, location, number of elements[, None])
void Machine::push_storage() {
  const PickleObject& id = at(pop());
  const auto item = [&](size_t i) -> const PickleObject& { return at(id.items[i]); };
  if (id.kind != Kind::kTuple || id.items.size() < 5 || id.items.size() > 6 ||
      item(0).kind != Kind::kString || item(0).text != "storage" ||
      item(1).kind != Kind::kStorageType || item(2).kind != Kind::kString ||
      item(3).kind != Kind::kString || item(4).kind != Kind::kInteger || item(4).integer < 0) {
    corrupt("a persistent id that is not (\"storage\", type, key, location, size)");
  }
  if (item(2).text.size() > kMaxStorageKey) {
    unsupported(fmt::format("a storage key of {} bytes, at most {} are supported",
                            item(2).text.size(), kMaxStorageKey));
  }
  if (id.items.size() == 6 && item(5).kind != Kind::kNone) {
    unsupported("a view of a storage; save the tensors with a newer torch");
  }
  push({.kind = Kind::kStorage,
        .dtype = item(1).dtype,
        .integer = item(4).integer,
        .text = item(2).text});
}

void Machine::reduce() {
  const PickleObject& arguments = at(pop());
  const PickleObject& function = at(pop());
  if (arguments.kind != Kind::kTuple) corrupt("REDUCE needs a tuple of arguments");
  if (function.kind != Kind::kFunction) {
    unsupported("REDUCE of something that is not an allowed function");
  }
  switch (function.integer) {
    case kOrderedDictType:
      if (!arguments.items.empty()) unsupported("OrderedDict with arguments");
      return push({.kind = Kind::kOrderedDict});
    case kRebuildTensor:
      return push_tensor(arguments);
    case kRebuildParameter:
      if (arguments.items.size() != 3 || at(arguments.items[0]).kind != Kind::kTensor) {
        corrupt("_rebuild_parameter needs a tensor and two more arguments");
      }
      return push_index(arguments.items[0]);
    default:
      return push({.kind = Kind::kOther});
  }
}

// _rebuild_tensor_v2(storage, offset, sizes, strides, requires_grad, backward_hooks[, metadata]).
// Whether the elements lie inside the storage matters only for a tensor that is used: where it has
// a name.
void Machine::push_tensor(const PickleObject& arguments) {
  const auto item = [&](size_t i) -> const PickleObject& { return at(arguments.items[i]); };
  if (arguments.items.size() < 6 || arguments.items.size() > 7 || item(0).kind != Kind::kStorage ||
      item(1).kind != Kind::kInteger) {
    corrupt("_rebuild_tensor_v2 needs a storage, an offset, sizes, strides and two more arguments");
  }
  for (const size_t i : {2, 3}) {
    if (item(i).kind != Kind::kTuple) {
      corrupt("_rebuild_tensor_v2 needs tuples of sizes and strides");
    }
    if (item(i).items.size() > Shape::kMaxRank) continue;
    for (const uint32_t index : item(i).items) {
      if (at(index).kind != Kind::kInteger || at(index).integer < 0) {
        corrupt("a tensor's size or stride is not a number from 0 on");
      }
    }
  }
  if (item(2).items.size() != item(3).items.size()) {
    corrupt("a tensor's sizes and strides differ in number");
  }
  PickleObject tensor{.kind = Kind::kTensor,
                      .dtype = item(0).dtype,
                      .integer = item(1).integer,
                      .text = item(0).text};
  tensor.items.assign(arguments.items.begin(), arguments.items.begin() + 4);
  tensor.items.erase(tensor.items.begin() + 1);  // the offset
  push(std::move(tensor));
}

// state_dict()._metadata, the only state that is expected, holds versions of modules: dropped.
void Machine::build() {
  const Kind state = at(pop()).kind;
  if (at(top()).kind != Kind::kOrderedDict ||
      (state != Kind::kDict && state != Kind::kOrderedDict)) {
    unsupported("BUILD of something that is not an OrderedDict");
  }
}

}  // namespace

Pickle run_pickle(std::span<const std::byte> bytes, size_t begin, const std::string& where) {
  return Machine(bytes, begin, where).run();
}

}  // namespace caravan
