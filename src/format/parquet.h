#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/mapped_file.h"
#include "format/decompress.h"

namespace caravan {

/// A leaf of the schema, in file order.
struct ParquetColumn {
  std::string name;  // dotted path; a column that is no part of a group has no dots of its own
  std::string type;  // for messages: "BYTE_ARRAY", "INT64", "list of BYTE_ARRAY", ...
  bool is_string = false;  // a BYTE_ARRAY of its own, one or no value a row: what can be read
  bool is_optional = false;
};

/// Reads columns of strings from an Apache Parquet file as data sets are shipped in: BYTE_ARRAY,
/// required or optional, data pages v1 and v2, PLAIN and dictionary encoding, uncompressed, Snappy,
/// gzip or Zstandard, any number of row groups. Whatever else is met is kUnsupported, naming it;
/// the other columns of a file may be of any kind. The file is untrusted: sizes are checked before
/// memory is taken, one page (at most 256 MiB) and one dictionary are held at a time, page
/// checksums are verified where there are any. Source: github.com/apache/parquet-format 2.11,
/// README.md, Encodings.md, parquet.thrift.
class ParquetFile {
 public:
  /// Errors: kNotFound, kIo, kCorrupt, kUnsupported, naming the path.
  static ParquetFile open(const std::string& path);
  /// The same from bytes that outlive this object; `where` stands for the path in messages.
  static ParquetFile parse(std::span<const std::byte> bytes, const std::string& where);

  int64_t num_rows() const { return num_rows_; }
  const std::vector<ParquetColumn>& columns() const { return columns_; }
  /// Index into columns() of a name, if it is there.
  std::optional<size_t> find_column(std::string_view name) const;
  /// Names of all columns, for messages: "a", "b".
  std::string column_names() const;

  /// Most bytes of one text.
  static constexpr size_t kMaxTextBytes = size_t{16} << 20;
  /// A few bytes may stand for many (a dictionary, runs, Zstandard), so what is read of a column is
  /// bounded by the size of the file: rows, the bytes of all texts, the bytes of all pages.
  int64_t max_rows() const { return (int64_t{1} << 20) + num_bytes(); }
  int64_t max_text_bytes() const { return (int64_t{64} << 20) + 256 * num_bytes(); }
  int64_t max_page_bytes() const { return (int64_t{256} << 20) + 256 * num_bytes(); }

  /// Called with each row's value in order, or none for null; it points into memory that lives
  /// until the call returns. Returns false to stop.
  using OnValue = std::function<bool(int64_t row, std::optional<std::string_view> value)>;
  /// Errors: kCorrupt, kUnsupported (a column that is not is_string, an encoding, a codec, more
  /// than the bounds above), naming path and column.
  void read_strings(size_t column, const OnValue& on_value) const;

 private:
  struct Chunk {  // one column of one row group
    std::string path;
    int32_t type = -1;
    int32_t codec = -1;
    int64_t num_values = -1;
    int64_t num_bytes = -1;
    int64_t data_page_offset = -1;
    int64_t dictionary_page_offset = -1;
    bool is_encrypted = false;
    bool is_elsewhere = false;  // in another file
  };
  struct RowGroup {
    int64_t num_rows = -1;
    std::vector<Chunk> chunks;
  };
  friend class ParquetFooter;

  void parse_footer();
  /// Where the pages of a column of a row group lie; `name` is the column's for messages.
  std::span<const std::byte> chunk_bytes(const RowGroup& group, size_t column,
                                         const std::string& name) const;
  int64_t num_bytes() const { return static_cast<int64_t>(bytes_.size()); }
  /// False when on_value said stop. `page_bytes` counts what the pages of a column take.
  bool read_chunk(const RowGroup& group, size_t column, int64_t first_row, int64_t& page_bytes,
                  const OnValue& on_value) const;

  MappedFile file_;
  std::span<const std::byte> bytes_;
  std::string where_;
  uint64_t footer_start_ = 0;
  int64_t num_rows_ = 0;
  std::vector<ParquetColumn> columns_;
  std::vector<RowGroup> row_groups_;
};

}  // namespace caravan
