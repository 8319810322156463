#include "format/torch_pickle.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/keyed_hash.h"

namespace caravan {

namespace {

using Kind = PickleObject::Kind;

constexpr size_t kMaxOpcodes = size_t{1} << 20;  // camel-5b in one piece needs about 12,000
constexpr size_t kMaxStack = size_t{1} << 18;
constexpr size_t kMaxGlobalName = 128;
constexpr size_t kMaxIntegerBytes = 8;
// torch numbers them. Each use of one is a look-up, whose time grows with its length.
constexpr size_t kMaxStorageKey = 64;

enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kBinint = 'J',
  kBinint1 = 'K',
  kBinint2 = 'M',
  kNone = 'N',
  kBinpersid = 'Q',
  kReduce = 'R',
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
  kShortBinunicode = 0x8c,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

struct RefusedOpcode {
  uint8_t code;
  const char* name;
};
constexpr std::array<RefusedOpcode, 34> kRefusedOpcodes = {{
    {'0', "POP"},
    {'1', "POP_MARK"},
    {'2', "DUP"},
    {'B', "BINBYTES"},
    {'C', "SHORT_BINBYTES"},
    {'F', "FLOAT"},
    {'G', "BINFLOAT"},
    {'I', "INT"},
    {'L', "LONG"},
    {'P', "PERSID"},
    {'S', "STRING"},
    {'T', "BINSTRING"},
    {'U', "SHORT_BINSTRING"},
    {'V', "UNICODE"},
    {'d', "DICT"},
    {'g', "GET"},
    {'i', "INST"},
    {'l', "LIST"},
    {'o', "OBJ"},
    {'p', "PUT"},
    {0x81, "NEWOBJ"},
    {0x82, "EXT1"},
    {0x83, "EXT2"},
    {0x84, "EXT4"},
    {0x8b, "LONG4"},
    {0x8d, "BINUNICODE8"},
    {0x8e, "BINBYTES8"},
    {0x8f, "EMPTY_SET"},
    {0x90, "ADDITEMS"},
    {0x91, "FROZENSET"},
    {0x92, "NEWOBJ_EX"},
    {0x96, "BYTEARRAY8"},
    {0x97, "NEXT_BUFFER"},
    {0x98, "READONLY_BUFFER"},
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

enum Function : int64_t { kOrderedDictType, kRebuildTensor, kRebuildParameter };
struct FunctionName {
  std::string_view module;
  std::string_view name;
};
constexpr std::array<FunctionName, 3> kFunctions = {{{"collections", "OrderedDict"},
                                                     {"torch._utils", "_rebuild_tensor_v2"},
                                                     {"torch._utils", "_rebuild_parameter"}}};

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
  void push_tuple(size_t count);
  void add_items(const std::vector<uint32_t>& items, bool is_dict);
  void memo_put(uint64_t index);
  void memo_get(uint64_t index);
  void push_global(std::string_view module, std::string_view name);
  void push_storage();
  void reduce();
  void push_tensor(const std::vector<uint32_t>& arguments);
  void build();
  std::vector<int64_t> sizes_of(uint32_t tuple) const;

  std::span<const std::byte> bytes_;
  size_t position_;
  size_t opcode_at_;
  const std::string& where_;
  Pickle pickle_;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;  // stack sizes
  KeyedMap<uint64_t, uint32_t> memo_;
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
    case kLong1: {
      const uint64_t count = take_unsigned(1);
      if (count > kMaxIntegerBytes) {
        unsupported(
            fmt::format("an integer of {} bytes, at most {} are read", count, kMaxIntegerBytes));
      }
      const unsigned unused_bits = 64 - 8 * static_cast<unsigned>(count);
      const uint64_t value = take_unsigned(count);
      return push_integer(count == 0 ? 0
                                     : static_cast<int64_t>(value << unused_bits) >> unused_bits);
    }
    case kBinunicode:
      return push({.kind = Kind::kString, .text = take_text(take_unsigned(4))});
    case kShortBinunicode:
      return push({.kind = Kind::kString, .text = take_text(take_unsigned(1))});
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
      return memo_put(memo_.size());
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

void Machine::memo_put(uint64_t index) { memo_[index] = top(); }

void Machine::memo_get(uint64_t index) {
  const auto found = memo_.find(index);
  if (found == memo_.end()) corrupt(fmt::format("memo entry {} was never stored", index));
  push_index(found->second);
}

void Machine::push_global(std::string_view module, std::string_view name) {
  if (module == "torch") {
    for (const StorageType& type : kStorageTypes) {
      if (name == type.name) return push({.kind = Kind::kStorageType, .dtype = type.dtype});
    }
  }
  for (size_t i = 0; i < kFunctions.size(); ++i) {
    if (module == kFunctions[i].module && name == kFunctions[i].name) {
      return push({.kind = Kind::kFunction, .integer = static_cast<int64_t>(i)});
    }
  }
  unsupported(fmt::format("the global {}.{} is not allowed in a checkpoint", printable(module),
                          printable(name)));
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
  if (id.items.size() == 6 && item(5).kind != Kind::kNone) {
    unsupported("a view of a storage; save the tensors with a newer torch");
  }
  if (item(2).text.size() > kMaxStorageKey) {
    unsupported(fmt::format("a storage whose key has {} bytes, at most {}", item(2).text.size(),
                            kMaxStorageKey));
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
  const std::vector<uint32_t> items = arguments.items;  // push() may move the objects
  switch (function.integer) {
    case kOrderedDictType:
      if (!items.empty()) unsupported("OrderedDict with arguments");
      return push({.kind = Kind::kOrderedDict});
    case kRebuildTensor:
      return push_tensor(items);
    default:
      if (items.size() != 3 || at(items[0]).kind != Kind::kTensor) {
        corrupt("_rebuild_parameter needs a tensor and two more arguments");
      }
      return push_index(items[0]);
  }
}

std::vector<int64_t> Machine::sizes_of(uint32_t tuple) const {
  if (at(tuple).kind != Kind::kTuple)
    corrupt("_rebuild_tensor_v2 needs tuples of sizes and strides");
  std::vector<int64_t> sizes;
  for (const uint32_t index : at(tuple).items) {
    if (at(index).kind != Kind::kInteger || at(index).integer < 0) {
      corrupt("a tensor's size or stride is not a number from 0 on");
    }
    sizes.push_back(at(index).integer);
  }
  return sizes;
}

// _rebuild_tensor_v2(storage, offset, sizes, strides, requires_grad, backward_hooks[, metadata])
void Machine::push_tensor(const std::vector<uint32_t>& arguments) {
  if (arguments.size() < 6 || arguments.size() > 7 || at(arguments[0]).kind != Kind::kStorage ||
      at(arguments[1]).kind != Kind::kInteger) {
    corrupt("_rebuild_tensor_v2 needs a storage, an offset, sizes, strides and two more arguments");
  }
  const PickleObject& storage = at(arguments[0]);
  const int64_t offset = at(arguments[1]).integer;
  const std::vector<int64_t> sizes = sizes_of(arguments[2]);
  const std::vector<int64_t> strides = sizes_of(arguments[3]);
  if (sizes.size() != strides.size()) corrupt("a tensor's sizes and strides differ in number");
  if (sizes.size() > 4) {
    unsupported(fmt::format("a tensor of {} dimensions, at most 4 are supported", sizes.size()));
  }
  int64_t count = 1;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(count, size, &count)) {
      corrupt("a tensor's number of elements does not fit in 63 bits");
    }
  }
  bool is_contiguous = true;
  int64_t expected_stride = 1;  // a product of the last sizes: no overflow unless count is 0
  for (size_t i = count == 0 ? 0 : sizes.size(); i-- > 0;) {
    is_contiguous = is_contiguous && (sizes[i] == 1 || strides[i] == expected_stride);
    expected_stride *= sizes[i];
  }
  if (!is_contiguous) {
    unsupported("a tensor that is not contiguous; save it with .contiguous()");
  }
  if (offset < 0 || offset > storage.integer || count > storage.integer - offset) {
    corrupt(fmt::format("a tensor of {} elements at offset {} exceeds its storage of {}", count,
                        offset, storage.integer));
  }
  push({.kind = Kind::kTensor,
        .dtype = storage.dtype,
        .integer = offset,
        .text = storage.text,
        .items = {arguments[0], arguments[2]}});
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
