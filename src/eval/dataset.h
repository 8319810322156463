#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace caravan {

/// A text and its summary, valid UTF-8 both.
struct DatasetRow {
  std::string id;  // the data set's own, else the row's number from 0
  std::string article;
  std::string summary;
};

struct DatasetOptions {
  std::string path;            // file or directory
  std::string split = "test";  // which files of a directory
  std::string article_key;     // "": a known pair of names
  std::string summary_key;
  int64_t max_rows = -1;  // stop after these; -1: all
};

/// Reads pairs of text and summary, in order, from
/// - JSON Lines, or a JSON array of objects (a file whose first character is `[`), gzip or not;
/// - CSV with a line of names (eval/table_rows.h), known by its name: .csv or .csv.gz;
/// - Apache Parquet (format/parquet.h), known by its first bytes;
/// - a directory: the files of `split` as the Hugging Face hub names them
///   (test-00000-of-00002.parquet, test.jsonl.gz, test/0000.parquet), all shards in order, up to
///   three folders deep; where there are several forms, the first of Parquet, JSON and CSV.
/// Without keys the first known pair that the data has is taken: article + highlights
/// (cnn_dailymail), document + summary (xsum), article + summary, text + summary, dialogue +
/// summary, src + tgt. "id" may be text or a whole number, or be missing. Errors, one line that
/// names file and line or row: kNotFound; kCorrupt (no rows, a missing or empty member, text that
/// is not UTF-8, a line above 64 MiB, broken Parquet or gzip); kUnsupported (other forms of
/// Parquet, an array above 1 GiB, a text above 16 MiB, more rows or text than the file's size
/// allows); kInvalidArgument (a directory without or with more than one such set of files).
std::vector<DatasetRow> read_dataset(const DatasetOptions& options);

/// The files that read_dataset reads, in order: the path itself when it is a file.
std::vector<std::string> dataset_files(const std::string& path, const std::string& split);

}  // namespace caravan
