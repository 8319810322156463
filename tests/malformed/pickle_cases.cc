#include "tests/malformed/builders.h"
#include "tests/malformed/cases.h"

namespace caravan::test {

namespace {

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

using namespace pickle;

// A zip file whose data.pkl is PROTO 2, `opcodes`, STOP.
std::string code(const std::string& opcodes) { return torch_zip(whole(opcodes)); }
// A zip file whose data.pkl is `bytes`.
std::string raw(const std::string& bytes) { return torch_zip(bytes); }
// One tensor "a" in a state dict.
std::string one(const std::string& value) { return code(state_dict({{"a", value}})); }

std::string float_storage() { return storage("FloatStorage", "0", 2); }

// _rebuild_tensor_v2 with any arguments.
std::string rebuild(const std::vector<std::string>& arguments) {
  return one(global("torch._utils", "_rebuild_tensor_v2") + tuple(arguments) + "R");
}
std::string persistent(const std::vector<std::string>& id) { return one(tuple(id) + "Q"); }

MalformedCase refused_global(const char* name, const char* module, const char* attribute) {
  return {std::string("pickle_global_") + name, kUnsupported,
          fmt::format("FILE: data.pkl: offset 2: the global {}.{} is not allowed in a checkpoint; "
                      "save the state dict alone: torch.save(model.state_dict(), ...)",
                      module, attribute),
          code(global(module, attribute) + tuple({text("id")}) + "R"), read_torch};
}

MalformedCase refused_opcode(const char* name, const std::string& bytes) {
  return {
      std::string("pickle_opcode_") + name, kUnsupported,
      fmt::format("FILE: data.pkl: offset 2: the opcode {} is not allowed in a checkpoint", name),
      code(bytes), read_torch};
}

std::vector<MalformedCase> refused_cases() {
  return {
      refused_global("os_system", "os", "system"),
      refused_global("posix_system", "posix", "system"),
      refused_global("nt_system", "nt", "system"),
      refused_global("eval", "builtins", "eval"),
      refused_global("exec", "builtins", "exec"),
      refused_global("getattr", "builtins", "getattr"),
      refused_global("python2_eval", "__builtin__", "eval"),
      refused_global("import", "builtins", "__import__"),
      refused_global("popen", "subprocess", "Popen"),
      refused_global("runpy", "runpy", "_run_code"),
      refused_global("partial", "functools", "partial"),
      refused_global("webbrowser", "webbrowser", "open"),
      refused_global("torch_load", "torch", "load"),
      refused_global("torch_hub", "torch.hub", "load"),
      refused_global("untyped_storage", "torch.storage", "UntypedStorage"),
      refused_global("typed_storage", "torch.storage", "_load_from_bytes"),
      refused_global("rebuild_tensor_v1", "torch._utils", "_rebuild_tensor"),
      refused_global("rebuild_qtensor", "torch._utils", "_rebuild_qtensor"),
      refused_global("rebuild_sparse", "torch._utils", "_rebuild_sparse_tensor"),
      refused_global("complex_storage", "torch", "ComplexFloatStorage"),
      refused_global("quantized_storage", "torch", "QInt8Storage"),
      refused_global("numpy", "numpy.core.multiarray", "_reconstruct"),
      refused_global("ordered_dict_elsewhere", "os.collections", "OrderedDict"),
      refused_global("ordered_dict_attribute", "collections", "OrderedDict.__class__"),
      refused_global("default_dict", "collections", "defaultdict"),
      refused_global("module_empty", "", "system"),
      refused_global("storage_in_another_module", "torch._utils", "FloatStorage"),
      refused_opcode("POP", "0"),
      refused_opcode("POP_MARK", "1"),
      refused_opcode("DUP", "2"),
      refused_opcode("FLOAT", "F1.5\n"),
      refused_opcode("INT", "I1\n"),
      refused_opcode("LONG", "L1L\n"),
      refused_opcode("PERSID", "P0\n"),
      refused_opcode("STRING", "S'x'\n"),
      refused_opcode("UNICODE", "Vx\n"),
      refused_opcode("DICT", "d"),
      refused_opcode("GET", "g0\n"),
      refused_opcode("INST", "ios\nsystem\n"),
      refused_opcode("LIST", "l"),
      refused_opcode("OBJ", "o"),
      refused_opcode("PUT", "p0\n"),
      refused_opcode("NEWOBJ", "\x81"),
      refused_opcode("EXT1", "\x82\x01"),
      refused_opcode("EXT2", "\x83" + le16(1)),
      refused_opcode("EXT4", "\x84" + le32(1)),
      refused_opcode("NEWOBJ_EX", "\x92"),
      refused_opcode("NEXT_BUFFER", "\x97"),
      refused_opcode("READONLY_BUFFER", "\x98"),
  };
}

std::vector<MalformedCase> machine_cases() {
  const auto read = read_torch;
  return {
      {"pickle_unknown_opcode", kCorrupt, "FILE: data.pkl: offset 2: unknown opcode 0xff",
       code("\xff"), read},
      {"pickle_zero_opcode", kCorrupt, "FILE: data.pkl: offset 2: unknown opcode 0x00",
       code(std::string(1, '\0')), read},
      {"pickle_protocol_1", kUnsupported,
       "FILE: data.pkl: offset 0: pickle protocol 1, expected 2 to 5", raw("\x80\x01N."), read},
      {"pickle_protocol_6", kUnsupported,
       "FILE: data.pkl: offset 0: pickle protocol 6, expected 2 to 5", raw("\x80\x06N."), read},
      {"pickle_protocol_cut", kCorrupt,
       "FILE: data.pkl: offset 0: the pickle ends in the middle of an opcode", raw("\x80"), read},
      {"pickle_without_stop", kCorrupt,
       "FILE: data.pkl: offset 3: the pickle ends in the middle of an opcode", raw("\x80\x02N"),
       read},
      {"pickle_only_stop", kCorrupt, "FILE: data.pkl: offset 0: the stack is empty", raw("."),
       read},
      {"pickle_two_objects_left", kCorrupt,
       "FILE: data.pkl: offset 4: objects are left on the stack at STOP", code("NN"), read},
      {"pickle_mark_left", kCorrupt, "FILE: data.pkl: offset 4: the stack is empty",
       raw("\x80\x02N(."), read},
      {"pickle_stop_below_mark", kCorrupt,
       "FILE: data.pkl: offset 5: objects are left on the stack at STOP", raw("\x80\x02N()."),
       read},
      {"pickle_integer_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x02J\x01\x02"), read},
      {"pickle_text_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x02X" + le32(0xffffffff) + "x."), read},
      {"pickle_text_length_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode", raw("\x80\x02X\x01"),
       read},
      {"pickle_short_text_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x04\x8c\x05x."), read},
      {"pickle_float_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x02G1234567"), read},
      {"pickle_float_as_state", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors", code("G12345678"), read},
      {"pickle_long_of_255_bytes_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x02\x8a\xff" + std::string(254, '\x01')), read},
      {"pickle_long4_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       code("\x8b" + le32(0xffffffff)), read},
      {"pickle_bytes_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       code("B" + le32(0xffffffff)), read},
      {"pickle_bytes8_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       code("\x8e" + le64(~uint64_t{0})), read},
      {"pickle_bytearray8_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       code("\x96" + le64(~uint64_t{0} - 8)), read},
      {"pickle_text8_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       code("\x8d" + le64(~uint64_t{0})), read},
      {"pickle_old_text_longer_than_file", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       code("T" + le32(0xffffffff)), read},
      {"pickle_items_added_to_a_list", kCorrupt,
       "FILE: data.pkl: offset 5: items are added to something that is not a set", code("](N\x90"),
       read},
      {"pickle_items_added_without_mark", kCorrupt,
       "FILE: data.pkl: offset 4: no mark on the stack", code("\x8fN\x90"), read},
      {"pickle_items_added_below_mark", kCorrupt, "FILE: data.pkl: offset 4: the stack is empty",
       raw("\x80\x04((\x90."), read},
      {"pickle_frozenset_without_mark", kCorrupt, "FILE: data.pkl: offset 3: no mark on the stack",
       code("N\x91"), read},
      {"pickle_memo_index_huge", kUnsupported,
       "FILE: data.pkl: offset 3: memo entry 4294967295, expected less than 1048576",
       code("Nr" + le32(0xffffffff)), read},
      {"pickle_storage_key_is_long", kUnsupported,
       "FILE: data.pkl: offset 1085: a storage key of 1000 bytes, at most 64 are supported",
       one(storage("FloatStorage", std::string(1000, 'k'), 2)), read},
      {"pickle_long_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x02\x8a\x08\x01"), read},
      {"pickle_frame_cut", kCorrupt,
       "FILE: data.pkl: offset 2: the pickle ends in the middle of an opcode",
       raw("\x80\x04\x95\x01"), read},
      {"pickle_global_without_end", kCorrupt,
       "FILE: data.pkl: offset 2: a global's name has no end",
       raw("\x80\x02"
           "cos"),
       read},
      {"pickle_global_name_too_long", kCorrupt,
       "FILE: data.pkl: offset 2: a global's name has no end",
       code("c" + std::string(500, 'm') + "\nx\n"), read},
      {"pickle_global_attribute_without_end", kCorrupt,
       "FILE: data.pkl: offset 2: a global's name has no end",
       raw("\x80\x02"
           "ctorch\nFloat"),
       read},
      {"pickle_global_with_escape_codes", kUnsupported,
       "FILE: data.pkl: offset 2: the global os\\x1b[2J.system is not allowed in a checkpoint; "
       "save the state dict alone: torch.save(model.state_dict(), ...)",
       code(global("os\x1b[2J", "system")), read},
      {"pickle_stack_global_of_numbers", kCorrupt,
       "FILE: data.pkl: offset 6: STACK_GLOBAL needs two strings", code("K\x01K\x02\x93"), read},
      {"pickle_stack_global_system", kUnsupported,
       "FILE: data.pkl: offset 20: the global os.system is not allowed in a checkpoint; "
       "save the state dict alone: torch.save(model.state_dict(), ...)",
       code(text("os") + text("system") + "\x93"), read},
      {"pickle_stack_global_underflow", kCorrupt, "FILE: data.pkl: offset 9: the stack is empty",
       code(text("os") + "\x93"), read},
      {"pickle_memo_never_stored", kCorrupt,
       "FILE: data.pkl: offset 2: memo entry 5 was never stored", code("h\x05"), read},
      {"pickle_long_memo_never_stored", kCorrupt,
       "FILE: data.pkl: offset 2: memo entry 4294967294 was never stored",
       code("j" + le32(0xfffffffe)), read},
      {"pickle_memo_put_on_empty_stack", kCorrupt, "FILE: data.pkl: offset 2: the stack is empty",
       code("q\x01"), read},
      {"pickle_memoize_on_empty_stack", kCorrupt, "FILE: data.pkl: offset 2: the stack is empty",
       code("\x94"), read},
      {"pickle_memo_index_cut", kCorrupt,
       "FILE: data.pkl: offset 3: the pickle ends in the middle of an opcode",
       raw("\x80\x02Nr\x01"), read},
      {"pickle_tuple_without_mark", kCorrupt, "FILE: data.pkl: offset 3: no mark on the stack",
       code("Nt"), read},
      {"pickle_tuple2_underflow", kCorrupt, "FILE: data.pkl: offset 3: the stack is empty",
       code("N\x86"), read},
      {"pickle_tuple1_reaches_below_mark", kCorrupt, "FILE: data.pkl: offset 4: the stack is empty",
       code("N(\x85"), read},
      {"pickle_append_to_a_dict", kCorrupt,
       "FILE: data.pkl: offset 4: items are appended to something that is not a list", code("}Na"),
       read},
      {"pickle_append_to_nothing", kCorrupt, "FILE: data.pkl: offset 3: the stack is empty",
       code("Na"), read},
      {"pickle_appends_to_a_tuple", kCorrupt,
       "FILE: data.pkl: offset 5: items are appended to something that is not a list", code(")(Ne"),
       read},
      {"pickle_setitem_on_a_list", kCorrupt,
       "FILE: data.pkl: offset 5: items are set on something that is not a dict", code("]NNs"),
       read},
      {"pickle_setitem_underflow", kCorrupt, "FILE: data.pkl: offset 4: the stack is empty",
       code("}Ns"), read},
      {"pickle_setitems_odd", kCorrupt, "FILE: data.pkl: offset 7: a key without a value",
       code("}(NNNu"), read},
      {"pickle_setitems_without_mark", kCorrupt, "FILE: data.pkl: offset 5: no mark on the stack",
       code("}NNu"), read},
      {"pickle_setitems_on_none", kCorrupt,
       "FILE: data.pkl: offset 6: items are set on something that is not a dict", code("N(NNu"),
       read},
      {"pickle_reduce_underflow", kCorrupt, "FILE: data.pkl: offset 3: the stack is empty",
       code(")R"), read},
      {"pickle_reduce_without_tuple", kCorrupt,
       "FILE: data.pkl: offset 28: REDUCE needs a tuple of arguments",
       code(global("collections", "OrderedDict") + "NR"), read},
      {"pickle_reduce_of_a_string", kUnsupported,
       "FILE: data.pkl: offset 14: REDUCE of something that is not an allowed function",
       code(text("system") + ")R"), read},
      {"pickle_reduce_of_a_storage_type", kUnsupported,
       "FILE: data.pkl: offset 23: REDUCE of something that is not an allowed function",
       code(global("torch", "FloatStorage") + ")R"), read},
      {"pickle_reduce_of_a_dict", kUnsupported,
       "FILE: data.pkl: offset 4: REDUCE of something that is not an allowed function", code("})R"),
       read},
      {"pickle_ordered_dict_with_arguments", kUnsupported,
       "FILE: data.pkl: offset 30: OrderedDict with arguments",
       code(global("collections", "OrderedDict") + tuple({"]"}) + "R"), read},
      {"pickle_build_on_a_dict", kUnsupported,
       "FILE: data.pkl: offset 4: BUILD of something that is not an OrderedDict", code("}}b"),
       read},
      {"pickle_build_on_a_tensor", kUnsupported,
       "FILE: data.pkl: offset 162: BUILD of something that is not an OrderedDict",
       one(tensor(float_storage(), 0, {2}, {1}) + "}b"), read},
      {"pickle_build_with_a_tuple", kUnsupported,
       "FILE: data.pkl: offset 30: BUILD of something that is not an OrderedDict",
       code(ordered_dict() + ")b"), read},
      {"pickle_build_underflow", kCorrupt, "FILE: data.pkl: offset 3: the stack is empty",
       code("}b"), read},
      {"pickle_million_marks", kUnsupported,
       "FILE: data.pkl: offset 262146: more than 262144 marks on the stack",
       code(std::string(1 << 19, '(')), read},
      {"pickle_million_objects", kUnsupported,
       "FILE: data.pkl: offset 262146: more than 262144 objects on the stack",
       code(std::string(1 << 19, 'N')), read},
      {"pickle_million_nested_tuples", kUnsupported,
       "FILE: data.pkl: offset 1048576: more than 1048576 opcodes",
       code("N" + std::string(1 << 20, '\x85')), read},
      {"pickle_deep_tuple_as_state", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors",
       code("N" + std::string(1 << 19, '\x85')), read},
      {"pickle_dict_inside_itself", kUnsupported,
       "FILE: a: not a tensor; save the state dict alone", code("}q\x01" + text("a") + "h\x01s"),
       read},
      {"pickle_empty_persistent_id", kCorrupt,
       "FILE: data.pkl: offset 38: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent({}), read},
      {"pickle_persistent_id_underflow", kCorrupt, "FILE: data.pkl: offset 2: the stack is empty",
       code("Q"), read},
      {"pickle_persistent_id_is_text", kCorrupt,
       "FILE: data.pkl: offset 42: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       one(text("0") + "Q"), read},
      {"pickle_persistent_id_of_module", kCorrupt,
       "FILE: data.pkl: offset 85: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent(
           {text("module"), global("torch", "FloatStorage"), text("0"), text("cpu"), integer(2)}),
       read},
      {"pickle_persistent_id_without_type", kCorrupt,
       "FILE: data.pkl: offset 83: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent({text("storage"), text("FloatStorage"), text("0"), text("cpu"), integer(2)}),
       read},
      {"pickle_persistent_id_with_number_key", kCorrupt,
       "FILE: data.pkl: offset 82: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent(
           {text("storage"), global("torch", "FloatStorage"), integer(0), text("cpu"), integer(2)}),
       read},
      {"pickle_storage_key_too_long", kUnsupported,
       "FILE: data.pkl: offset 150: a storage key of 65 bytes, at most 64 are supported",
       persistent({text("storage"), global("torch", "FloatStorage"), text(std::string(65, '0')),
                   text("cpu"), integer(2)}),
       read},
      {"pickle_persistent_id_without_location", kCorrupt,
       "FILE: data.pkl: offset 79: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent({text("storage"), global("torch", "FloatStorage"), text("0"), "N", integer(2)}),
       read},
      {"pickle_persistent_id_negative_size", kCorrupt,
       "FILE: data.pkl: offset 89: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent(
           {text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu"), integer(-2)}),
       read},
      {"pickle_persistent_id_boolean_size", kCorrupt,
       "FILE: data.pkl: offset 85: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent(
           {text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu"), "\x88"}),
       read},
      {"pickle_persistent_id_of_seven", kCorrupt,
       "FILE: data.pkl: offset 88: a persistent id that is not (\"storage\", type, key, location, "
       "size)",
       persistent({text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu"),
                   integer(2), "N", "N"}),
       read},
      {"pickle_storage_view", kUnsupported,
       "FILE: data.pkl: offset 98: a view of a storage; save the tensors with a newer torch",
       persistent({text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu"),
                   integer(2), tuple({text("1"), integer(0), integer(1)})}),
       read},
      {"pickle_storage_key_leaves_the_folder", kCorrupt,
       "FILE: storage ../byteorder: no entry data/../byteorder",
       one(tensor(storage("FloatStorage", "../byteorder", 2), 0, {2}, {1})), read},
      {"pickle_storage_key_empty", kCorrupt, "FILE: storage : no entry data/",
       one(tensor(storage("FloatStorage", "", 2), 0, {2}, {1})), read},
      {"pickle_storage_described_twice", kCorrupt,
       "FILE: data.pkl: storage 0: described twice, as 2 x float32 and as 4 x float16",
       code(state_dict({{"a", tensor(float_storage(), 0, {2}, {1})},
                        {"b", tensor(storage("HalfStorage", "0", 4), 0, {4}, {1})}})),
       read},
      {"pickle_storage_size_overflows", kCorrupt,
       "FILE: data.pkl: storage 0: 9223372036854775807 elements of 8 bytes do not fit in 62 bits",
       one(tensor(storage("DoubleStorage", "0", INT64_MAX), 0, {1}, {1})), read},
      {"pickle_storage_size_is_not_the_entry", kCorrupt,
       "FILE: storage 0: got 8 bytes, expected 12: 3 x float32",
       one(tensor(storage("FloatStorage", "0", 3), 0, {2}, {1})), read},
  };
}

std::string repeated(const std::string& text, size_t count) {
  std::string all;
  for (size_t i = 0; i < count; ++i) all += text;
  return all;
}

// A tuple of 2^17 numbers that is the sizes of 2^17 tensors: looked at in each, it takes minutes.
std::string long_sizes_used_often() {
  constexpr size_t kCount = 1 << 17;
  return "]" +
         ("(" + repeated("K\x01", kCount) +
          "tq\x01"
          "a") +
         global("torch._utils", "_rebuild_tensor_v2") +
         "q\x02"
         "a" +
         float_storage() +
         "q\x03"
         "a" +
         ("(h\x03" + integer(0) +
          "h\x01h\x01\x89Ntq\x04"
          "a") +
         repeated("h\x02h\x04Ra", kCount);
}

std::vector<MalformedCase> tensor_cases() {
  const auto read = read_torch;
  const std::string tail1 = "\x89", tail2 = ordered_dict();
  return {
      {"pickle_tensor_without_arguments", kCorrupt,
       "FILE: data.pkl: offset 71: _rebuild_tensor_v2 needs a storage, an offset, sizes, strides "
       "and two more arguments",
       rebuild({}), read},
      {"pickle_tensor_of_five_arguments", kCorrupt,
       "FILE: data.pkl: offset 133: _rebuild_tensor_v2 needs a storage, an offset, sizes, strides "
       "and two more arguments",
       rebuild({float_storage(), integer(0), integers({2}), integers({1}), tail1}), read},
      {"pickle_tensor_of_eight_arguments", kCorrupt,
       "FILE: data.pkl: offset 162: _rebuild_tensor_v2 needs a storage, an offset, sizes, strides "
       "and two more arguments",
       rebuild({float_storage(), integer(0), integers({2}), integers({1}), tail1, tail2, "N", "N"}),
       read},
      {"pickle_tensor_without_storage", kCorrupt,
       "FILE: data.pkl: offset 110: _rebuild_tensor_v2 needs a storage, an offset, sizes, strides "
       "and two more arguments",
       rebuild({"N", integer(0), integers({2}), integers({1}), tail1, tail2}), read},
      {"pickle_tensor_offset_is_text", kCorrupt,
       "FILE: data.pkl: offset 164: _rebuild_tensor_v2 needs a storage, an offset, sizes, strides "
       "and two more arguments",
       rebuild({float_storage(), text("0"), integers({2}), integers({1}), tail1, tail2}), read},
      {"pickle_tensor_sizes_are_a_number", kCorrupt,
       "FILE: data.pkl: offset 158: _rebuild_tensor_v2 needs tuples of sizes and strides",
       rebuild({float_storage(), integer(0), integer(2), integers({1}), tail1, tail2}), read},
      {"pickle_tensor_sizes_are_a_list", kCorrupt,
       "FILE: data.pkl: offset 157: _rebuild_tensor_v2 needs tuples of sizes and strides",
       rebuild({float_storage(), integer(0), "]", integers({1}), tail1, tail2}), read},
      {"pickle_tensor_strides_are_none", kCorrupt,
       "FILE: data.pkl: offset 157: _rebuild_tensor_v2 needs tuples of sizes and strides",
       rebuild({float_storage(), integer(0), integers({2}), "N", tail1, tail2}), read},
      {"pickle_tensor_size_is_text", kCorrupt,
       "FILE: data.pkl: offset 164: a tensor's size or stride is not a number from 0 on",
       rebuild({float_storage(), integer(0), tuple({text("2")}), integers({1}), tail1, tail2}),
       read},
      {"pickle_tensor_size_is_true", kCorrupt,
       "FILE: data.pkl: offset 159: a tensor's size or stride is not a number from 0 on",
       rebuild({float_storage(), integer(0), tuple({"\x88"}), integers({1}), tail1, tail2}), read},
      {"pickle_tensor_size_negative", kCorrupt,
       "FILE: data.pkl: offset 163: a tensor's size or stride is not a number from 0 on",
       one(tensor(float_storage(), 0, {-2}, {1})), read},
      {"pickle_tensor_stride_negative", kCorrupt,
       "FILE: data.pkl: offset 163: a tensor's size or stride is not a number from 0 on",
       one(tensor(float_storage(), 0, {2}, {-1})), read},
      {"pickle_tensor_one_stride_too_few", kCorrupt,
       "FILE: data.pkl: offset 162: a tensor's sizes and strides differ in number",
       one(tensor(float_storage(), 0, {2, 1}, {1})), read},
      {"pickle_tensor_of_five_dimensions", kUnsupported,
       "FILE: a: a tensor of 5 dimensions, at most 4 are supported",
       one(tensor(float_storage(), 0, {1, 1, 1, 1, 2}, {2, 2, 2, 2, 1})), read},
      {"pickle_tensor_size_overflows", kCorrupt, "FILE: a: its bytes do not fit in 63 bits",
       one(tensor(float_storage(), 0, {int64_t{1} << 40, int64_t{1} << 40}, {int64_t{1} << 40, 1})),
       read},
      {"pickle_tensor_size_overflows_before_zero", kCorrupt,
       "FILE: a: its bytes do not fit in 63 bits",
       one(tensor(float_storage(), 0, {int64_t{1} << 40, int64_t{1} << 40, 0}, {0, 0, 1})), read},
      {"pickle_tensor_expanded_without_bound", kCorrupt, "FILE: a: its bytes do not fit in 63 bits",
       one(tensor(float_storage(), 0, {int64_t{1} << 31, int64_t{1} << 31}, {0, 0})), read},
      {"pickle_tensor_transposed_past_storage", kCorrupt,
       "FILE: a: [4,2] at offset 0 with strides [1,4] exceeds its storage of 6 elements",
       one(tensor(storage("HalfStorage", "1", 6), 0, {4, 2}, {1, 4})), read},
      {"pickle_tensor_transposed_one_too_far", kCorrupt,
       "FILE: a: [3,2] at offset 1 with strides [1,3] exceeds its storage of 6 elements",
       one(tensor(storage("HalfStorage", "1", 6), 1, {3, 2}, {1, 3})), read},
      {"pickle_tensor_expanded_past_storage", kCorrupt,
       "FILE: a: [4] at offset 2 with strides [0] exceeds its storage of 2 elements",
       one(tensor(float_storage(), 2, {4}, {0})), read},
      {"pickle_tensor_stride_overflows", kCorrupt,
       "FILE: a: [3] at offset 0 with strides [9223372036854775807] exceeds its storage of 2 "
       "elements",
       one(tensor(float_storage(), 0, {3}, {INT64_MAX})), read},
      {"pickle_tensor_strides_overflow_together", kCorrupt,
       "FILE: a: [2,2] at offset 0 with strides [9223372036854775807,9223372036854775807] exceeds "
       "its storage of 2 elements",
       one(tensor(float_storage(), 0, {2, 2}, {INT64_MAX, INT64_MAX})), read},
      {"pickle_tensor_stride_and_offset_overflow", kCorrupt,
       "FILE: a: [2] at offset 9223372036854775807 with strides [1] exceeds its storage of 2 "
       "elements",
       one(tensor(float_storage(), INT64_MAX, {2}, {1})), read},
      {"pickle_tensor_exceeds_storage", kCorrupt,
       "FILE: a: [3] at offset 0 with strides [1] exceeds its storage of 2 elements",
       one(tensor(float_storage(), 0, {3}, {1})), read},
      {"pickle_tensor_offset_past_storage", kCorrupt,
       "FILE: a: [0] at offset 3 with strides [1] exceeds its storage of 2 elements",
       one(tensor(float_storage(), 3, {0}, {1})), read},
      {"pickle_tensor_offset_and_size_exceed", kCorrupt,
       "FILE: a: [2] at offset 1 with strides [1] exceeds its storage of 2 elements",
       one(tensor(float_storage(), 1, {2}, {1})), read},
      {"pickle_tensor_offset_negative", kCorrupt,
       "FILE: a: [2] at offset -1 with strides [1] exceeds its storage of 2 elements",
       one(tensor(float_storage(), -1, {2}, {1})), read},
      {"pickle_scalar_at_the_end", kCorrupt,
       "FILE: a: [] at offset 2 with strides [] exceeds its storage of 2 elements",
       one(tensor(float_storage(), 2, {}, {})), read},
      {"pickle_two_state_dicts", kUnsupported,
       "FILE: a training checkpoint with both \"model\" and \"state_dict\": save the state dict "
       "that is meant alone",
       code(state_dict({{"model", state_dict({})}, {"state_dict", state_dict({})}})), read},
      {"pickle_training_checkpoint_of_text", kUnsupported,
       "FILE: a: not a tensor; save the state dict alone",
       code(state_dict({{"model", state_dict({{"a", text("1")}})}})), read},
      {"pickle_training_checkpoint_two_deep", kUnsupported,
       "FILE: model: not a tensor; save the state dict alone",
       code(state_dict(
           {{"model",
             state_dict({{"model", state_dict({{"a", tensor(float_storage(), 0, {2}, {1})}})}})}})),
       read},
      {"pickle_dict_that_is_its_own_model", kUnsupported,
       "FILE: model: not a tensor; save the state dict alone",
       code("}q\x01" + text("model") + "h\x01s"), read},
      {"pickle_long_sizes_used_often", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors", code(long_sizes_used_often()),
       read},
      {"pickle_parameter_of_nothing", kCorrupt,
       "FILE: data.pkl: offset 70: _rebuild_parameter needs a tensor and two more arguments",
       one(global("torch._utils", "_rebuild_parameter") + ")R"), read},
      {"pickle_parameter_of_text", kCorrupt,
       "FILE: data.pkl: offset 79: _rebuild_parameter needs a tensor and two more arguments",
       one(global("torch._utils", "_rebuild_parameter") + tuple({text("a"), "\x88", "N"}) + "R"),
       read},
      {"pickle_root_is_none", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors", code("N"), read},
      {"pickle_root_is_a_tensor", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors",
       code(tensor(float_storage(), 0, {2}, {1})), read},
      {"pickle_root_is_a_tuple", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors", code(tuple({state_dict({})})),
       read},
      {"pickle_root_is_a_function", kUnsupported,
       "FILE: data.pkl: the saved object is not a dict of tensors",
       code(global("torch._utils", "_rebuild_tensor_v2")), read},
      {"pickle_key_is_a_number", kUnsupported, "FILE: key 0 of the saved dict is not a string",
       code("}" + integer(1) + tensor(float_storage(), 0, {2}, {1}) + "s"), read},
      {"pickle_key_is_a_tensor", kUnsupported, "FILE: key 0 of the saved dict is not a string",
       code("}q\x01" + tensor(float_storage(), 0, {2}, {1}) + "Ns"), read},
      {"pickle_value_is_text", kUnsupported, "FILE: a: not a tensor; save the state dict alone",
       one(text("1")), read},
      {"pickle_value_is_a_storage", kUnsupported,
       "FILE: a: not a tensor; save the state dict alone", one(float_storage()), read},
      {"pickle_value_is_a_storage_type", kUnsupported,
       "FILE: a: not a tensor; save the state dict alone", one(global("torch", "FloatStorage")),
       read},
      {"pickle_value_is_a_state_dict", kUnsupported,
       "FILE: a: not a tensor; save the state dict alone", one(state_dict({})), read},
      {"pickle_name_twice", kCorrupt, "FILE: a: appears twice",
       code(state_dict({{"a", tensor(float_storage(), 0, {2}, {1})},
                        {"a", tensor(float_storage(), 0, {2}, {1})}})),
       read},
  };
}

}  // namespace

std::vector<MalformedCase> pickle_cases() {
  std::vector<MalformedCase> cases = refused_cases();
  for (auto* more : {machine_cases, tensor_cases}) {
    for (MalformedCase& one_case : more()) cases.push_back(std::move(one_case));
  }
  return cases;
}

}  // namespace caravan::test
