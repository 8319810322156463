#include "eval/predictions.h"

#include <array>
#include <span>
#include <unordered_map>

#include "core/error.h"
#include "core/json_text.h"
#include "core/jsonl.h"

namespace caravan {

namespace {

/// "the id" of a message, or "line N" where there is none.
std::string label(const Prediction& row) {
  return row.id.empty() ? fmt::format("line {}", row.line)
                        : fmt::format("id \"{}\"", printable(row.id));
}

/// The first of `names` that the row has, which must be a string.
std::optional<std::string> first_string_of(const boost::json::object& row,
                                           std::span<const char* const> names,
                                           const std::string& where) {
  for (const char* name : names) {
    if (row.contains(name)) return string_of(row, name, where);
  }
  return std::nullopt;
}

int64_t integer_of(const boost::json::object& row, const char* name, int64_t otherwise,
                   const std::string& where) {
  const boost::json::value* value = row.if_contains(name);
  if (value == nullptr) return otherwise;
  const int64_t* number = value->if_int64();
  CARAVAN_CHECK_CODE(number != nullptr && *number >= 0, kCorrupt,
                     "{}: \"{}\" is {}, expected a whole number", where, name,
                     printable(to_json_text(*value)));
  return *number;
}

std::string id_of(const boost::json::object& row, const std::string& where) {
  const boost::json::value* value = row.if_contains("id");
  if (value == nullptr) return {};
  if (const int64_t* number = value->if_int64()) return std::to_string(*number);
  std::string id = string_of(row, "id", where);
  CARAVAN_CHECK_CODE(!id.empty(), kCorrupt, "{}: \"id\" is empty", where);
  return id;
}

std::optional<std::vector<int32_t>> ids_of(const boost::json::object& row, const char* name,
                                           const std::string& where) {
  const boost::json::value* value = row.if_contains(name);
  if (value == nullptr) return std::nullopt;
  return token_ids_of(*value, where, name);
}

/// The line of "FILE:LINE".
int64_t line_of(const std::string& where) { return std::stoll(where.substr(where.rfind(':') + 1)); }

using LineOfId = std::unordered_map<std::string, size_t>;

LineOfId index_by_id(const std::vector<Prediction>& rows) {
  LineOfId out;
  out.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) out.emplace(rows[i].id, i);
  return out;
}

/// All rows have an id or none has; no id is there twice; there is at least one row.
void check_ids(const std::vector<Prediction>& rows, const std::string& path) {
  CARAVAN_CHECK_CODE(!rows.empty(), kCorrupt, "{}: the file has no lines", path);
  LineOfId seen;
  for (size_t i = 0; i < rows.size(); ++i) {
    const Prediction& row = rows[i];
    CARAVAN_CHECK_CODE(row.id.empty() == rows[0].id.empty(), kCorrupt,
                       "{}:{}: no \"id\", while line {} has one: give all lines an id or none",
                       path, row.id.empty() ? row.line : rows[0].line,
                       row.id.empty() ? rows[0].line : row.line);
    if (row.id.empty()) continue;
    const auto [known, is_new] = seen.emplace(row.id, i);
    CARAVAN_CHECK_CODE(is_new, kCorrupt, "{}:{}: id \"{}\" is the id of line {} too", path,
                       row.line, printable(row.id), rows[known->second].line);
  }
}

/// For each row of a, the row of b; rows of b may be left over.
std::vector<std::pair<size_t, size_t>> match_each(const std::vector<Prediction>& a,
                                                  const std::string& name_a,
                                                  const std::vector<Prediction>& b,
                                                  const std::string& name_b) {
  std::vector<std::pair<size_t, size_t>> pairs;
  pairs.reserve(a.size());
  const bool has_ids = !a.empty() && !b.empty() && !a[0].id.empty() && !b[0].id.empty();
  if (!has_ids) {
    for (size_t i = 0; i < a.size(); ++i) {
      CARAVAN_CHECK(i < b.size(), "{}:{}: {} has no line for it, only {}", name_a, a[i].line,
                    name_b, b.size());
      pairs.emplace_back(i, i);
    }
    return pairs;
  }
  const LineOfId in_b = index_by_id(b);
  for (size_t i = 0; i < a.size(); ++i) {
    const auto found = in_b.find(a[i].id);
    CARAVAN_CHECK(found != in_b.end(), "{}:{}: {} is not in {}", name_a, a[i].line, label(a[i]),
                  name_b);
    pairs.emplace_back(i, found->second);
  }
  return pairs;
}

constexpr std::array<const char*, 3> kPredictionNames = {"prediction", "summary", "text"};
constexpr std::array<const char*, 2> kReferenceNames = {"reference", "highlights"};
constexpr std::array<const char*, 3> kReferenceFileNames = {"reference", "highlights", "summary"};

}  // namespace

boost::json::object to_json(const Prediction& prediction) {
  boost::json::object row;
  if (!prediction.id.empty()) row["id"] = prediction.id;
  if (prediction.index >= 0) row["index"] = prediction.index;
  if (prediction.prompt_ids) row["prompt_ids"] = boost::json::value_from(*prediction.prompt_ids);
  if (prediction.output_ids) row["output_ids"] = boost::json::value_from(*prediction.output_ids);
  row["prediction"] = prediction.text;
  if (prediction.reference) row["reference"] = *prediction.reference;
  if (prediction.num_dropped_tokens > 0) row["num_dropped_tokens"] = prediction.num_dropped_tokens;
  if (!prediction.finish_reason.empty()) row["finish_reason"] = prediction.finish_reason;
  return row;
}

std::vector<Prediction> read_predictions(const std::string& path) {
  std::vector<Prediction> rows;
  for_each_json_line(path, [&](const boost::json::object& row, const std::string& where) {
    Prediction& prediction = rows.emplace_back();
    prediction.line = line_of(where);
    std::optional<std::string> text = first_string_of(row, kPredictionNames, where);
    CARAVAN_CHECK_CODE(text, kCorrupt, "{}: no member \"prediction\" (nor \"summary\" or \"text\")",
                       where);
    prediction.text = std::move(*text);
    prediction.id = id_of(row, where);
    prediction.index = integer_of(row, "index", -1, where);
    prediction.prompt_ids = ids_of(row, "prompt_ids", where);
    prediction.output_ids = ids_of(row, "output_ids", where);
    prediction.reference = first_string_of(row, kReferenceNames, where);
    prediction.num_dropped_tokens = integer_of(row, "num_dropped_tokens", 0, where);
    prediction.finish_reason = string_of(row, "finish_reason", where);
  });
  check_ids(rows, path);
  return rows;
}

std::vector<Prediction> read_references(const std::string& path) {
  std::vector<Prediction> rows;
  for_each_json_line(path, [&](const boost::json::object& row, const std::string& where) {
    Prediction& reference = rows.emplace_back();
    reference.line = line_of(where);
    reference.reference = first_string_of(row, kReferenceFileNames, where);
    CARAVAN_CHECK_CODE(reference.reference, kCorrupt,
                       "{}: no member \"reference\" (nor \"highlights\" or \"summary\")", where);
    reference.id = id_of(row, where);
  });
  check_ids(rows, path);
  return rows;
}

std::vector<std::pair<size_t, size_t>> match_predictions(const std::vector<Prediction>& a,
                                                         const std::string& name_a,
                                                         const std::vector<Prediction>& b,
                                                         const std::string& name_b) {
  std::vector<std::pair<size_t, size_t>> pairs = match_each(a, name_a, b, name_b);
  if (b.size() != a.size()) match_each(b, name_b, a, name_a);  // throws for the first too many
  return pairs;
}

void add_references(std::vector<Prediction>& predictions, const std::string& name,
                    const std::string& references_path) {
  const std::vector<Prediction> references = read_references(references_path);
  for (const auto& [i, j] : match_each(predictions, name, references, references_path)) {
    predictions[i].reference = references[j].reference;
  }
}

}  // namespace caravan
