#include "apps/text_data.h"

#include "core/error.h"
#include "core/jsonl.h"
#include "core/mapped_file.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

constexpr size_t kMaxBytes = size_t{1} << 30;

void check_utf8(const TextDocument& document) {
  for (size_t i = 0; i < document.text.size();) {
    const Utf8Char c = decode_utf8(document.text, i);
    CARAVAN_CHECK_CODE(c.state == Utf8Char::State::kValid, kCorrupt,
                       "{}: offset {}: byte 0x{:02x} is not UTF-8 there: expected text",
                       document.where, i, static_cast<unsigned char>(document.text[i]));
    i += c.num_bytes;
  }
}

}  // namespace

void TextDataFlags::add_to(CLI::App& command, const std::string& description) {
  command.add_option("--data,-d", data, description)->required();
  command
      .add_option("--format", format,
                  "text: the whole file is one document; jsonl: one document a line; auto: jsonl "
                  "when the name ends in .jsonl or .jsonl.gz")
      ->check(CLI::IsMember({"auto", "text", "jsonl"}))
      ->capture_default_str();
  command.add_option("--text-key", text_key, "Member of a JSON line that holds its text")
      ->capture_default_str();
}

std::vector<TextDocument> TextDataFlags::read() const {
  std::vector<TextDocument> documents;
  const bool is_jsonl_name = data.ends_with(".jsonl") || data.ends_with(".jsonl.gz");
  if (format == "text" || (format == "auto" && !is_jsonl_name)) {
    documents.push_back({read_text_file(data, kMaxBytes), data});
  } else {
    size_t num_bytes = 0;
    for_each_json_line(data, [&](const boost::json::object& row, const std::string& where) {
      CARAVAN_CHECK_CODE(row.contains(text_key), kCorrupt,
                         "{}: no member \"{}\": name the one that holds the text with --text-key",
                         where, printable(text_key));
      documents.push_back({string_of(row, text_key.c_str(), where), where});
      num_bytes += documents.back().text.size();
      CARAVAN_CHECK_CODE(num_bytes <= kMaxBytes, kCorrupt,
                         "{}: more than {} bytes of text up to here", where, kMaxBytes);
    });
  }
  bool is_empty = true;
  for (const TextDocument& document : documents) {
    check_utf8(document);
    is_empty = is_empty && document.text.empty();
  }
  CARAVAN_CHECK_CODE(!is_empty, kCorrupt, "{}: no text in it", data);
  return documents;
}

}  // namespace caravan
