#include "eval/dataset.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/json.h"
#include "core/json_text.h"
#include "core/mapped_file.h"
#include "format/parquet.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxLineBytes = size_t{64} << 20;
constexpr size_t kMaxArrayBytes = size_t{1} << 30;
constexpr int kMaxFolderDepth = 3;

struct KeyPair {
  std::string article;
  std::string summary;
};
const KeyPair kKnownPairs[] = {{"article", "highlights"}, {"document", "summary"},
                               {"article", "summary"},    {"text", "summary"},
                               {"dialogue", "summary"},   {"src", "tgt"}};

/// The names to read, given which ones the data has. `found` is for the message.
KeyPair choose_keys(const DatasetOptions& options,
                    const std::function<bool(const std::string&)>& has, const std::string& where,
                    const std::function<std::string()>& found) {
  for (const std::string* key : {&options.article_key, &options.summary_key}) {
    CARAVAN_CHECK_CODE(key->empty() || has(*key), kCorrupt, "{}: no \"{}\", there is {}", where,
                       printable(*key), found());
  }
  if (!options.article_key.empty() && !options.summary_key.empty()) {
    return {options.article_key, options.summary_key};
  }
  for (const KeyPair& pair : kKnownPairs) {
    const std::string& article = options.article_key.empty() ? pair.article : options.article_key;
    const std::string& summary = options.summary_key.empty() ? pair.summary : options.summary_key;
    if (has(article) && has(summary)) return {article, summary};
  }
  CARAVAN_FAIL(kCorrupt,
               "{}: no \"article\" and \"highlights\" (nor another known pair), there is {}: name "
               "them with --article-key and --summary-key",
               where, found());
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = decode_utf8(text, i);
    if (c.state != Utf8Char::State::kValid) return false;
    i += c.num_bytes;
  }
  return true;
}

/// Rows as they come from one file after the other.
class RowCollector {
 public:
  explicit RowCollector(const DatasetOptions& options) : options_(options) {}

  bool is_full() const {
    return options_.max_rows >= 0 && static_cast<int64_t>(rows_.size()) >= options_.max_rows;
  }

  void add_object(const boost::json::object& object, const std::string& where) {
    if (!keys_) {
      keys_ = choose_keys(
          options_, [&](const std::string& key) { return object.contains(key); }, where,
          [&] {
            std::string names;
            for (const auto& member : object) {
              if (!names.empty()) names += ", ";
              names += fmt::format("\"{}\"", printable({member.key().data(), member.key().size()}));
            }
            return names.empty() ? "nothing" : names;
          });
    }
    DatasetRow row;
    row.article = text_of(object, keys_->article, where);
    row.summary = text_of(object, keys_->summary, where);
    row.id = id_of(object, where);
    rows_.push_back(std::move(row));
  }

  void add_json(const boost::json::value& value, const std::string& where) {
    CARAVAN_CHECK_CODE(value.is_object(), kCorrupt, "{}: expected a JSON object", where);
    add_object(value.get_object(), where);
  }

  void add_parquet(const std::string& path) {
    const ParquetFile file = ParquetFile::open(path);
    const KeyPair keys = choose_keys(
        options_, [&](const std::string& key) { return file.find_column(key).has_value(); }, path,
        [&] { return file.columns().empty() ? "nothing" : file.column_names(); });
    const size_t first = rows_.size();
    int64_t count = file.num_rows();
    if (options_.max_rows >= 0) {
      count = std::min(count, options_.max_rows - static_cast<int64_t>(first));
    }
    if (count <= 0) return;
    const auto read = [&](const std::string& name, const auto& on_text) {
      read_column(file, path, name, count, on_text);
    };
    read(keys.article, [&](size_t, std::string_view text) {
      rows_.push_back({"", std::string(text), ""});
    });
    read(keys.summary,
         [&](size_t row, std::string_view text) { rows_[first + row].summary = text; });
    const auto id = file.find_column("id");
    if (id && file.columns()[*id].is_string) {
      read("id", [&](size_t row, std::string_view text) { rows_[first + row].id = text; });
    } else {
      for (size_t i = first; i < rows_.size(); ++i) rows_[i].id = std::to_string(i);
    }
  }

  std::vector<DatasetRow> take() { return std::move(rows_); }

 private:
  /// The first `count` values of one column, each of which must be there and valid.
  static void read_column(const ParquetFile& file, const std::string& path, const std::string& name,
                          int64_t count,
                          const std::function<void(size_t, std::string_view)>& on_text) {
    file.read_strings(
        *file.find_column(name), [&](int64_t row, std::optional<std::string_view> value) {
          CARAVAN_CHECK_CODE(value.has_value(), kCorrupt, "{}: row {}: \"{}\" is null", path, row,
                             printable(name));
          CARAVAN_CHECK_CODE(is_utf8(*value), kCorrupt, "{}: row {}: \"{}\" is not UTF-8", path,
                             row, printable(name));
          on_text(static_cast<size_t>(row), *value);
          return row + 1 < count;
        });
  }

  static std::string text_of(const boost::json::object& object, const std::string& key,
                             const std::string& where) {
    const boost::json::value* value = object.if_contains(key);
    CARAVAN_CHECK_CODE(value != nullptr, kCorrupt, "{}: no \"{}\"", where, printable(key));
    CARAVAN_CHECK_CODE(value->is_string(), kCorrupt, "{}: \"{}\" is not a string", where,
                       printable(key));
    return {value->get_string().data(), value->get_string().size()};
  }

  std::string id_of(const boost::json::object& object, const std::string& where) const {
    const boost::json::value* id = object.if_contains("id");
    if (id == nullptr) return std::to_string(rows_.size());
    if (id->is_int64() || id->is_uint64()) return to_json_text(*id);
    CARAVAN_CHECK_CODE(id->is_string(), kCorrupt, "{}: \"id\" is neither text nor a whole number",
                       where);
    return {id->get_string().data(), id->get_string().size()};
  }

  const DatasetOptions& options_;
  std::optional<KeyPair> keys_;
  std::vector<DatasetRow> rows_;
};

void read_json_lines(std::string_view text, const std::string& path, RowCollector& rows) {
  int64_t number = 0;
  while (!text.empty() && !rows.is_full()) {
    ++number;
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string where = fmt::format("{}:{}", path, number);
    CARAVAN_CHECK_CODE(line.size() <= kMaxLineBytes, kCorrupt, "{}: a line of {} bytes, at most {}",
                       where, line.size(), kMaxLineBytes);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    rows.add_json(parse_json(line, where), where);
  }
}

void read_json_array(std::string_view text, const std::string& path, RowCollector& rows) {
  CARAVAN_CHECK_CODE(text.size() <= kMaxArrayBytes, kUnsupported,
                     "{}: a JSON array of {} bytes, at most {}: write JSON Lines", path,
                     text.size(), kMaxArrayBytes);
  const boost::json::value value = parse_json(text, path);
  const auto& array = value.as_array();
  for (size_t i = 0; i < array.size() && !rows.is_full(); ++i) {
    rows.add_json(array[i], fmt::format("{}: element {}", path, i));
  }
}

void read_file(const std::string& path, RowCollector& rows) {
  const MappedFile file = MappedFile::open(path);
  const std::string_view text{reinterpret_cast<const char*>(file.data()), file.size()};
  if (text.starts_with("PAR1")) return rows.add_parquet(path);
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && text[first] == '[') {
    return read_json_array(text, path, rows);
  }
  CARAVAN_CHECK_CODE(first == std::string_view::npos || text[first] == '{', kCorrupt,
                     "{}: neither Parquet nor JSON: begins with \"{}\"", path,
                     printable(text.substr(0, 8)));
  read_json_lines(text, path, rows);
}

bool has_data_suffix(const fs::path& path) {
  const std::string suffix = path.extension().string();
  return suffix == ".parquet" || suffix == ".jsonl" || suffix == ".json";
}

/// "test", "test-00000-of-00002", "test_part1" for the split "test".
bool is_named_after(const std::string& stem, const std::string& split) {
  return stem == split || stem.starts_with(split + "-") || stem.starts_with(split + "_");
}

/// N of "...-of-N", when the name ends so.
std::optional<size_t> shard_count(const std::string& stem) {
  const size_t mark = stem.rfind("-of-");
  if (mark == std::string::npos) return std::nullopt;
  size_t count = 0;
  const char* const end = stem.data() + stem.size();
  const auto [last, error] = std::from_chars(stem.data() + mark + 4, end, count);
  return error == std::errc() && last == end ? std::optional(count) : std::nullopt;
}

std::string folder_names(const std::map<std::string, std::vector<std::string>>& folders) {
  std::string names;
  for (const auto& [folder, files] : folders) names += (names.empty() ? "" : ", ") + folder;
  return names;
}

}  // namespace

std::vector<std::string> dataset_files(const std::string& path, const std::string& split) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  CARAVAN_CHECK_CODE(fs::exists(status), kNotFound, "{}: no such file or directory", path);
  if (!fs::is_directory(status)) return {path};

  std::map<std::string, std::vector<std::string>> folders;  // those that hold files of the split
  fs::recursive_directory_iterator it(path, fs::directory_options::skip_permission_denied, error);
  CARAVAN_CHECK_CODE(!error, kIo, "{}: {}", path, error.message());
  for (; it != fs::recursive_directory_iterator(); it.increment(error)) {
    if (error) break;
    if (it.depth() >= kMaxFolderDepth) it.disable_recursion_pending();
    const fs::path file = it->path();
    if (!has_data_suffix(file) || !it->is_regular_file(error)) continue;
    const bool is_in_split_folder = it.depth() > 0 && file.parent_path().filename() == split;
    if (is_in_split_folder || is_named_after(file.stem().string(), split)) {
      folders[file.parent_path().string()].push_back(file.string());
    }
  }
  CARAVAN_CHECK(!folders.empty(),
                "{}: no {}*.parquet, {}*.jsonl or {}*.json in this directory: give the file, or "
                "another --split",
                path, split, split, split);
  CARAVAN_CHECK(folders.size() == 1, "{}: files of the split \"{}\" in {} folders: give one of {}",
                path, split, folders.size(), folder_names(folders));
  std::vector<std::string> files = std::move(folders.begin()->second);
  const auto is_parquet = [](const std::string& f) { return f.ends_with(".parquet"); };
  if (std::any_of(files.begin(), files.end(), is_parquet)) {
    std::erase_if(files, [&](const std::string& f) { return !is_parquet(f); });
  }
  std::sort(files.begin(), files.end());
  if (const auto count = shard_count(fs::path(files.front()).stem().string())) {
    CARAVAN_CHECK_CODE(files.size() == *count, kNotFound, "{}: {} of {} shards of \"{}\" are there",
                       folders.begin()->first, files.size(), *count, split);
  }
  return files;
}

std::vector<DatasetRow> read_dataset(const DatasetOptions& options) {
  RowCollector rows(options);
  for (const std::string& file : dataset_files(options.path, options.split)) {
    if (rows.is_full()) break;
    read_file(file, rows);
  }
  std::vector<DatasetRow> result = rows.take();
  CARAVAN_CHECK_CODE(!result.empty() || options.max_rows == 0, kCorrupt, "{}: no rows",
                     options.path);
  return result;
}

}  // namespace caravan
