#include "eval/table_rows.h"

#include <vector>

#include "core/error.h"
#include "core/jsonl.h"
#include "core/keyed_hash.h"
#include "core/text_input.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

using OnRow = std::function<bool(const boost::json::object&, const std::string&)>;

constexpr size_t kMaxColumns = 4096;

class CsvReader {
 public:
  CsvReader(TextInput& in, const std::string& path) : in_(in), path_(path) {}

  /// The fields of the next row that is not an empty line; false at the end of the text.
  bool next() {
    do {
      if (in_.peek() < 0) return false;
      where_ = fmt::format("{}:{}", path_, line_);
      fields_.clear();
      num_bytes_ = 0;
      while (read_field()) {
      }
    } while (fields_.size() == 1 && fields_[0].empty());
    return true;
  }
  std::vector<std::string>& fields() { return fields_; }
  const std::string& where() const { return where_; }

 private:
  /// False after the last field of the row.
  bool read_field() {
    CARAVAN_CHECK_CODE(fields_.size() < kMaxColumns, kCorrupt, "{}: more than {} fields", where_,
                       kMaxColumns);
    std::string& field = fields_.emplace_back();
    const bool is_quoted = in_.peek() == '"';
    if (is_quoted) read_quoted(field);
    for (int c = in_.get(); c >= 0 && c != '\n'; c = in_.get()) {
      if (c == ',') return check(field), true;
      if (c == '\r' && (in_.peek() == '\n' || in_.peek() < 0)) continue;
      CARAVAN_CHECK_CODE(!is_quoted, kCorrupt,
                         "{}: field {}: text after the closing quote; a quote inside is written "
                         "twice",
                         where_, fields_.size());
      push(field, c);
    }
    ++line_;
    return check(field), false;
  }

  void read_quoted(std::string& field) {
    in_.get();
    for (int c = in_.get();; c = in_.get()) {
      CARAVAN_CHECK_CODE(c >= 0, kCorrupt, "{}: field {}: the quote has no end", where_,
                         fields_.size());
      if (c == '"' && in_.peek() != '"') break;
      if (c == '"') in_.get();
      line_ += c == '\n';
      push(field, c);
    }
  }

  void push(std::string& field, int c) {
    CARAVAN_CHECK_CODE(++num_bytes_ <= kMaxJsonLineBytes, kCorrupt,
                       "{}: the row has more than {} bytes; is a quote missing?", where_,
                       kMaxJsonLineBytes);
    field.push_back(static_cast<char>(c));
  }

  void check(const std::string& field) const {
    CARAVAN_CHECK_CODE(is_utf8(field), kCorrupt, "{}: field {} is not UTF-8", where_,
                       fields_.size());
  }

  TextInput& in_;
  const std::string& path_;
  int64_t line_ = 1;
  std::string where_;
  std::vector<std::string> fields_;
  size_t num_bytes_ = 0;  // of the row
};

void for_each_csv_row(TextInput& in, const std::string& path, const OnRow& on_row) {
  CsvReader reader(in, path);
  if (!reader.next()) return;
  const std::vector<std::string> names = std::move(reader.fields());
  KeyedSet<std::string> distinct;
  for (const std::string& name : names) {
    CARAVAN_CHECK_CODE(distinct.insert(name).second, kCorrupt, "{}: two columns are named \"{}\"",
                       reader.where(), printable(name));
  }
  while (reader.next()) {
    const std::vector<std::string>& fields = reader.fields();
    CARAVAN_CHECK_CODE(fields.size() == names.size(), kCorrupt,
                       "{}: {} fields, the first line names {}", reader.where(), fields.size(),
                       names.size());
    boost::json::object row;
    for (size_t i = 0; i < names.size(); ++i) row[names[i]] = fields[i];
    if (!on_row(row, reader.where())) return;
  }
}

}  // namespace

bool is_csv_name(const std::string& path) {
  return path.ends_with(".csv") || path.ends_with(".csv.gz");
}

void for_each_row(const std::string& path, const OnRow& on_row) {
  if (!is_csv_name(path)) return for_each_json_line_while(path, on_row);
  TextInput in(path);
  for_each_csv_row(in, path, on_row);
}

}  // namespace caravan
