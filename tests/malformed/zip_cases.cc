#include "format/torch_file.h"

#include "tests/malformed/builders.h"
#include "tests/malformed/cases.h"

namespace caravan::test {

void read_torch(const std::string& input) {
  parse_torch_file({reinterpret_cast<const std::byte*>(input.data()), input.size()}, "FILE");
}

namespace {

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

// Offsets of fields within the records of a zip file.
constexpr size_t kLocalNameLength = 26;
constexpr size_t kLocalExtraLength = 28;
constexpr size_t kLocalName = 30;
constexpr size_t kCentralFlags = 8;
constexpr size_t kCentralMethod = 10;
constexpr size_t kCentralStoredSize = 20;
constexpr size_t kCentralSize = 24;
constexpr size_t kCentralNameLength = 28;
constexpr size_t kCentralExtraLength = 30;
constexpr size_t kCentralOffset = 42;
constexpr size_t kCentralName = 46;

// The base archive with the members changed.
std::string members_with(const std::vector<ZipMember>& added, const std::string& removed = "") {
  std::vector<ZipMember> members;
  for (const ZipMember& member : torch_members(torch_pickle())) {
    if (member.name != removed) members.push_back(member);
  }
  members.insert(members.end(), added.begin(), added.end());
  return zip_file(members).bytes;
}

std::string renamed_folder(const std::string& name, const std::string& to) {
  std::vector<ZipMember> members = torch_members(torch_pickle());
  for (ZipMember& member : members) {
    if (member.name == name) member.name = to;
  }
  return zip_file(members).bytes;
}

}  // namespace

std::vector<MalformedCase> zip_cases() {
  const auto read = read_torch;
  const ZipFile zip = zip_file(torch_members(torch_pickle()));
  const std::string& valid = zip.bytes;
  const ZipFile zip64 = zip_file(torch_members(torch_pickle()), true);
  std::vector<ZipMember> wide_members = torch_members(torch_pickle());
  for (ZipMember& member : wide_members) member.is_zip64 = true;
  const ZipFile wide = zip_file(wide_members);
  const size_t data0 = zip.central[2];  // m/data/0
  const size_t wide_extra = wide.central[2] + kCentralName + wide_members[2].name.size();
  const auto patch = [&](size_t at, const std::string& value) { return patched(valid, at, value); };
  const auto patch64 = [&](size_t at, const std::string& value) {
    return patched(zip64.bytes, at, value);
  };
  const auto patch_wide = [&](size_t at, const std::string& value) {
    return patched(wide.bytes, at, value);
  };
  return {
      {"zip_only_magic", kCorrupt,
       "FILE: no end-of-central-directory record: the zip file is cut short", "PK\x03\x04", read},
      {"zip_without_end_record", kCorrupt,
       "FILE: no end-of-central-directory record: the zip file is cut short",
       valid.substr(0, zip.end), read},
      {"zip_end_record_cut", kCorrupt,
       "FILE: no end-of-central-directory record: the zip file is cut short",
       valid.substr(0, valid.size() - 1), read},
      {"zip_end_signature_wrong", kCorrupt,
       "FILE: no end-of-central-directory record: the zip file is cut short",
       patch(zip.end, "PK\x05\x07"), read},
      {"zip_comment_longer_than_file", kCorrupt,
       "FILE: no end-of-central-directory record: the zip file is cut short",
       patch(zip.end + 20, le16(9)), read},
      {"zip_bytes_after_the_end", kCorrupt,
       "FILE: no end-of-central-directory record: the zip file is cut short", valid + "xx", read},
      {"zip_on_two_disks", kUnsupported, "FILE: part 1 of an archive on several disks",
       patch(zip.end + 4, le16(1)), read},
      {"zip_directory_offset_past_end", kCorrupt,
       "FILE: central directory: got offset 723 and 221 bytes, expected them to end at offset 701",
       patch(zip.end + 16, le32(valid.size())), read},
      {"zip_directory_offset_off_by_one", kCorrupt,
       "FILE: central directory: got offset 481 and 221 bytes, expected them to end at offset 701",
       patch(zip.end + 16, le32(zip.central[0] + 1)), read},
      {"zip_directory_size_zero", kCorrupt,
       "FILE: central directory: got offset 480 and 0 bytes, expected them to end at offset 701",
       patch(zip.end + 12, le32(0)), read},
      {"zip_directory_size_huge", kCorrupt,
       "FILE: central directory: got offset 480 and 4294967294 bytes, expected them to end at "
       "offset 701",
       patch(zip.end + 12, le32(0xfffffffe)), read},
      {"zip_one_entry_too_few", kCorrupt,
       "FILE: central directory: 54 bytes are left after 3 entries", patch(zip.end + 10, le16(3)),
       read},
      {"zip_one_entry_too_many", kCorrupt,
       "FILE: central directory: 5 entries do not fit in 221 bytes", patch(zip.end + 10, le16(5)),
       read},
      {"zip_many_entries", kCorrupt,
       "FILE: central directory: 60000 entries do not fit in 221 bytes",
       patch(zip.end + 10, le16(60000)), read},
      {"zip_no_entries", kCorrupt, "FILE: neither a zip archive nor a pickle that torch.save wrote",
       zip_file({}).bytes, read},
      {"zip_no_entries_behind_local_magic", kCorrupt,
       "FILE: central directory: 221 bytes are left after 0 entries", patch(zip.end + 10, le16(0)),
       read},
      {"zip_count_in_zip64_that_is_missing", kCorrupt,
       "FILE: the end record refers to a zip64 record that is not there",
       patch(zip.end + 10, le16(0xffff)), read},
      {"zip_offset_in_zip64_that_is_missing", kCorrupt,
       "FILE: the end record refers to a zip64 record that is not there",
       patch(zip.end + 16, le32(0xffffffff)), read},
      {"zip_size_in_zip64_that_is_missing", kCorrupt,
       "FILE: the end record refers to a zip64 record that is not there",
       patch(zip.end + 12, le32(0xffffffff)), read},
      {"zip64_locator_points_past_the_end", kCorrupt,
       "FILE: no zip64 end record at offset 799, where its locator points",
       patch64(zip64.locator64 + 8, le64(zip64.bytes.size())), read},
      {"zip64_locator_points_far_out", kCorrupt,
       "FILE: no zip64 end record at offset 18446744073709551595, where its locator points",
       patch64(zip64.locator64 + 8, le64(~uint64_t{0} - 20)), read},
      {"zip64_locator_points_at_itself", kCorrupt,
       "FILE: no zip64 end record at offset 757, where its locator points",
       patch64(zip64.locator64 + 8, le64(zip64.locator64)), read},
      {"zip64_locator_points_at_data", kCorrupt,
       "FILE: no zip64 end record at offset 0, where its locator points",
       patch64(zip64.locator64 + 8, le64(0)), read},
      {"zip64_end_signature_wrong", kCorrupt,
       "FILE: no zip64 end record at offset 701, where its locator points",
       patch64(zip64.end64, "PK\x06\x05"), read},
      {"zip64_on_two_disks", kUnsupported, "FILE: part 3 of an archive on several disks",
       patch64(zip64.end64 + 16, le32(3)), read},
      {"zip64_directory_offset_huge", kCorrupt,
       "FILE: central directory: got offset 18446744073709551615 and 221 bytes, expected them to "
       "end at offset 701",
       patch64(zip64.end64 + 48, le64(~uint64_t{0})), read},
      {"zip64_directory_size_wraps", kCorrupt,
       "FILE: central directory: got offset 480 and 18446744073709551611 bytes, expected them to "
       "end at offset 701",
       patch64(zip64.end64 + 40, le64(~uint64_t{0} - 4)), read},
      {"zip64_entry_count_huge", kCorrupt,
       "FILE: central directory: 1152921504606846976 entries do not fit in 221 bytes",
       patch64(zip64.end64 + 32, le64(uint64_t{1} << 60)), read},
      {"zip64_entry_count_wrong", kCorrupt,
       "FILE: central directory: 54 bytes are left after 3 entries",
       patch64(zip64.end64 + 32, le64(3)), read},
      {"zip64_extra_missing", kCorrupt, "FILE: m/data/0: the zip64 field is missing",
       patch(data0 + kCentralSize, le32(0xffffffff)), read},
      {"zip64_offset_extra_missing", kCorrupt, "FILE: m/data/0: the zip64 field is missing",
       patch(data0 + kCentralOffset, le32(0xffffffff)), read},
      {"zip64_extra_too_short", kCorrupt, "FILE: m/data/0: the zip64 field is too short",
       patch_wide(wide_extra + 2, le16(16)), read},
      {"zip64_extra_longer_than_the_entry", kCorrupt,
       "FILE: m/data/0: an extra field exceeds its entry", patch_wide(wide_extra + 2, le16(25)),
       read},
      {"zip64_extra_of_another_kind", kCorrupt, "FILE: m/data/0: the zip64 field is missing",
       patch_wide(wide_extra, le16(2)), read},
      {"zip64_size_huge", kCorrupt,
       "FILE: m/data/0: 18446744073709551615 bytes at offset 482 exceed the archive's data, which "
       "end at 560",
       patched(patch_wide(wide_extra + 4, le64(~uint64_t{0})), wide_extra + 12, le64(~uint64_t{0})),
       read},
      {"zip64_sizes_differ", kCorrupt, "FILE: m/data/0: stored size 8, expected 9, its size",
       patch_wide(wide_extra + 4, le64(9)), read},
      {"zip64_local_offset_huge", kCorrupt,
       "FILE: m/data/0: no local header at offset 18446744073709551605",
       patch_wide(wide_extra + 20, le64(~uint64_t{0} - 10)), read},
      {"zip_central_signature_wrong", kCorrupt,
       "FILE: central directory: entry 1 at offset 536 has no signature",
       patch(zip.central[1], "PK\x01\x03"), read},
      {"zip_entry_encrypted", kUnsupported, "FILE: m/data/0: the entry is encrypted",
       patch(data0 + kCentralFlags, le16(1)), read},
      {"zip_entry_deflated", kUnsupported,
       "FILE: m/data/0: compression method 8, expected 0: torch stores its entries",
       patch(data0 + kCentralMethod, le16(8)), read},
      {"zip_entry_method_99", kUnsupported,
       "FILE: m/data/0: compression method 99, expected 0: torch stores its entries",
       patch(data0 + kCentralMethod, le16(99)), read},
      {"zip_stored_size_differs", kCorrupt, "FILE: m/data/0: stored size 7, expected 8, its size",
       patch(data0 + kCentralStoredSize, le32(7)), read},
      {"zip_entry_past_the_end", kCorrupt,
       "FILE: m/data/0: 100000 bytes at offset 422 exceed the archive's data, which end at 480",
       patched(patch(data0 + kCentralStoredSize, le32(100000)), data0 + kCentralSize, le32(100000)),
       read},
      {"zip_entry_runs_into_the_directory", kCorrupt,
       "FILE: m/data/1: 13 bytes at offset 468 exceed the archive's data, which end at 480",
       patched(patch(zip.central[3] + kCentralStoredSize, le32(13)), zip.central[3] + kCentralSize,
               le32(13)),
       read},
      {"zip_name_longer_than_directory", kCorrupt,
       "FILE: central directory: entry 3 exceeds the directory",
       patch(zip.central[3] + kCentralNameLength, le16(0xffff)), read},
      {"zip_extra_longer_than_directory", kCorrupt,
       "FILE: central directory: entry 3 exceeds the directory",
       patch(zip.central[3] + kCentralExtraLength, le16(500)), read},
      {"zip_local_offset_past_end", kCorrupt, "FILE: m/data/0: no local header at offset 723",
       patch(data0 + kCentralOffset, le32(valid.size())), read},
      {"zip_local_offset_in_the_directory", kCorrupt,
       "FILE: m/data/0: no local header at offset 480",
       patch(data0 + kCentralOffset, le32(zip.central[0])), read},
      {"zip_local_offset_off_by_one", kCorrupt, "FILE: m/data/0: no local header at offset 385",
       patch(data0 + kCentralOffset, le32(zip.local[2] + 1)), read},
      {"zip_local_signature_wrong", kCorrupt, "FILE: m/data/0: no local header at offset 384",
       patch(zip.local[2], "PK\x03\x05"), read},
      {"zip_local_name_differs", kCorrupt, "FILE: m/data/0: its local header has another name",
       patch(zip.local[2] + kLocalName, "n"), read},
      {"zip_local_name_longer", kCorrupt, "FILE: m/data/0: its local header has another name",
       patch(zip.local[2] + kLocalNameLength, le16(9)), read},
      {"zip_local_name_huge", kCorrupt,
       "FILE: m/data/0: 8 bytes at offset 65949 exceed the archive's data, which end at 480",
       patch(zip.local[2] + kLocalNameLength, le16(0xffff)), read},
      {"zip_local_extra_huge", kCorrupt,
       "FILE: m/data/1: 12 bytes at offset 65988 exceed the archive's data, which end at 480",
       patch(zip.local[3] + kLocalExtraLength, le16(0xfff0)), read},
      {"zip_offsets_swapped", kCorrupt, "FILE: m/data/0: its local header has another name",
       patch(data0 + kCentralOffset, le32(zip.local[3])), read},
      {"zip_entry_twice", kCorrupt, "FILE: m/data/0: the entry appears twice",
       members_with({{"m/data/0", std::string(8, '\0')}}), read},
      {"zip_without_data_pkl", kCorrupt, "FILE: no <folder>/data.pkl in the zip file",
       members_with({}, "m/data.pkl"), read},
      {"zip_data_pkl_without_folder", kCorrupt, "FILE: no <folder>/data.pkl in the zip file",
       renamed_folder("m/data.pkl", "data.pkl"), read},
      {"zip_data_pkl_too_deep", kCorrupt, "FILE: no <folder>/data.pkl in the zip file",
       renamed_folder("m/data.pkl", "m/n/data.pkl"), read},
      {"zip_data_pkl_in_two_folders", kCorrupt, "FILE: both m/data.pkl and n/data.pkl are there",
       members_with({{"n/data.pkl", torch_pickle()}}), read},
      {"zip_data_pkl_empty", kCorrupt,
       "FILE: data.pkl: offset 0: the pickle ends in the middle of an opcode", torch_zip(""), read},
      {"zip_torchscript", kUnsupported, "FILE: a TorchScript archive, expected a state dict",
       members_with({{"m/constants.pkl", "\x80\x02)."}}), read},
      {"zip_big_endian", kUnsupported, "FILE: m/byteorder: got \"big\", expected \"little\"",
       members_with({{"m/byteorder", "big"}}, "m/byteorder"), read},
      {"zip_byteorder_empty", kUnsupported, "FILE: m/byteorder: got \"\", expected \"little\"",
       members_with({{"m/byteorder", ""}}, "m/byteorder"), read},
      {"zip_storage_missing", kCorrupt, "FILE: storage 1: no entry data/1",
       members_with({}, "m/data/1"), read},
      {"zip_storage_in_another_folder", kCorrupt, "FILE: storage 1: no entry data/1",
       renamed_folder("m/data/1", "n/data/1"), read},
      {"zip_storage_too_short", kCorrupt, "FILE: storage 0: got 7 bytes, expected 8: 2 x float32",
       members_with({{"m/data/0", std::string(7, '\0')}}, "m/data/0"), read},
      {"zip_storage_too_long", kCorrupt, "FILE: storage 0: got 9 bytes, expected 8: 2 x float32",
       members_with({{"m/data/0", std::string(9, '\0')}}, "m/data/0"), read},
      {"zip_storage_empty", kCorrupt, "FILE: storage 0: got 0 bytes, expected 8: 2 x float32",
       members_with({{"m/data/0", ""}}, "m/data/0"), read},
      {"torch_file_empty", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote", "", read},
      {"torch_file_is_safetensors", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote", safetensors_file("{}", 0),
       read},
      {"torch_file_is_a_tar", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote",
       "sys_info" + std::string(600, '\0'), read},
      {"torch_file_is_an_lfs_pointer", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote",
       "version https://git-lfs.github.com/spec/v1\n", read},
      {"torch_file_is_a_bare_pickle", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote", torch_pickle(), read},
      {"zip_empty_archive_magic", kCorrupt,
       "FILE: neither a zip archive nor a pickle that torch.save wrote",
       zip_file({}).bytes.substr(0, 22), read},
  };
}

}  // namespace caravan::test
