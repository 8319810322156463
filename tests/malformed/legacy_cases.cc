#include "tests/malformed/builders.h"
#include "tests/malformed/cases.h"

namespace caravan::test {

namespace {

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

// The base file with one part replaced.
std::string with(std::string LegacyFile::*part, const std::string& bytes) {
  LegacyFile file = torch_legacy();
  file.*part = bytes;
  return file.bytes();
}

}  // namespace

std::vector<MalformedCase> legacy_cases() {
  using namespace pickle;
  const auto read = read_torch;
  const LegacyFile base = torch_legacy();
  const std::string valid = base.bytes();
  const std::string zeros8(8, '\0'), zeros12(12, '\0');
  const std::string a = tensor(storage("FloatStorage", "0", 2), 0, {2}, {1});
  const auto system_info = [&](const std::string& value) {
    return with(&LegacyFile::system_info, whole("}(" + text("little_endian") + value + "u"));
  };
  const auto storages = [&](const std::string& bytes) {
    return with(&LegacyFile::storages, bytes);
  };
  const auto keys = [&](const std::string& items) {
    return with(&LegacyFile::keys, whole("](" + items + "e"));
  };
  const auto state = [&](const std::string& object) {
    return with(&LegacyFile::state, whole(object));
  };
  return {
      {"legacy_only_magic", kCorrupt, "FILE: offset 15: the pickle ends in the middle of an opcode",
       base.magic, read},
      {"legacy_magic_changed", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote", patched(valid, 5, "x"),
       read},
      {"legacy_magic_cut", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote", valid.substr(0, 14), read},
      {"legacy_protocol_1000", kUnsupported, "FILE: legacy protocol: got 1000, expected 1001",
       with(&LegacyFile::protocol, whole("M" + le16(1000))), read},
      {"legacy_protocol_is_text", kUnsupported, "FILE: legacy protocol: got 0, expected 1001",
       with(&LegacyFile::protocol, whole(text("1001"))), read},
      {"legacy_big_endian", kUnsupported, "FILE: system info: the file is not little endian",
       system_info("\x89"), read},
      {"legacy_endianness_is_one", kUnsupported, "FILE: system info: the file is not little endian",
       system_info(integer(1)), read},
      {"legacy_endianness_missing", kCorrupt, "FILE: system info: no little_endian",
       with(&LegacyFile::system_info, whole("}")), read},
      {"legacy_system_info_is_a_list", kCorrupt, "FILE: system info: expected a dict",
       with(&LegacyFile::system_info, whole("]")), read},
      {"legacy_system_info_missing", kCorrupt, "FILE: system info: expected a dict",
       with(&LegacyFile::system_info, ""), read},
      {"legacy_state_cut", kCorrupt, "FILE: offset 122: a global's name has no end",
       base.magic + base.protocol + base.system_info + base.state.substr(0, 40), read},
      {"legacy_state_is_a_list", kUnsupported, "FILE: the saved object is not a dict of tensors",
       state("]"), read},
      {"legacy_state_is_a_tensor", kUnsupported, "FILE: the saved object is not a dict of tensors",
       state(a), read},
      {"legacy_state_is_none", kUnsupported, "FILE: the saved object is not a dict of tensors",
       state("N"), read},
      {"legacy_keys_are_a_dict", kCorrupt, "FILE: storage keys: expected a list",
       with(&LegacyFile::keys, whole("}")), read},
      {"legacy_keys_missing", kCorrupt, "FILE: offset 383: unknown opcode 0x02",
       with(&LegacyFile::keys, ""), read},
      {"legacy_keys_short_of_one", kCorrupt, "FILE: storage 1: not among the storage keys",
       keys(text("0")), read},
      {"legacy_key_unknown", kCorrupt, "FILE: storage keys: \"7\" is unknown or listed twice",
       keys(text("0") + text("7")), read},
      {"legacy_key_twice", kCorrupt, "FILE: storage keys: \"0\" is unknown or listed twice",
       keys(text("0") + text("0")), read},
      {"legacy_key_is_a_number", kCorrupt, "FILE: storage keys: \"\" is unknown or listed twice",
       keys(integer(0) + text("1")), read},
      {"legacy_key_with_escape_codes", kCorrupt,
       "FILE: storage keys: \"\\x1b[2J\" is unknown or listed twice",
       keys(text("\x1b[2J") + text("1")), read},
      {"legacy_no_storages", kCorrupt, "FILE: storage 0: no room for its length at offset 401",
       storages(""), read},
      {"legacy_storage_length_cut", kCorrupt,
       "FILE: storage 0: no room for its length at offset 401", storages(std::string(7, '\0')),
       read},
      {"legacy_storage_cut", kCorrupt,
       "FILE: storage 0: 8 bytes at offset 409 exceed the file of 416",
       storages(le64(2) + std::string(7, '\0')), read},
      {"legacy_second_storage_missing", kCorrupt,
       "FILE: storage 1: no room for its length at offset 417", storages(le64(2) + zeros8), read},
      {"legacy_storage_length_negative", kCorrupt,
       "FILE: storage 0: got -1 elements at offset 401, expected 2",
       storages(le64(~uint64_t{0}) + zeros8), read},
      {"legacy_storage_length_differs", kCorrupt,
       "FILE: storage 0: got 3 elements at offset 401, expected 2",
       storages(le64(3) + zeros12 + le64(6) + zeros12), read},
      {"legacy_storage_length_huge", kCorrupt,
       "FILE: storage 0: got 4611686018427387904 elements at offset 401, expected 2",
       storages(le64(uint64_t{1} << 62) + zeros8), read},
      {"legacy_storages_in_another_order", kCorrupt,
       "FILE: storage 0: got 6 elements at offset 401, expected 2",
       storages(le64(6) + zeros12 + le64(2) + zeros8), read},
      {"legacy_bytes_after_the_end", kCorrupt,
       "FILE: storages end at offset 437, expected 438, the size of the file", valid + "x", read},
      {"legacy_last_byte_missing", kCorrupt,
       "FILE: storage 1: 12 bytes at offset 425 exceed the file of 436",
       valid.substr(0, valid.size() - 1), read},
      {"legacy_storage_size_overflows", kCorrupt,
       "FILE: storage 0: 4611686018427387904 elements of 4 bytes do not fit in 62 bits",
       state(state_dict(
           {{"a", tensor(storage("FloatStorage", "0", int64_t{1} << 62), 0, {2}, {1})}})),
       read},
      {"legacy_storage_larger_than_file", kCorrupt,
       "FILE: storage 0: got 2 elements at offset 270, expected 1073741824",
       state(state_dict({{"a", tensor(storage("FloatStorage", "0", 1 << 30), 0, {2}, {1})}})),
       read},
      {"legacy_opcode_refused", kUnsupported,
       "FILE: offset 88: the global os.system is not allowed in a checkpoint; save the "
       "state dict alone: torch.save(model.state_dict(), ...)",
       state(global("os", "system") + tuple({text("id")}) + "R"), read},
  };
}

}  // namespace caravan::test
