#include "format/weight_checksums.h"

#include <span>

#include "core/error.h"
#include "format/json_fields.h"

namespace caravan {

namespace {

constexpr size_t kDigits = 16;
constexpr std::string_view kConfigField = "\"config_xxh3\": \"";

TensorChecksum parse_chunks(const JsonFields& fields, std::string_view name) {
  const std::string text = fields.string(name);
  TensorChecksum checksum;
  for (size_t i = 0; i < text.size(); i += kDigits) {
    const std::optional<uint64_t> value = parse_checksum(std::string_view(text).substr(i, kDigits));
    if (!value) fields.fail(name, "16 hexadecimal digits a chunk");
    checksum.chunks.push_back(*value);
  }
  return checksum;
}

}  // namespace

boost::json::object checksums_to_json(const std::vector<FileChecksums>& ranks) {
  boost::json::array files;
  for (const FileChecksums& file : ranks) {
    boost::json::object tensors;
    for (const auto& [name, checksum] : file.tensors) {
      std::string text;
      for (const uint64_t chunk : checksum.chunks) text += checksum_text(chunk);
      tensors[name] = text;
    }
    boost::json::object object;
    if (file.header) object["header"] = checksum_text(*file.header);
    object["tensors"] = std::move(tensors);
    files.push_back(std::move(object));
  }
  return {{"chunk_bytes", static_cast<int64_t>(kChecksumChunk)}, {"ranks", std::move(files)}};
}

std::vector<FileChecksums> parse_checksums(const boost::json::object& object,
                                           const std::string& where, int num_ranks) {
  const JsonFields fields(object, where, "caravan.checksums.");
  const int64_t chunk_bytes = fields.integer("chunk_bytes", 1, INT64_MAX);
  CARAVAN_CHECK_CODE(chunk_bytes == static_cast<int64_t>(kChecksumChunk), kUnsupported,
                     "{}: caravan.checksums.chunk_bytes: got {}, expected {}", where, chunk_bytes,
                     kChecksumChunk);
  const boost::json::value* ranks = fields.find("ranks");
  if (ranks == nullptr || !ranks->is_array()) fields.fail("ranks", "an array");
  CARAVAN_CHECK_CODE(ranks->get_array().size() == static_cast<size_t>(num_ranks), kCorrupt,
                     "{}: caravan.checksums.ranks: got {} files, expected {}", where,
                     ranks->get_array().size(), num_ranks);
  std::vector<FileChecksums> result;
  for (const boost::json::value& rank : ranks->get_array()) {
    CARAVAN_CHECK_CODE(rank.is_object(), kCorrupt,
                       "{}: caravan.checksums.ranks: got {}, expected an object", where,
                       json_text(rank));
    const std::string prefix = fmt::format("caravan.checksums.ranks.{}.", result.size());
    const JsonFields file(rank.get_object(), where, prefix);
    FileChecksums checksums;
    checksums.header = parse_checksum(file.string("header"));
    if (!checksums.header) file.fail("header", "16 hexadecimal digits");
    const boost::json::object& tensors = file.object("tensors");
    const JsonFields table(tensors, where, prefix + "tensors.");
    for (const auto& pair : tensors) {
      checksums.tensors.emplace(pair.key(), parse_chunks(table, pair.key()));
    }
    result.push_back(std::move(checksums));
  }
  return result;
}

std::string with_config_checksum(std::string text) {
  const std::string field = std::string(kConfigField) + std::string(kNoConfigChecksum);
  const size_t at = text.find(field);
  CARAVAN_CHECK_CODE(at != std::string::npos, kInternal, "config.json has no {}", field);
  const uint64_t checksum = xxh3(std::as_bytes(std::span(text.data(), text.size())));
  return text.replace(at + kConfigField.size(), kDigits, checksum_text(checksum));
}

ConfigChecksum config_checksum_of(std::string_view text, std::string_view stored,
                                  const std::string& where) {
  const std::optional<uint64_t> value = parse_checksum(stored);
  CARAVAN_CHECK_CODE(value.has_value(), kCorrupt,
                     "{}: caravan.config_xxh3: got \"{}\", expected 16 hexadecimal digits", where,
                     printable(stored));
  std::string blank(text);
  const size_t at = blank.find(kConfigField);
  if (at != std::string::npos && at + kConfigField.size() + kDigits <= blank.size()) {
    blank.replace(at + kConfigField.size(), kDigits, kNoConfigChecksum);
  }
  return {.stored = *value, .computed = xxh3(std::as_bytes(std::span(blank.data(), blank.size())))};
}

}  // namespace caravan
