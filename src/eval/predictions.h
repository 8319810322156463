#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/json.h"

namespace caravan {

/// One line of a predictions file: what a model wrote for one article.
struct Prediction {
  std::string id;      // "" when the file has none
  int64_t index = -1;  // of the article in its data set; -1 when not known
  std::optional<std::vector<int32_t>> prompt_ids;
  std::optional<std::vector<int32_t>> output_ids;
  std::string text;                      // "prediction"
  std::optional<std::string> reference;  // what a person wrote
  int64_t num_dropped_tokens = 0;        // of the article, to make the prompt fit
  std::string finish_reason;             // "stop", "length" or ""
  int64_t line = 0;                      // where it was read: 1, 2, ...
};

/// The object that read_predictions reads back; members that are not known are left out. One a
/// line, with to_json_text, makes a predictions file.
boost::json::object to_json(const Prediction& prediction);

/// Reads a JSON Lines file ("-": standard input). "prediction" is needed ("summary" and "text" are
/// accepted in its place, in this order); "id" (a string or a whole number), "index", "prompt_ids",
/// "output_ids", "reference" ("highlights" is accepted too), "num_dropped_tokens" and
/// "finish_reason" are read when they are there, other members are passed over. The whole file is
/// held in memory.
/// Errors: kNotFound, kIo; kCorrupt naming the line: not a JSON object, a member of another type,
/// no prediction, an id in some lines only, an id that is there twice; kCorrupt without any line.
std::vector<Prediction> read_predictions(const std::string& path);

/// The reference of one article: {"id", "reference"}, or "highlights" or "summary" in its place.
/// The same errors as read_predictions.
std::vector<Prediction> read_references(const std::string& path);

/// Indexes into a and b of rows of the same article, in a's order: by id when both files have ids,
/// else line by line. name_a and name_b are the files' names, for messages.
/// Errors: kInvalidArgument naming file and line when an article is in one file only, or, without
/// ids, when the numbers of lines differ.
std::vector<std::pair<size_t, size_t>> match_predictions(const std::vector<Prediction>& a,
                                                         const std::string& name_a,
                                                         const std::vector<Prediction>& b,
                                                         const std::string& name_b);

/// Copies the references of a file into its predictions, matched as above; references of further
/// articles are passed over, so a whole test set may stand beside a part of it.
/// Errors: kInvalidArgument naming file and line when a prediction has no reference there; without
/// ids, when there are fewer references than predictions.
void add_references(std::vector<Prediction>& predictions, const std::string& name,
                    const std::string& references_path);

}  // namespace caravan
