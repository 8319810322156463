#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <memory>
#include <optional>

#include "apps/commands.h"
#include "core/atomic_file.h"
#include "core/error.h"
#include "core/json_text.h"
#include "core/jsonl.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/utf8.h"

namespace caravan {

namespace {

struct TokenizeFlags {
  std::string model;
  std::string text;
  std::string input;
  std::string output;
  std::string ids;
  bool decodes = false;
  bool parses_special = false;
  bool writes_json = false;
};

// Standard output, or a file that appears only when it is whole.
class Sink {
 public:
  explicit Sink(const std::string& path) {
    if (!path.empty() && path != "-") file_.emplace(path);
  }
  void write(std::string_view text) {
    if (file_) return file_->write(text);
    const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
    CARAVAN_CHECK_CODE(written == text.size(), kIo, "standard output: write failed");
  }
  void commit() {
    if (file_) return file_->commit();
    CARAVAN_CHECK_CODE(std::fflush(stdout) == 0, kIo, "standard output: write failed");
  }

 private:
  std::optional<AtomicFile> file_;
};

std::string ids_row(const std::vector<int32_t>& ids) {
  return to_json_text(boost::json::object{{"ids", boost::json::value_from(ids)}}) + "\n";
}

// JSON holds only valid UTF-8: bytes of unfinished characters become U+FFFD there.
std::string text_row(std::string_view bytes) {
  std::string text;
  append_sanitized_utf8(bytes, true, text);
  return to_json_text(boost::json::object{{"text", text}}) + "\n";
}

// "15496,995": numbers with commas or blanks between them.
std::vector<int32_t> parse_ids(const std::string& list) {
  std::vector<int32_t> ids;
  constexpr const char* kSeparators = ", \t\r\n";
  for (size_t begin = list.find_first_not_of(kSeparators); begin != std::string::npos;) {
    const size_t end = std::min(list.find_first_of(kSeparators, begin), list.size());
    const char* item_end = list.data() + end;
    int32_t id = -1;
    const auto [stop, error] = std::from_chars(list.data() + begin, item_end, id);
    CARAVAN_CHECK(error == std::errc() && stop == item_end && id >= 0,
                  "--ids: got \"{}\", expected token ids such as 15496,995",
                  printable(list.substr(begin, end - begin)));
    ids.push_back(id);
    begin = list.find_first_not_of(kSeparators, end);
  }
  return ids;
}

void encode_all(const TokenizeFlags& flags, const Tokenizer& tokenizer, Sink& sink) {
  const Tokenizer::EncodeOptions options{.parse_special = flags.parses_special};
  if (!flags.input.empty()) {
    for_each_json_line(flags.input, [&](const boost::json::object& row, const std::string& where) {
      CARAVAN_CHECK_CODE(row.contains("text"), kCorrupt, "{}: expected a member \"text\"", where);
      sink.write(ids_row(tokenizer.encode(string_of(row, "text", where), options)));
    });
    return;
  }
  const std::vector<int32_t> ids = tokenizer.encode(flags.text, options);
  sink.write(flags.writes_json ? ids_row(ids) : fmt::format("{}\n", fmt::join(ids, ",")));
}

void decode_all(const TokenizeFlags& flags, const Tokenizer& tokenizer, Sink& sink) {
  if (!flags.input.empty()) {
    for_each_json_line(flags.input, [&](const boost::json::object& row, const std::string& where) {
      const boost::json::value* given = row.if_contains("ids");
      CARAVAN_CHECK_CODE(given != nullptr, kCorrupt, "{}: expected a member \"ids\"", where);
      const std::vector<int32_t> ids = token_ids_of(*given, where);
      for (const int32_t id : ids) {
        CARAVAN_CHECK_CODE(id < tokenizer.vocab_size(), kCorrupt,
                           "{}: token id {} is outside the vocabulary, which ends at {}", where, id,
                           tokenizer.vocab_size() - 1);
      }
      sink.write(text_row(tokenizer.decode(ids)));
    });
    return;
  }
  const std::string text = tokenizer.decode(parse_ids(flags.ids));
  sink.write(flags.writes_json ? text_row(text) : text + "\n");
}

void run_tokenize(const TokenizeFlags& flags) {
  if (flags.decodes) {
    CARAVAN_CHECK(flags.ids.empty() != flags.input.empty(),
                  "--decode takes either --ids or --input");
    CARAVAN_CHECK(flags.text.empty(), "--decode takes no --text: did you mean --ids?");
    CARAVAN_CHECK(!flags.parses_special, "--parse-special is for encoding, not for --decode");
  } else {
    CARAVAN_CHECK(flags.ids.empty(), "--ids needs --decode");
  }
  const Tokenizer tokenizer = Tokenizer::from_directory(flags.model);
  Sink sink(flags.output);
  if (flags.decodes) {
    decode_all(flags, tokenizer, sink);
  } else {
    encode_all(flags, tokenizer, sink);
  }
  sink.commit();
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* command =
      app.add_subcommand("tokenize", "Turn text into token ids, or ids into text (--decode)");
  command
      ->add_option("--model", flags->model,
                   "Directory with tokenizer.json, or vocab.json and merges.txt")
      ->required();
  CLI::Option* text = command->add_option("--text", flags->text, "Text to encode; prints 1,2,3");
  CLI::Option* input = command->add_option(
      "--input", flags->input,
      "JSON Lines file, or - for standard input: {\"text\"} a line in, {\"ids\"} a line out; with "
      "--decode the reverse");
  CLI::Option* ids =
      command->add_option("--ids", flags->ids, "Token ids to decode, such as 15496,995");
  text->excludes(input);
  ids->excludes(input);
  command->add_option(
      "--output", flags->output,
      "File for the result instead of standard output; written whole or not at all");
  command->add_flag("--decode", flags->decodes,
                    "Turn ids into text. --ids prints the exact bytes; JSON rows have U+FFFD where "
                    "the bytes are not valid UTF-8");
  command->add_flag("--parse-special", flags->parses_special,
                    "Text such as <|endoftext|> becomes the special token; otherwise it is "
                    "ordinary text");
  command->add_flag("--json", flags->writes_json,
                    "Print {\"ids\"} or {\"text\"} for --text and --ids too");
  command->callback([flags, text, input] {
    CARAVAN_CHECK(flags->decodes || text->count() + input->count() > 0,
                  "nothing to do: give --text or --input, or --decode with --ids or --input");
    run_tokenize(*flags);
  });
}

}  // namespace caravan
