#include "format/parquet.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "format/parquet_page.h"
#include "format/thrift_compact.h"

namespace caravan {

namespace {

constexpr std::string_view kMagic = "PAR1";
constexpr std::string_view kEncryptedMagic = "PARE";
constexpr int64_t kMaxPageBytes = int64_t{256} << 20;
constexpr size_t kMaxSchemaDepth = 32;
constexpr size_t kMaxColumnChunks = size_t{1} << 20;
constexpr size_t kMaxPathBytes = size_t{4} << 20;
constexpr int32_t kByteArray = 6;
constexpr int32_t kRequired = 0, kOptional = 1;

std::string type_name(int32_t type) {
  constexpr const char* kNames[] = {"BOOLEAN", "INT32",  "INT64",      "INT96",
                                    "FLOAT",   "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"};
  if (type >= 0 && type < static_cast<int32_t>(std::size(kNames))) return kNames[type];
  return fmt::format("type {}", type);
}

Compression compression_of(int32_t codec, const std::string& where) {
  constexpr const char* kNames[] = {"UNCOMPRESSED", "SNAPPY", "GZIP", "LZO",
                                    "BROTLI",       "LZ4",    "ZSTD", "LZ4_RAW"};
  switch (codec) {
    case 0:
      return Compression::kNone;
    case 1:
      return Compression::kSnappy;
    case 2:
      return Compression::kGzip;
    case 6:
      return Compression::kZstd;
    default:
      break;
  }
  const bool is_known = codec >= 0 && codec < static_cast<int32_t>(std::size(kNames));
  CARAVAN_FAIL(kUnsupported,
               "{}: compressed with {}, expected none, Snappy, gzip or Zstandard: write the file "
               "again with one of these",
               where, is_known ? kNames[codec] : fmt::format("codec {}", codec));
}

/// One element of the schema, which the footer lists depth first.
struct SchemaElement {
  std::string name;
  int32_t type = -1;
  int32_t repetition = kRequired;
  int32_t num_children = 0;
  int32_t converted_type = -1;
};

bool is_text_type(const SchemaElement& element) {
  constexpr int32_t kUtf8 = 0, kEnum = 4, kJson = 19;
  return element.type == kByteArray &&
         (element.converted_type == -1 || element.converted_type == kUtf8 ||
          element.converted_type == kEnum || element.converted_type == kJson);
}

/// Turns the flat list of elements into leaves.
class SchemaWalk {
 public:
  SchemaWalk(const std::vector<SchemaElement>& elements, std::string where)
      : elements_(elements), where_(std::move(where)) {}

  std::vector<ParquetColumn> leaves() {
    CARAVAN_CHECK_CODE(!elements_.empty(), kCorrupt, "{}: a schema without elements", where_);
    const int32_t num_columns = elements_[0].num_children;
    next_ = 1;
    for (int32_t i = 0; i < num_columns; ++i) visit("", false, 0);
    CARAVAN_CHECK_CODE(next_ == elements_.size(), kCorrupt,
                       "{}: a schema of {} elements of which {} are used", where_, elements_.size(),
                       next_);
    return std::move(leaves_);
  }

 private:
  void visit(const std::string& prefix, bool is_repeated, size_t depth) {
    CARAVAN_CHECK_CODE(next_ < elements_.size(), kCorrupt,
                       "{}: a schema that names more elements than its {}", where_,
                       elements_.size());
    CARAVAN_CHECK_CODE(depth < kMaxSchemaDepth, kUnsupported, "{}: a schema nested beyond {}",
                       where_, kMaxSchemaDepth);
    const SchemaElement& element = elements_[next_++];
    const std::string path = prefix.empty() ? element.name : prefix + "." + element.name;
    // Paths repeat the names of the groups around them: bounded by what a data set has.
    num_path_bytes_ += path.size();
    CARAVAN_CHECK_CODE(num_path_bytes_ <= kMaxPathBytes, kUnsupported,
                       "{}: more than {} bytes of column names", where_, kMaxPathBytes);
    is_repeated = is_repeated || element.repetition > kOptional;
    if (element.num_children > 0) {
      for (int32_t i = 0; i < element.num_children; ++i) visit(path, is_repeated, depth + 1);
      return;
    }
    ParquetColumn column;
    column.name = path;
    column.type = (is_repeated ? "list of " : "") + type_name(element.type);
    column.is_optional = element.repetition == kOptional;
    column.is_string = depth == 0 && !is_repeated && is_text_type(element);
    leaves_.push_back(std::move(column));
  }

  const std::vector<SchemaElement>& elements_;
  std::string where_;
  size_t next_ = 0;
  size_t num_path_bytes_ = 0;
  std::vector<ParquetColumn> leaves_;
};

uint32_t crc_of(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

/// One page as it lies in the file.
struct Page {
  ParquetPageHeader header;
  std::span<const std::byte> body;
  std::string where;  // for messages: file, column, offset
  size_t num_header_bytes = 0;
};

/// The pages of a column of one row group, one after the other.
class PageStream {
 public:
  /// file: where offsets are counted from.
  PageStream(std::span<const std::byte> bytes, const std::byte* file, const std::string& name)
      : rest_(bytes), file_(file), name_(name) {}

  /// Errors: kCorrupt: it goes beyond the column, its checksum is another.
  Page next() {
    const auto offset = static_cast<uint64_t>(rest_.data() - file_);
    Page page;
    page.where = fmt::format("{}: page at offset {}", name_, offset);
    ThriftReader reader(rest_, name_, offset);
    page.header = read_parquet_page_header(reader, page.where);
    page.num_header_bytes = reader.position();
    rest_ = rest_.subspan(page.num_header_bytes);
    CARAVAN_CHECK_CODE(page.header.num_bytes <= static_cast<int64_t>(rest_.size()), kCorrupt,
                       "{}: {} bytes where {} are left of the column", page.where,
                       page.header.num_bytes, rest_.size());
    page.body = rest_.first(static_cast<size_t>(page.header.num_bytes));
    rest_ = rest_.subspan(page.body.size());
    CARAVAN_CHECK_CODE(!page.header.crc || *page.header.crc == crc_of(page.body), kCorrupt,
                       "{}: its checksum is another", page.where);
    return page;
  }

 private:
  std::span<const std::byte> rest_;
  const std::byte* file_;
  const std::string& name_;
};

/// Bytes of a page once decompressed.
struct DecodedPage {
  std::unique_ptr<std::byte[]> data;
  size_t size = 0;
  std::span<const std::byte> bytes() const { return {data.get(), size}; }
};

DecodedPage decode_page(Compression compression, std::span<const std::byte> body, int64_t num_bytes,
                        const std::string& where) {
  CARAVAN_CHECK_CODE(num_bytes <= kMaxPageBytes, kUnsupported,
                     "{}: a page of {} bytes, at most {} are read", where, num_bytes,
                     kMaxPageBytes);
  CARAVAN_CHECK_CODE(
      static_cast<uint64_t>(num_bytes) <= max_decompressed_bytes(compression, body.size()),
      kCorrupt, "{}: {} bytes cannot decompress to the {} announced", where, body.size(),
      num_bytes);
  DecodedPage page;
  page.size = static_cast<size_t>(num_bytes);
  page.data = std::make_unique_for_overwrite<std::byte[]>(page.size);
  decompress(compression, body, {page.data.get(), page.size}, where);
  return page;
}

/// A column's repeated strings, which point into the page they came in.
struct Dictionary {
  DecodedPage page;
  std::vector<std::string_view> strings;
};

Dictionary read_dictionary(const Page& page, Compression compression) {
  const ParquetPageHeader& header = page.header;
  CARAVAN_CHECK_CODE(header.encoding == kParquetPlain || header.encoding == kParquetPlainDictionary,
                     kUnsupported, "{}: a dictionary in {}, expected PLAIN", page.where,
                     parquet_encoding_name(header.encoding));
  Dictionary dictionary;
  dictionary.page = decode_page(compression, page.body, header.num_decoded_bytes, page.where);
  CARAVAN_CHECK_CODE(
      header.num_values <= static_cast<int64_t>(dictionary.page.size / sizeof(uint32_t)), kCorrupt,
      "{}: {} strings in a dictionary of {} bytes", page.where, header.num_values,
      dictionary.page.size);
  ParquetPlainStrings strings(dictionary.page.bytes(), page.where);
  dictionary.strings.reserve(static_cast<size_t>(header.num_values));
  for (int64_t i = 0; i < header.num_values; ++i) dictionary.strings.push_back(strings.next());
  return dictionary;
}

/// Levels and values of a data page, v1 or v2 alike.
struct DataPage {
  DecodedPage decoded;
  std::span<const std::byte> levels;  // of a column that may be null
  std::span<const std::byte> values;
};

DataPage open_data_page(const Page& raw, Compression compression, bool is_optional) {
  const ParquetPageHeader& header = raw.header;
  const std::span<const std::byte> body = raw.body;
  const std::string& where = raw.where;
  DataPage page;
  if (header.type == static_cast<int32_t>(ParquetPageType::kData)) {
    page.decoded = decode_page(compression, body, header.num_decoded_bytes, where);
    page.values = page.decoded.bytes();
    if (!is_optional) return page;
    CARAVAN_CHECK_CODE(header.level_encoding == kParquetRle, kUnsupported,
                       "{}: definition levels in {}, expected RLE", where,
                       parquet_encoding_name(header.level_encoding));
    uint32_t num_bytes = 0;
    CARAVAN_CHECK_CODE(page.values.size() >= sizeof(num_bytes), kCorrupt,
                       "{}: a page without definition levels", where);
    std::memcpy(&num_bytes, page.values.data(), sizeof(num_bytes));
    page.values = page.values.subspan(sizeof(num_bytes));
    CARAVAN_CHECK_CODE(num_bytes <= page.values.size(), kCorrupt,
                       "{}: {} bytes of definition levels where {} are left of the page", where,
                       num_bytes, page.values.size());
    page.levels = page.values.first(num_bytes);
    page.values = page.values.subspan(num_bytes);
    return page;
  }
  CARAVAN_CHECK_CODE(header.num_repetition_bytes == 0, kCorrupt,
                     "{}: repetition levels in a column without lists", where);
  const int64_t num_level_bytes = header.num_definition_bytes;
  CARAVAN_CHECK_CODE(num_level_bytes <= static_cast<int64_t>(body.size()) &&
                         num_level_bytes <= header.num_decoded_bytes,
                     kCorrupt, "{}: {} bytes of levels in a page of {}", where, num_level_bytes,
                     body.size());
  page.levels = body.first(static_cast<size_t>(num_level_bytes));
  page.decoded = decode_page(header.is_compressed ? compression : Compression::kNone,
                             body.subspan(static_cast<size_t>(num_level_bytes)),
                             header.num_decoded_bytes - num_level_bytes, where);
  page.values = page.decoded.bytes();
  return page;
}

/// The next value of a data page: PLAIN, or an index into the dictionary.
class ValueReader {
 public:
  ValueReader(int32_t encoding, std::span<const std::byte> values,
              const std::optional<Dictionary>& dictionary, const std::string& where)
      : where_(where), plain_(values, where) {
    if (encoding == kParquetPlain) return;
    CARAVAN_CHECK_CODE(
        encoding == kParquetPlainDictionary || encoding == kParquetRleDictionary, kUnsupported,
        "{}: values in {}, expected PLAIN or a dictionary: write the file again without it", where,
        parquet_encoding_name(encoding));
    CARAVAN_CHECK_CODE(dictionary.has_value(), kCorrupt,
                       "{}: a dictionary is used before it is given", where);
    dictionary_ = dictionary->strings;
    // A page of nulls alone may have no bytes.
    const int bit_width = values.empty() ? 0 : static_cast<int>(values.front());
    indices_.emplace(values.subspan(values.empty() ? 0 : 1), bit_width, where);
  }

  std::string_view next() {
    if (!indices_) return plain_.next();
    const uint32_t index = indices_->next();
    CARAVAN_CHECK_CODE(index < dictionary_.size(), kCorrupt, "{}: entry {} of a dictionary of {}",
                       where_, index, dictionary_.size());
    return dictionary_[index];
  }

 private:
  const std::string& where_;
  std::span<const std::string_view> dictionary_;
  ParquetPlainStrings plain_;
  std::optional<ParquetHybridDecoder> indices_;
};

}  // namespace

/// Reads the metadata at the end of a file, field numbers as in parquet.thrift.
class ParquetFooter {
 public:
  ParquetFooter(ParquetFile& file, std::span<const std::byte> footer)
      : file_(file), reader_(footer, file.where_, file.footer_start_) {}

  void parse() {
    int64_t num_rows = -1;
    reader_.read_struct([&](int16_t id, ThriftType type) {
      if (id == 2) {
        reader_.read_list(type, [&](ThriftType element) { read_schema_element(element); });
      } else if (id == 3) {
        num_rows = reader_.read_i64(type);
      } else if (id == 4) {
        reader_.read_list(type, [&](ThriftType element) { read_row_group(element); });
      } else {
        return false;
      }
      return true;
    });
    file_.columns_ = SchemaWalk(schema_, file_.where_).leaves();
    int64_t sum = 0;
    for (const ParquetFile::RowGroup& group : file_.row_groups_) {
      CARAVAN_CHECK_CODE(group.num_rows >= 0 && group.num_rows <= INT64_MAX - sum, kCorrupt,
                         "{}: a row group of {} rows", file_.where_, group.num_rows);
      CARAVAN_CHECK_CODE(group.chunks.size() == file_.columns_.size(), kCorrupt,
                         "{}: a row group of {} columns, the schema has {}", file_.where_,
                         group.chunks.size(), file_.columns_.size());
      sum += group.num_rows;
    }
    CARAVAN_CHECK_CODE(num_rows == sum, kCorrupt, "{}: {} rows announced, the row groups have {}",
                       file_.where_, num_rows, sum);
    file_.num_rows_ = num_rows;
  }

 private:
  void read_schema_element(ThriftType type) {
    SchemaElement& element = schema_.emplace_back();
    reader_.read_struct_field(type, [&](int16_t id, ThriftType field) {
      switch (id) {
        case 1:
          element.type = reader_.read_i32(field);
          return true;
        case 3:
          element.repetition = reader_.read_i32(field);
          return true;
        case 4:
          element.name = reader_.read_binary(field);
          return true;
        case 5:
          element.num_children = reader_.read_i32(field);
          return true;
        case 6:
          element.converted_type = reader_.read_i32(field);
          return true;
        default:
          return false;
      }
    });
  }

  void read_row_group(ThriftType type) {
    ParquetFile::RowGroup& group = file_.row_groups_.emplace_back();
    reader_.read_struct_field(type, [&](int16_t id, ThriftType field) {
      if (id == 1) {
        reader_.read_list(field, [&](ThriftType element) { read_chunk(element, group); });
        return true;
      }
      if (id == 3) return group.num_rows = reader_.read_i64(field), true;
      return false;
    });
  }

  void read_chunk(ThriftType type, ParquetFile::RowGroup& group) {
    ParquetFile::Chunk& chunk = group.chunks.emplace_back();
    CARAVAN_CHECK_CODE(++num_chunks_ <= kMaxColumnChunks, kUnsupported,
                       "{}: more than {} columns of row groups", file_.where_, kMaxColumnChunks);
    reader_.read_struct_field(type, [&](int16_t id, ThriftType field) {
      if (id == 1) return chunk.is_elsewhere = !reader_.read_binary(field).empty(), true;
      if (id == 3) return read_chunk_metadata(field, chunk), true;
      if (id == 8) chunk.is_encrypted = true;
      return false;
    });
  }

  void read_chunk_metadata(ThriftType type, ParquetFile::Chunk& chunk) {
    reader_.read_struct_field(type, [&](int16_t id, ThriftType field) {
      switch (id) {
        case 1:
          chunk.type = reader_.read_i32(field);
          return true;
        case 3:
          reader_.read_list(field, [&](ThriftType element) {
            if (!chunk.path.empty()) chunk.path += '.';
            chunk.path += reader_.read_binary(element);
          });
          return true;
        case 4:
          chunk.codec = reader_.read_i32(field);
          return true;
        case 5:
          chunk.num_values = reader_.read_i64(field);
          return true;
        case 7:
          chunk.num_bytes = reader_.read_i64(field);
          return true;
        case 9:
          chunk.data_page_offset = reader_.read_i64(field);
          return true;
        case 11:
          chunk.dictionary_page_offset = reader_.read_i64(field);
          return true;
        default:
          return false;
      }
    });
  }

  ParquetFile& file_;
  ThriftReader reader_;
  std::vector<SchemaElement> schema_;
  size_t num_chunks_ = 0;
};

ParquetFile ParquetFile::open(const std::string& path) {
  MappedFile mapped = MappedFile::open(path);
  ParquetFile file = parse({mapped.data(), mapped.size()}, path);
  file.file_ = std::move(mapped);
  return file;
}

ParquetFile ParquetFile::parse(std::span<const std::byte> bytes, const std::string& where) {
  ParquetFile file;
  file.bytes_ = bytes;
  file.where_ = where;
  file.parse_footer();
  return file;
}

void ParquetFile::parse_footer() {
  constexpr size_t kTail = 8;  // length of the footer, magic
  const std::string_view text{reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  CARAVAN_CHECK_CODE(!text.ends_with(kEncryptedMagic), kUnsupported,
                     "{}: an encrypted Parquet file", where_);
  CARAVAN_CHECK_CODE(
      text.size() >= kMagic.size() + kTail && text.starts_with(kMagic) && text.ends_with(kMagic),
      kCorrupt, "{}: not a Parquet file, or cut off: {} bytes that do not begin and end with PAR1",
      where_, text.size());
  uint32_t num_bytes = 0;
  std::memcpy(&num_bytes, bytes_.data() + bytes_.size() - kTail, sizeof(num_bytes));
  const size_t room = bytes_.size() - kTail - kMagic.size();
  CARAVAN_CHECK_CODE(num_bytes <= room, kCorrupt, "{}: a footer of {} bytes in a file of {}",
                     where_, num_bytes, bytes_.size());
  footer_start_ = bytes_.size() - kTail - num_bytes;
  ParquetFooter(*this, bytes_.subspan(static_cast<size_t>(footer_start_), num_bytes)).parse();
}

std::optional<size_t> ParquetFile::find_column(std::string_view name) const {
  for (size_t i = 0; i < columns_.size(); ++i) {
    if (columns_[i].name == name) return i;
  }
  return std::nullopt;
}

std::string ParquetFile::column_names() const {
  std::string names;
  for (const ParquetColumn& column : columns_) {
    if (!names.empty()) names += ", ";
    names += fmt::format("\"{}\" ({})", printable(column.name), column.type);
  }
  return names;
}

void ParquetFile::read_strings(size_t column, const OnValue& on_value) const {
  CARAVAN_CHECK(column < columns_.size(), "{}: column {} of {}", where_, column, columns_.size());
  CARAVAN_CHECK_CODE(columns_[column].is_string, kUnsupported,
                     "{}: column \"{}\" is {}, expected strings (BYTE_ARRAY), one a row", where_,
                     printable(columns_[column].name), columns_[column].type);
  const auto name = [&] {
    return fmt::format("{}: column \"{}\"", where_, printable(columns_[column].name));
  };
  int64_t first_row = 0;
  int64_t page_bytes = 0;
  int64_t text_bytes = 0;
  const auto on_bounded = [&](int64_t row, std::optional<std::string_view> value) {
    CARAVAN_CHECK_CODE(row < max_rows(), kUnsupported,
                       "{}: more than {} rows in a file of {} bytes: write it as JSON Lines",
                       name(), max_rows(), num_bytes());
    const size_t size = value ? value->size() : 0;
    CARAVAN_CHECK_CODE(size <= kMaxTextBytes, kUnsupported,
                       "{}: row {}: a text of {} bytes, at most {} are read", name(), row, size,
                       kMaxTextBytes);
    text_bytes += static_cast<int64_t>(size);
    CARAVAN_CHECK_CODE(text_bytes <= max_text_bytes(), kUnsupported,
                       "{}: row {}: more than {} bytes of text in a file of {} bytes: write it as "
                       "JSON Lines",
                       name(), row, max_text_bytes(), num_bytes());
    return on_value(row, value);
  };
  for (const RowGroup& group : row_groups_) {
    if (!read_chunk(group, column, first_row, page_bytes, on_bounded)) return;
    first_row += group.num_rows;
  }
}

std::span<const std::byte> ParquetFile::chunk_bytes(const RowGroup& group, size_t column,
                                                    const std::string& name) const {
  const Chunk& chunk = group.chunks[column];
  CARAVAN_CHECK_CODE(!chunk.is_encrypted, kUnsupported, "{}: encrypted", name);
  CARAVAN_CHECK_CODE(!chunk.is_elsewhere, kUnsupported, "{}: stored in another file", name);
  CARAVAN_CHECK_CODE(chunk.path == columns_[column].name && chunk.type == kByteArray, kCorrupt,
                     "{}: its place in a row group is taken by \"{}\" ({})", name,
                     printable(chunk.path), type_name(chunk.type));
  CARAVAN_CHECK_CODE(chunk.num_values == group.num_rows, kCorrupt,
                     "{}: {} values in a row group of {} rows", name, chunk.num_values,
                     group.num_rows);
  // Some writers put 0 where there is no dictionary.
  int64_t start = chunk.data_page_offset;
  if (chunk.dictionary_page_offset > 0) start = std::min(start, chunk.dictionary_page_offset);
  const auto end_of_data = static_cast<int64_t>(footer_start_);
  CARAVAN_CHECK_CODE(start >= static_cast<int64_t>(kMagic.size()) && start <= end_of_data &&
                         chunk.num_bytes >= 0 && chunk.num_bytes <= end_of_data - start,
                     kCorrupt, "{}: {} bytes at offset {}, the data end at {}", name,
                     chunk.num_bytes, start, end_of_data);
  return bytes_.subspan(static_cast<size_t>(start), static_cast<size_t>(chunk.num_bytes));
}

bool ParquetFile::read_chunk(const RowGroup& group, size_t column, int64_t first_row,
                             int64_t& page_bytes, const OnValue& on_value) const {
  if (group.num_rows == 0) return true;  // writers put anything where there are no pages
  const std::string name =
      fmt::format("{}: column \"{}\"", where_, printable(columns_[column].name));
  PageStream pages(chunk_bytes(group, column, name), bytes_.data(), name);
  const Compression compression = compression_of(group.chunks[column].codec, name);
  const bool is_optional = columns_[column].is_optional;
  std::optional<Dictionary> dictionary;
  for (int64_t row = 0; row < group.num_rows;) {
    const Page page = pages.next();
    const ParquetPageHeader& header = page.header;
    // Row groups may share their bytes.
    page_bytes +=
        static_cast<int64_t>(page.num_header_bytes) + header.num_bytes + header.num_decoded_bytes;
    CARAVAN_CHECK_CODE(page_bytes <= max_page_bytes(), kUnsupported,
                       "{}: more than {} bytes of pages in a file of {} bytes: write it as JSON "
                       "Lines",
                       name, max_page_bytes(), num_bytes());
    const auto type = static_cast<ParquetPageType>(header.type);
    if (type == ParquetPageType::kIndex) continue;
    if (type == ParquetPageType::kDictionary) {
      CARAVAN_CHECK_CODE(!dictionary, kCorrupt, "{}: a second dictionary", page.where);
      dictionary = read_dictionary(page, compression);
      continue;
    }
    CARAVAN_CHECK_CODE(type == ParquetPageType::kData || type == ParquetPageType::kDataV2,
                       kUnsupported, "{}: a page of type {}", page.where, header.type);
    CARAVAN_CHECK_CODE(header.num_values <= group.num_rows - row, kCorrupt,
                       "{}: {} values where {} are left of the row group", page.where,
                       header.num_values, group.num_rows - row);
    const DataPage data = open_data_page(page, compression, is_optional);
    ParquetHybridDecoder levels(data.levels, is_optional ? 1 : 0, page.where);
    ValueReader values(header.encoding, data.values, dictionary, page.where);
    for (int64_t i = 0; i < header.num_values; ++i, ++row) {
      std::optional<std::string_view> value;
      if (!is_optional || levels.next() == 1) value = values.next();
      if (!on_value(first_row + row, value)) return false;
    }
  }
  return true;
}

}  // namespace caravan
